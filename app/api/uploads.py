"""From a request's body to the bytes of one or more files, with a limit on every size and number.

Three kinds of body are read: the file itself (`image/*`, `application/octet-stream` or no
Content-Type at all), `multipart/form-data` with parts named `file`, and JSON
`{"images": ["<base64>", ...]}`. A body is held in memory and never written to disk; no more of it
is read than the limits allow. `Bodies` limits the memory that the bodies of all requests hold
together.

This module knows neither images nor query parameters.
"""

import asyncio
import base64
import codecs
import json
import re
import reprlib
import string
import sys
import time
from collections import OrderedDict
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, cast
from urllib.parse import unquote_to_bytes

import orjson
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.errors import (
    EmptyUpload,
    MalformedUpload,
    QueueFull,
    TooManyImages,
    UnsupportedMediaType,
    UploadTooLarge,
)

SLOW_SECONDS = 1.0
"""A body that has been arriving for longer than this can be given up to make room for others."""

MAX_FILENAME_CHARACTERS = 255
MAX_BOUNDARY_BYTES = 256
MAX_PADDING = 256
"""Blanks between a boundary and the end of its line (RFC 2046, 5.1.1)."""

MAX_PART_HEADERS = 16
MAX_PART_HEADER_BYTES = 4096
MAX_PART_HEAD_BYTES = 64 << 10

MAX_JSON_VALUES = 10_000
"""Limits the Python objects that a body of small values turns into; checked before parsing."""

INLINE_JSON_BYTES = 256 << 10
"""JSON or base64 up to this size is read in the event loop, in about a millisecond; more in a
thread."""

MAX_DATA_URL_HEAD = 1024
"""Characters of a data URL before its data."""

READ_TYPES = "image/*, application/octet-stream, multipart/form-data, application/json"
CURL_HINT = "; with curl: -H 'Content-Type: image/jpeg'"
"""`curl --data-binary` calls a body a form unless it is told otherwise."""

T = TypeVar("T")

_quoting = reprlib.Repr()
_quoting.maxstring = 100
_PARSER_LIMITS = {
    "Maximum segment header length exceeded": f"a header has more than {MAX_PART_HEADER_BYTES} "
    "bytes",
    "Maximum segment header count exceeded": f"a part has more than {MAX_PART_HEADERS} headers",
}
_MALFORMED = "multipart body is malformed"
_UNFINISHED = "multipart body ends before its closing boundary"
# An empty line. That of a part without headers follows the line end of the boundary, which has been
# cut off already.
_HEAD_END = re.compile(rb"\r\n(?:(?<=\A\r\n)|(?<=\r\n\r\n)|\r\n)")
_FOLDED = re.compile(rb"(?:\A|\n)[ \t]")
_UNQUOTED_BOUNDARY = re.compile(r";[ \t]*boundary=([^\s;]+)", re.IGNORECASE)
_BASE64_ESCAPES = [
    (escape, unquote_to_bytes(escape))
    for upper in (b"%2B", b"%2F", b"%3D", b"%0D", b"%0A", b"%20")
    for escape in {upper, upper.lower()}
]
_WHITESPACE = string.whitespace.encode()
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class Bodies:
    """The memory that the bodies of all requests in flight hold together, and its limit.

    When a body does not fit, the one that has been arriving for the longest time is given up: a
    client that sends slowly must not keep the memory that others need.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._peak = 0
        self._arriving: OrderedDict[Hold, None] = OrderedDict()

    def hold(self) -> "Hold":
        """Return one request's share, a context manager for as long as its body is needed."""
        return Hold(self)

    def add(self, size: int) -> None:
        """Count bytes that are held from now on, or given back if `size` is negative."""
        self.held += size
        self._peak = max(self._peak, self.held)

    def take_peak(self) -> int:
        """Return the most bytes that were held at one time since the last call."""
        peak, self._peak = self._peak, self.held
        return peak

    def make_room(self, size: int, wanted_by: "Hold") -> None:
        """Give up the slowest bodies until `size` more bytes fit.

        Raises:
            QueueFull: they do not fit, and no other body is slow.
        """
        while self.held + size > self.limit:
            slowest = next((hold for hold in self._arriving if hold.size), wanted_by)
            if slowest is wanted_by or time.monotonic() - slowest.since < SLOW_SECONDS:
                raise QueueFull(
                    f"bodies of {self.held} bytes are held and {size} more do not fit; "
                    f"the limit is {self.limit} bytes"
                )
            slowest.give_up()

    def begin(self, hold: "Hold") -> None:
        """Note that a body begins to arrive."""
        self._arriving[hold] = None

    def end(self, hold: "Hold") -> None:
        """Note that a body has arrived, or will not."""
        self._arriving.pop(hold, None)


