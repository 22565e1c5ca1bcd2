"""Bodies of `multipart/form-data`, of which every part is a file."""

import asyncio
import re
import sys
from collections.abc import Callable, Mapping
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote_to_bytes

from multipart import (
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    content_disposition_unquote,
    header_unquote,
)

from app.api.uploads.base64_text import decode_base64
from app.api.uploads.upload import INLINE_TEXT_BYTES, Upload, UploadLimits, quoted, too_many
from app.errors import EmptyUpload, MalformedUpload, UnsupportedMediaType

MAX_FILENAME_CHARACTERS = 255
MAX_BOUNDARY_BYTES = 256
MAX_PADDING = 256
"""Blanks between a boundary and the end of its line (RFC 2046, 5.1.1)."""

MAX_PART_HEADERS = 16
MAX_PART_HEADER_BYTES = 4096
MAX_PART_HEAD_BYTES = 64 << 10

_PARSER_LIMITS = {
    "Maximum segment header length exceeded": f"a header has more than {MAX_PART_HEADER_BYTES} "
    "bytes",
    "Maximum segment header count exceeded": f"a part has more than {MAX_PART_HEADERS} headers",
}
_MALFORMED = "multipart body is malformed"
# An empty line. That of a part without headers follows the line end of the boundary, which has been
# cut off already.
_HEAD_END = re.compile(rb"\r\n(?:(?<=\A\r\n)|(?<=\r\n\r\n)|\r\n)")
_FOLD = re.compile(rb"\r\n[ \t]+")
# The library cuts a value without quotes at characters that RFC 2045 (5.1) wants in quotes.
_PARAMETER = re.compile(r';[ \t]*([^ \t;="]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*+"|[^;]*)', re.DOTALL)
_CHARSET = "utf-?8|iso-8859-1"
_EXTENDED = re.compile(rf"({_CHARSET})'[^']*'(.*)", re.IGNORECASE | re.DOTALL)
_ENCODED_WORDS = re.compile(rf"(?:\s*=\?(?:{_CHARSET})\?[bq]\?[^?\s]*\?=)+", re.IGNORECASE)
_JOINERS = "\u200c\u200d"
"""Unprintable, but a part of words and of emoji."""


class Pieces(Protocol):
    """A body, piece by piece; `more` is false once all of it has been read."""

    more: bool

    async def read(self) -> bytes:
        """Return the next piece, which may be empty."""


@lru_cache(16)  # a client uses one again and again, or each only once
def form_boundary(content_type: bytes) -> bytes:
    """Return the boundary that a Content-Type names.

    Raises:
        MalformedUpload: it names none, or one that is too long.
    """
    parameters = _parameters(content_type.decode("latin-1"), header_unquote)
    boundary = parameters.get("boundary", "").encode("latin-1")
    if not boundary:
        raise MalformedUpload(
            "Content-Type multipart/form-data has no boundary; leave this header to the library "
            "that writes the form"
        )
    if len(boundary) > MAX_BOUNDARY_BYTES:
        raise MalformedUpload(
            f"the boundary of the multipart body is {len(boundary)} bytes; "
            f"the limit is {MAX_BOUNDARY_BYTES} bytes"
        )
    return boundary


