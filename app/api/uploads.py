"""The body of a request to the bytes of one or more files, with a cap on every size and number.

Three forms are read: the file itself (`image/*`, `application/octet-stream` or no Content-Type at
all), `multipart/form-data` with `file` parts, and JSON `{"images": ["<base64>", ...]}`. The body is
held in memory and never written to disk, and no more of it is taken than the limits allow.

This module does not know what an image is, and does not read query parameters.
"""

import asyncio
import base64
import json
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.errors import (
    EmptyUpload,
    MalformedUpload,
    TooManyImages,
    UnsupportedMediaType,
    UploadTooLarge,
)

MAX_FILENAME_CHARACTERS = 255
MAX_PART_HEADERS = 16
MAX_PART_HEADER_BYTES = 4096

MAX_PARAMETERS = 32
"""Of a header, split at every semicolon: reading them takes a time that grows with their square."""

MAX_JSON_VALUES = 10_000
"""Bounds what a body of small values can grow to as Python objects, before it is parsed."""

MAX_JSON_DIGITS = 1000
"""Of one number, none of which is used: reading them takes a time that grows with their square."""

INLINE_JSON_BYTES = 256 << 10
"""What is parsed in about a millisecond; more would hold up the event loop."""

READ_TYPES = "image/*, application/octet-stream, multipart/form-data, application/json"

_quoting = reprlib.Repr()
_quoting.maxstring = 100
_PARSER_LIMITS = {
    "Maximum header size exceeded": f"a header has more than {MAX_PART_HEADER_BYTES} bytes",
    "Maximum header count exceeded": f"a part has more than {MAX_PART_HEADERS} headers",
}
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")


@dataclass(frozen=True)
class Upload:
    """One file as it was sent. `filename` is the client's word: show it, never open it."""

    data: bytes
    filename: str | None = None


@dataclass(frozen=True)
class UploadLimits:
    """What one request may send. How long it may take is the server's to mind."""

    max_body_bytes: int
    max_images: int


def _hold_any(size: int) -> None:
    """Hold a body of any size."""


async def read(
    headers: Mapping[bytes, bytes],
    receive: Receive,
    limits: UploadLimits,
    hold: Callable[[int], None] = _hold_any,
) -> list[Upload]:
    """Take the files out of a request's body.

    Args:
        headers: the request's, by name in lower case.
        receive: gives the body, none of which has been read.
        limits: of this request.
        hold: is told the bytes of the body that are held so far; raises when that is too much.

    Returns:
        At least one file and at most `limits.max_images`, none of them empty, in the order sent.

    Raises:
        UnsupportedMediaType: a Content-Type or Content-Encoding that is not read.
        UploadTooLarge: the body is announced, or turns out, to be over the limit.
        TooManyImages: more files than the limit.
        EmptyUpload: the body or one of its files holds no bytes.
        MalformedUpload: the body does not follow the format that its Content-Type names.
        starlette.requests.ClientDisconnect: the client went away.
    """
    content_type = headers.get(b"content-type", b"")
    kind = _kind(content_type, headers.get(b"content-encoding", b""))
    _check_announced(headers.get(b"content-length", b""), limits)
    chunks = _Chunks(receive, limits, hold)
    if kind == "multipart":
        return await _read_multipart(chunks, _boundary(content_type), limits)
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


def _kind(content_type: bytes, encoding: bytes) -> str:
    if encoding.strip().lower() not in {b"", b"identity"}:
        raise UnsupportedMediaType(
            f"Content-Encoding {_quote(encoding)} is not read; send the body as it is"
        )
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type in {b"", b"application/octet-stream"} or media_type.startswith(b"image/"):
        return "raw"
    if media_type == b"multipart/form-data":
        return "multipart"
    if media_type == b"application/json":
        return "json"
    raise UnsupportedMediaType(
        f"Content-Type {_quote(media_type)} is not read; send one of {READ_TYPES}"
    )


def _boundary(content_type: bytes) -> bytes:
    return _parameters("Content-Type", content_type).get(b"boundary", b"")


def _parameters(name: str, header: bytes) -> dict[bytes, bytes]:
    found = header.count(b";")
    if found > MAX_PARAMETERS:
        raise MalformedUpload(f"{name} has {found} semicolons; the limit is {MAX_PARAMETERS}")
    _, parameters = parse_options_header(header)
    return parameters


def _quote(header: bytes) -> str:
    return _quoting.repr(header.decode("latin-1"))


def _check_announced(content_length: bytes, limits: UploadLimits) -> None:
    """Refuse on the word of the header; what is streamed is counted in any case."""
    # Twenty digits are more than any limit, and few enough for int().
    size = int(content_length[:20]) if content_length.isdigit() else 0
    if size > limits.max_body_bytes:
        raise UploadTooLarge(f"body is {size} bytes; the limit is {limits.max_body_bytes} bytes")