class Hold:
    """One request's share of the memory; given back when the block ends.

    Attributes:
        since: when the body began to arrive, in `time.monotonic()`.
        size: the bytes of the body that are held.
    """

    def __init__(self, bodies: Bodies) -> None:
        self.since = time.monotonic()
        self.size = 0
        self._bodies = bodies
        self._given_up = False

    def __enter__(self) -> Self:
        self._bodies.begin(self)
        self._task = asyncio.current_task()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        self._bodies.end(self)
        self._bodies.add(-self.size)
        if self._given_up and self._task is not None and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise QueueFull(
                f"the body was still arriving after {time.monotonic() - self.since:.0f} s, and "
                f"other requests needed the {self._bodies.limit} bytes that all bodies may hold"
            ) from exc

    def grow(self, size: int) -> None:
        """Hold a body that has `size` bytes by now.

        Raises:
            QueueFull: all bodies together would hold too much.
        """
        if self._bodies.held - self.size + size > self._bodies.limit:
            self._bodies.make_room(size - self.size, self)
        self._bodies.add(size - self.size)
        self.size = size

    def complete(self) -> None:
        """Note that the body has arrived; it is no longer given up for others."""
        self._bodies.end(self)

    def give_up(self) -> None:
        """End the request with QueueFull, to make room."""
        self._bodies.end(self)
        self._bodies.add(-self.size)
        self.size = 0
        self._given_up = True
        if self._task is not None:
            self._task.cancel()


@dataclass(frozen=True)
class Upload:
    """One file as it was sent. `filename` comes from the client: show it, never open it."""

    data: bytes
    filename: str | None = None


@dataclass(frozen=True)
class UploadLimits:
    """Limits of one request. The server limits the time that a body may take."""

    max_body_bytes: int
    max_images: int


async def read(
    headers: Mapping[bytes, bytes], receive: Receive, limits: UploadLimits, hold: Hold
) -> list[Upload]:
    """Read the files out of a request's body.

    Args:
        headers: the request's, by name in lower case.
        receive: returns the body piece by piece, from its beginning.
        limits: of this request.
        hold: the request's share of the memory for bodies.

    Returns:
        At least one file and at most `limits.max_images`, none of them empty, in the order sent.

    Raises:
        UnsupportedMediaType: the type or the encoding of the body, or of a file in it, is not
            supported.
        UploadTooLarge: the body is larger than the limit, or its Content-Length is.
        TooManyImages: the body holds more files than the limit.
        EmptyUpload: the body or one of its files is empty.
        MalformedUpload: the body does not follow the format that its Content-Type names.
        QueueFull: there is no memory left for bodies.
        starlette.requests.ClientDisconnect: the client closed the connection.
    """
    content_type = headers.get(b"content-type", b"")
    kind = _kind(content_type, headers.get(b"content-encoding", b""))
    _check_length(headers.get(b"content-length", b""), limits)
    chunks = _Chunks(receive, limits, hold)
    if kind == "form":
        return await _read_form(chunks, _boundary(content_type), limits)
    parts = [await chunks.read()]
    while chunks.more:
        parts.append(await chunks.read())
    body = b"".join(parts)
    if not body:
        raise EmptyUpload("body is empty")
    if kind != "json":
        return [Upload(body)]
    if len(body) <= INLINE_JSON_BYTES:
        return _read_json(body, limits)
    return await asyncio.to_thread(_read_json, body, limits)


def read_whole(headers: Mapping[bytes, bytes], body: bytes, limits: UploadLimits) -> list[Upload]:
    """Read the files out of a body that has arrived whole, of at most `INLINE_JSON_BYTES`.

    Raises:
        UploadError: as `read` does.
    """
    content_type = headers.get(b"content-type", b"")
    kind = _kind(content_type, headers.get(b"content-encoding", b""))
    if len(body) > limits.max_body_bytes:
        raise UploadTooLarge(
            f"body is {len(body)} bytes; the limit is {limits.max_body_bytes} bytes"
        )
    if kind == "form":
        return _finished(_read_form(_Whole(body), _boundary(content_type), limits))
    if not body:
        raise EmptyUpload("body is empty")
    return [Upload(body)] if kind == "file" else _read_json(body, limits)


def _finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    raise RuntimeError("the coroutine waits")