async def read_form(chunks: Pieces, boundary: bytes, limits: UploadLimits) -> list[Upload]:
    """Read a multipart body whose parts are all files.

    The body is cut at its boundaries here, and the library reads the headers of each part. It must
    not see a file: after a line that only begins like a boundary, it can take the next boundary for
    data.

    Raises:
        UploadError: as `app.api.uploads.body.read_files` does.
    """
    body = _Marked(chunks, len(b"\r\n--" + boundary + b"\r\n") + MAX_PADDING)
    delimiter = _delimiter(boundary)
    files: list[Upload] = []
    before, mark = await body.read_until(delimiter)
    if b"--" + boundary in before:
        raise MalformedUpload(
            f"{_MALFORMED}: its first boundary is not a line of its own that ends in CRLF"
        )
    while mark.endswith(b"\r\n"):
        part = _parse_head(boundary, *await body.read_until(_HEAD_END, MAX_PART_HEAD_BYTES))
        fields = dict(part.headerlist)
        parameters = _parameters(fields["Content-Disposition"], content_disposition_unquote)
        name = _text(parameters.get("name", ""))
        if name != "file":
            raise MalformedUpload(
                f"part {len(files)} is named {quoted(name)}; every part must be named 'file'"
            )
        if len(files) == limits.max_images:
            raise too_many(f"more than {limits.max_images}", limits)
        encoding = fields.get("Content-Transfer-Encoding")
        in_base64 = encoding is not None and _is_base64(encoding, f"part {len(files)}")
        data, mark = await body.read_until(delimiter)
        if in_base64 and mark:
            data = await _decode_part(data, f"part {len(files)}")
        if mark and not data:
            raise EmptyUpload(f"part {len(files)} is empty")
        files.append(Upload(data, _clean_filename(_filename(parameters))))
    if not mark:
        raise _unfinished(boundary)
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

    def __init__(self, chunks: Pieces, longest: int) -> None:
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
    # The library's time for folded lines grows with the square of their number.
    headers = _FOLD.sub(b" ", headers)
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
        limit = _PARSER_LIMITS.get(str(exc))
        line = next((line for line in headers.split(b"\r\n") if b":" not in line), headers)
        message = limit or f"{exc} in {quoted(line.decode('latin-1'))}"
        raise MalformedUpload(f"{_MALFORMED}: {message}") from exc
    raise _unfinished(boundary)


def _unfinished(boundary: bytes) -> MalformedUpload:
    closing = quoted(f"--{boundary.decode('latin-1')}--")
    return MalformedUpload(f"multipart body ends before its closing boundary {closing}")


def _is_base64(transfer_encoding: str, where: str) -> bool:
    name = transfer_encoding.lower()
    if name not in {"base64", "binary", "8bit", "7bit"}:
        raise UnsupportedMediaType(
            f"{where} has Content-Transfer-Encoding {quoted(transfer_encoding)}, which is "
            "not supported; send the file as it is, or in base64"
        )
    return name == "base64"


async def _decode_part(data: bytes, where: str) -> bytes:
    if len(data) <= INLINE_TEXT_BYTES:
        return decode_base64(data, where)
    return await asyncio.to_thread(decode_base64, data, where)


def _parameters(header: str, unquote: Callable[[str], str]) -> dict[str, str]:
    """Return the parameters of a header by their names in lower case, each without its quotes."""
    return {
        name.lower(): unquote(value.rstrip(" \t")) if value else ""
        for name, value in _PARAMETER.findall(header)
    }


def _filename(parameters: Mapping[str, str]) -> str:
    """Return the name of a part's file, from whichever of its forms can be read."""
    extended = parameters.get("filename*") or _continued(parameters)
    return _from_extended(extended) or _from_words(_text(parameters.get("filename", "")))


def _continued(parameters: Mapping[str, str]) -> str:
    """Join a name in pieces, `filename*0*`, `filename*1` and so on (RFC 2231, 4.1)."""
    joined = "" if "filename*0*" in parameters else "utf-8''"
    for number in range(len(parameters)):
        if (encoded := parameters.get(f"filename*{number}*")) is not None:
            joined += encoded
        elif (plain := parameters.get(f"filename*{number}")) is not None:
            joined += plain.replace("%", "%25")
        else:
            break
    return joined


def _from_extended(value: str) -> str:
    """Decode a name that begins with its charset (RFC 8187), if it can be read."""
    found = _EXTENDED.fullmatch(value)
    try:
        return unquote_to_bytes(found[2].encode("latin-1")).decode(found[1]) if found else ""
    except UnicodeDecodeError:
        return ""


def _text(latin_1: str) -> str:
    """Decode a header's value again, as UTF-8 if it is."""
    try:
        return latin_1.encode("latin-1").decode()
    except UnicodeDecodeError:
        return latin_1


def _from_words(name: str) -> str:
    """Decode a name of encoded words (RFC 2047), as .NET sends it."""
    if not _ENCODED_WORDS.fullmatch(name):
        return name
    try:
        return str(make_header(decode_header(name)))
    except (HeaderParseError, UnicodeDecodeError):
        return name


def _clean_filename(name: str) -> str | None:
    """Keep the last component of a path, without unprintable characters."""
    last = name.replace("\\", "/").rpartition("/")[2].strip()
    if not last.isprintable():
        last = "".join(letter for letter in last if letter.isprintable() or letter in _JOINERS)
    return last[:MAX_FILENAME_CHARACTERS] or None