class _Chunks:
    """A body as it arrives; `more` says whether it has not ended."""

    def __init__(self, receive: Receive, limits: UploadLimits, hold: Callable[[int], None]) -> None:
        self.more = True
        self._receive = receive
        self._limit = limits.max_body_bytes
        self._hold = hold
        self._size = 0

    async def read(self) -> bytes:
        """Return the next part, which may be empty."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        self.more = message.get("more_body", False)
        self._size += len(chunk)
        if self._size > self._limit:
            raise UploadTooLarge(
                f"body is at least {self._size} bytes; the limit is {self._limit} bytes"
            )
        self._hold(self._size)
        return chunk


async def _read_multipart(chunks: _Chunks, boundary: bytes, limits: UploadLimits) -> list[Upload]:
    if not boundary:
        raise MalformedUpload("Content-Type multipart/form-data names no boundary")
    form = _Form(limits.max_images)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.on_part_begin,
                "on_header_field": form.on_header_field,
                "on_header_value": form.on_header_value,
                "on_header_end": form.on_header_end,
                "on_headers_finished": form.on_headers_finished,
                "on_part_data": form.on_part_data,
                "on_part_end": form.on_part_end,
                "on_end": form.on_end,
            },
            max_header_count=MAX_PART_HEADERS,
            max_header_size=MAX_PART_HEADER_BYTES,
        )
        while chunks.more:
            parser.write(await chunks.read())
    except FormParserError as exc:
        message = _PARSER_LIMITS.get(str(exc), str(exc))
        raise MalformedUpload(f"multipart body is broken: {message}") from exc
    # The parser itself takes a body that stops anywhere.
    if not form.complete:
        raise MalformedUpload("multipart body ends before its closing boundary")
    if not form.uploads:
        raise EmptyUpload("multipart body has no parts")
    return form.uploads


class _Form:
    """Collects the `file` parts of a multipart body; its methods are the parser's callbacks."""

    def __init__(self, max_images: int) -> None:
        self.uploads: list[Upload] = []
        self.complete = False
        self._max_images = max_images

    def on_part_begin(self) -> None:
        self._field = self._value = self._disposition = b""
        self._data = bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def on_headers_finished(self) -> None:
        options = _parameters("Content-Disposition", self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != "file":
            raise MalformedUpload(
                f"part {len(self.uploads)} is named {_quoting.repr(name)}; only 'file' is read"
            )
        if len(self.uploads) == self._max_images:
            raise _too_many(f"more than {self._max_images}", self._max_images)
        self._filename = _clean_filename(options.get(b"filename", b""))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def on_part_end(self) -> None:
        if not self._data:
            raise EmptyUpload(f"part {len(self.uploads)} is empty")
        self.uploads.append(Upload(bytes(self._data), self._filename))

    def on_end(self) -> None:
        self.complete = True


def _clean_filename(raw: bytes) -> str | None:
    """Keep the last component of a path, without anything that does not print."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        name = raw.decode("latin-1")
    last = re.split(r"[/\\]", name)[-1]
    printable = "".join(character for character in last if character.isprintable())
    return printable[:MAX_FILENAME_CHARACTERS] or None


def _read_json(body: bytes, limits: UploadLimits) -> list[Upload]:
    images = _parse_json(body)
    if len(images) > limits.max_images:
        raise _too_many(str(len(images)), limits.max_images)
    return [Upload(_decode_base64(item, f"images[{index}]")) for index, item in enumerate(images)]


def _parse_json(body: bytes) -> list[Any]:
    """Return the list of a body `{"images": [...]}`; its items are still of any type."""
    marks = body.count(b",") + body.count(b"[") + body.count(b"{")  # one for each value, about
    if marks > MAX_JSON_VALUES:
        raise MalformedUpload(
            f"JSON body has {marks} commas and opening brackets; the limit is {MAX_JSON_VALUES}"
        )
    try:
        document = json.loads(
            body.decode(),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_constant=_refuse_constant,
        )
    except RecursionError as exc:
        raise MalformedUpload("JSON body is nested too deeply") from exc
    except ValueError as exc:
        raise MalformedUpload(f"body is not JSON: {exc}") from exc
    if not isinstance(document, dict) or "images" not in document:
        raise MalformedUpload('JSON body is not an object {"images": ["<base64>", ...]}')
    for key in document.keys() - {"images"}:
        raise MalformedUpload(f"JSON key {_quoting.repr(key)} is unknown; only 'images' is read")
    images = document["images"]
    if not isinstance(images, list) or not images:
        raise MalformedUpload("JSON value of 'images' is not a list of at least one image")
    return images


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise MalformedUpload(f"JSON key {_quoting.repr(key)} stands twice in one object")
        found[key] = value
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_JSON_DIGITS:
        raise MalformedUpload(
            f"JSON number has {len(digits)} digits; the limit is {MAX_JSON_DIGITS}"
        )
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise MalformedUpload(f"body is not JSON: {name} is not a JSON value")


def _decode_base64(item: object, where: str) -> bytes:
    if not isinstance(item, str):
        raise MalformedUpload(f"{where} is not a string")
    prefix = _DATA_URL.match(item)
    try:
        data = base64.b64decode(item[prefix.end() :] if prefix else item, validate=True)
    except ValueError as exc:
        raise MalformedUpload(f"{where} is not base64 without line breaks: {exc}") from exc
    if not data:
        raise EmptyUpload(f"{where} is empty")
    return data


def _too_many(found: str, limit: int) -> TooManyImages:
    return TooManyImages(f"request has {found} images; the limit is {limit}")