@lru_cache(64)  # bounded: they are the client's
def _kind(content_type: bytes, encoding: bytes) -> str:
    if encoding.strip().lower() not in {b"", b"identity"}:
        raise UnsupportedMediaType(
            f"Content-Encoding {_quote(encoding)} is not supported; send the body uncompressed"
        )
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type in {b"", b"application/octet-stream"} or media_type.startswith(b"image/"):
        return "file"
    if media_type == b"multipart/form-data":
        return "form"
    if media_type == b"application/json":
        return "json"
    hint = CURL_HINT if media_type == b"application/x-www-form-urlencoded" else ""
    raise UnsupportedMediaType(
        f"Content-Type {_quote(media_type)} is not supported; send one of {READ_TYPES}{hint}"
    )


def _quote(header: bytes) -> str:
    return _quoting.repr(header.decode("latin-1"))


def _check_length(content_length: bytes, limits: UploadLimits) -> None:
    """Refuse a body by its announced length; the bytes that arrive are counted in any case."""
    # Twenty digits exceed any limit, and int() is quick for so few.
    size = int(content_length[:20]) if content_length.isdigit() else 0
    if size > limits.max_body_bytes:
        raise UploadTooLarge(f"body is {size} bytes; the limit is {limits.max_body_bytes} bytes")


class _Body(Protocol):
    """A body, piece by piece; `more` is false once all of it has been read."""

    more: bool

    async def read(self) -> bytes:
        """Return the next piece, which may be empty."""


class _Whole:
    """A body that has arrived."""

    def __init__(self, body: bytes) -> None:
        self.more = True
        self._body = body

    async def read(self) -> bytes:
        self.more = False
        return self._body


class _Chunks:
    """A body as it arrives; `more` is false once all of it has."""

    def __init__(self, receive: Receive, limits: UploadLimits, hold: Hold) -> None:
        self.more = True
        self._receive = receive
        self._limit = limits.max_body_bytes
        self._hold = hold
        self._size = 0

    async def read(self) -> bytes:
        """Return the next piece, which may be empty."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        self._size += len(chunk)
        if self._size > self._limit:
            raise UploadTooLarge(
                f"body is at least {self._size} bytes; the limit is {self._limit} bytes"
            )
        self._hold.grow(self._size)
        self.more = message.get("more_body", False)
        if not self.more:
            self._hold.complete()
        return chunk


@lru_cache(16)  # a client uses one again and again, or each only once
def _boundary(content_type: bytes) -> bytes:
    header = content_type.decode("latin-1")
    _, parameters = parse_options_header(header)
    # The library cuts one without quotes at characters that RFC 2045 (5.1) wants in quotes.
    whole = None if '"' in header else _UNQUOTED_BOUNDARY.search(header)
    boundary = (whole[1] if whole else parameters.get("boundary", "")).encode("latin-1")
    if not boundary:
        raise MalformedUpload("Content-Type multipart/form-data has no boundary")
    if len(boundary) > MAX_BOUNDARY_BYTES:
        raise MalformedUpload(
            f"the boundary of the multipart body is {len(boundary)} bytes; "
            f"the limit is {MAX_BOUNDARY_BYTES} bytes"
        )
    return bytes(boundary)


async def _read_form(chunks: _Body, boundary: bytes, limits: UploadLimits) -> list[Upload]:
    """Read a multipart body whose parts are all files.

    The body is cut at its boundaries here, and the library reads the headers of each part. It must
    not see a file: after a line that only begins like a boundary, it can take the next boundary for
    data.
    """
    body = _Marked(chunks, len(b"\r\n--" + boundary + b"\r\n") + MAX_PADDING)
    delimiter = _delimiter(boundary)
    files: list[Upload] = []
    before, mark = await body.read_until(delimiter)
    if b"--" + boundary in before:
        raise MalformedUpload(f"{_MALFORMED}: its first boundary is not a line of its own")
    while mark.endswith(b"\r\n"):
        part = _parse_head(boundary, *await body.read_until(_HEAD_END, MAX_PART_HEAD_BYTES))
        if part.name != "file":
            name = _quoting.repr(_text(part.name))
            raise MalformedUpload(
                f"part {len(files)} is named {name}; every part must be named 'file'"
            )
        if len(files) == limits.max_images:
            raise _too_many(f"more than {limits.max_images}", limits.max_images)
        fields = dict(part.headerlist)
        encoding = fields.get("Content-Transfer-Encoding")
        in_base64 = encoding is not None and _is_base64(encoding, f"part {len(files)}")
        data, mark = await body.read_until(delimiter)
        if in_base64 and mark:
            data = await _decode_part(data, f"part {len(files)}")
        if mark and not data:
            raise EmptyUpload(f"part {len(files)} is empty")
        disposition = fields["Content-Disposition"]
        extended = _extended_filename(disposition) if "*" in disposition else None
        files.append(Upload(data, _clean_filename(extended or _text(part.filename or ""))))
    if not mark:
        raise MalformedUpload(_UNFINISHED)
    del body  # which holds the last file, and the rest may be slow
    while chunks.more:
        await chunks.read()
    if not files:
        raise EmptyUpload("multipart body has no parts")
    return files


@lru_cache(16)
def _delimiter(boundary: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"\r\n--" + re.escape(boundary) + rb"(?:--|[ \t]{0,%d}\r\n)" % MAX_PADDING)


class _Marked:
    """A body that is cut at marks of up to `longest` bytes, which may stand across its pieces."""

    def __init__(self, chunks: _Body, longest: int) -> None:
        self._chunks = chunks
        self._longest = longest
        self._rest = bytearray(b"\r\n")  # the first boundary may lack its line end
        self._at = 0  # what stands before has been cut off

    async def read_until(
        self, mark: re.Pattern[bytes], limit: int = sys.maxsize
    ) -> tuple[bytes, bytes]:
        """Return the bytes before the next mark, and the mark.

        Without a mark in the body, or in its next `limit` bytes, the mark returned is empty.
        """
        start, end = self._at, min(self._at + limit, len(self._rest))
        while not (found := mark.search(self._rest, start, end)):
            if end - self._at == limit or not self._chunks.more:
                return self._cut(end), b""
            del self._rest[: self._at]
            self._at = 0
            start = max(0, len(self._rest) - self._longest)
            self._rest += await self._chunks.read()
            end = min(limit, len(self._rest))
        before = self._cut(found.start())
        self._at = found.end()
        return before, found.group()

    def _cut(self, end: int) -> bytes:
        with memoryview(self._rest) as rest:  # a slice of the array itself would be one more copy
            cut = bytes(rest[self._at : end])
        self._at = end
        return cut


def _parse_head(boundary: bytes, headers: bytes, end: bytes) -> MultipartSegment:
    """Return a part without its data, out of its headers and the line ends behind them."""
    if not end and len(headers) == MAX_PART_HEAD_BYTES:
        raise MalformedUpload(
            f"{_MALFORMED}: the headers of a part have more than {MAX_PART_HEAD_BYTES} bytes"
        )
    # Nobody sends these, and the library's time for them grows with the square of their number.
    if _FOLDED.search(headers):
        raise MalformedUpload(f"{_MALFORMED}: a header continues on a second line")
    parser = PushMultipartParser(
        boundary,
        max_header_size=MAX_PART_HEADER_BYTES,
        max_header_count=MAX_PART_HEADERS,
        header_charset="latin-1",  # which decodes anything; `_text` looks for UTF-8
    )
    try:
        for event in parser.parse(b"--" + boundary + b"\r\n" + headers + end):
            if isinstance(event, MultipartSegment):
                return event
    except MultipartError as exc:
        message = _PARSER_LIMITS.get(str(exc), str(exc))
        raise MalformedUpload(f"{_MALFORMED}: {message}") from exc
    raise MalformedUpload(_UNFINISHED)


def _is_base64(transfer_encoding: str, where: str) -> bool:
    name = transfer_encoding.lower()
    if name not in {"base64", "binary", "8bit", "7bit"}:
        raise UnsupportedMediaType(
            f"{where} has Content-Transfer-Encoding {_quoting.repr(transfer_encoding)}, which is "
            "not supported; send the file as it is, or in base64"
        )
    return name == "base64"


async def _decode_part(data: bytes, where: str) -> bytes:
    if len(data) <= INLINE_JSON_BYTES:
        return _decode_base64(data, where)
    return await asyncio.to_thread(_decode_base64, data, where)


def _extended_filename(disposition: str) -> str | None:
    """Return the `filename*` of a part (RFC 8187), if it can be read."""
    _, options = parse_options_header(disposition)
    charset, _, rest = options.get("filename*", "").partition("'")
    _language, _, value = rest.partition("'")
    if charset.lower() not in {"utf-8", "iso-8859-1"}:
        return None
    try:
        return unquote_to_bytes(value.encode("latin-1")).decode(charset)
    except UnicodeDecodeError:
        return None


def _text(latin_1: str) -> str:
    """Decode a header's value again, as UTF-8 if it is."""
    try:
        return latin_1.encode("latin-1").decode()
    except UnicodeDecodeError:
        return latin_1


def _clean_filename(name: str) -> str | None:
    """Keep the last component of a path, without unprintable characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    if not last.isprintable():
        last = "".join(character for character in last if character.isprintable())
    return last[:MAX_FILENAME_CHARACTERS] or None


def _read_json(body: bytes, limits: UploadLimits) -> list[Upload]:
    images = _parse_json(body)
    if len(images) > limits.max_images:
        raise _too_many(str(len(images)), limits.max_images)
    return [Upload(_decode_image(item, f"images[{index}]")) for index, item in enumerate(images)]


def _parse_json(body: bytes) -> list[Any]:
    """Return the list of a body `{"images": [...]}`; its items are still of any type."""
    marks = body.count(b",") + body.count(b"[") + body.count(b"{")  # roughly one for each value
    if marks > MAX_JSON_VALUES:
        raise MalformedUpload(
            f"JSON body has {marks} commas and opening brackets; the limit is {MAX_JSON_VALUES}"
        )
    encoding = json.detect_encoding(body)
    if encoding == "utf-8-sig":
        body = body[len(codecs.BOM_UTF8) :]
    elif encoding != "utf-8":
        raise MalformedUpload(f"JSON body is in {encoding.upper()}; send it in UTF-8")
    document = _load_json(body)
    if not isinstance(document, dict) or "images" not in document:
        raise MalformedUpload('JSON body is not an object {"images": ["<base64>", ...]}')
    for key in document.keys() - {"images"}:
        raise MalformedUpload(f"JSON key {_quoting.repr(key)} is unknown; only 'images' is allowed")
    images = document["images"]
    if not isinstance(images, list) or not images:
        raise MalformedUpload("JSON value of 'images' is not a list of at least one image")
    return images


def _load_json(body: bytes) -> Any:
    """Parse JSON whose strings may be broken into lines, as pasted base64 is."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        try:
            return orjson.loads(body.translate(None, b"\r\n\t"))
        except orjson.JSONDecodeError:
            raise MalformedUpload(f"body is not JSON: {exc}") from exc


def _decode_image(item: object, where: str) -> bytes:
    """Decode base64, or a data URL (RFC 2397) that holds it."""
    if not isinstance(item, str):
        raise MalformedUpload(f"{where} is not a string")
    text = item.lstrip()
    is_url = text[:5].lower() == "data:"
    written = _data_of_url(text, where) if is_url else text.encode()
    data = _decode_base64(written, where)
    if not data:
        raise EmptyUpload(f"{where} is empty")
    return data


def _data_of_url(url: str, where: str) -> bytes:
    """Return the base64 of a data URL, without the escapes that a URL may have."""
    comma = url.find(",", 0, MAX_DATA_URL_HEAD)
    if comma < 0:
        raise MalformedUpload(
            f"{where} is a data URL without a comma in its first {MAX_DATA_URL_HEAD} characters"
        )
    media_type, in_base64 = _data_url_head(url[5:comma])
    if not in_base64:
        raise MalformedUpload(f"{where} is a data URL without ';base64' before its comma")
    if media_type not in {"", "application/octet-stream"} and not media_type.startswith("image/"):
        raise UnsupportedMediaType(
            f"{where} is a data URL of type {_quoting.repr(media_type)}; "
            "send image/*, application/octet-stream or no type"
        )
    data = url[comma + 1 :].encode()
    if b"%" in data:
        for escape, character in _BASE64_ESCAPES:  # the library makes an object of each escape
            data = data.replace(escape, character)
    return data


@lru_cache(16)
def _data_url_head(head: str) -> tuple[str, bool]:
    """Return the media type of a data URL, and whether its data is base64."""
    media_type, *parameters = (part.strip() for part in head.lower().split(";"))
    return media_type, parameters[-1:] == ["base64"]


def _decode_base64(text: bytes, where: str) -> bytes:
    """Decode base64, also in the URL-safe alphabet, in lines, and without padding (RFC 4648)."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        pass
    digits = text.translate(_FROM_URL_SAFE, _WHITESPACE).rstrip(b"=")
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except ValueError as exc:
        raise MalformedUpload(f"{where} is not base64: {exc}") from exc


def _too_many(found: str, limit: int) -> TooManyImages:
    return TooManyImages(f"request has {found} images; the limit is {limit}")
