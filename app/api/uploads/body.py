"""A request's body to files, by its Content-Type."""

import asyncio
from collections.abc import Coroutine, Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.api.uploads.forms import form_boundary, read_form
from app.api.uploads.json_body import read_json
from app.api.uploads.memory import Hold
from app.api.uploads.upload import INLINE_TEXT_BYTES, Upload, UploadLimits, quoted
from app.errors import EmptyUpload, UnsupportedMediaType, UploadTooLarge

READ_TYPES = "image/*, application/octet-stream, multipart/form-data, application/json"
CURL_HINT = "; with curl: -H 'Content-Type: image/jpeg'"
"""`curl --data-binary` calls a body a form unless it is told otherwise."""

T = TypeVar("T")


async def read_files(
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
        return await read_form(chunks, form_boundary(content_type), limits)
    parts = [await chunks.read()]
    while chunks.more:
        parts.append(await chunks.read())
    body = b"".join(parts)
    if not body:
        raise EmptyUpload("body is empty")
    if kind != "json":
        return [Upload(body)]
    if len(body) <= INLINE_TEXT_BYTES:
        return read_json(body, limits)
    return await asyncio.to_thread(read_json, body, limits)


def read_whole(headers: Mapping[bytes, bytes], body: bytes, limits: UploadLimits) -> list[Upload]:
    """Read the files out of a body that has arrived whole, of at most `INLINE_TEXT_BYTES`.

    Raises:
        UploadError: as `read_files` does.
    """
    content_type = headers.get(b"content-type", b"")
    kind = _kind(content_type, headers.get(b"content-encoding", b""))
    if len(body) > limits.max_body_bytes:
        raise UploadTooLarge(
            f"body is {len(body)} bytes; the limit is {limits.max_body_bytes} bytes"
        )
    if kind == "form":
        return _finished(read_form(_Whole(body), form_boundary(content_type), limits))
    if not body:
        raise EmptyUpload("body is empty")
    return [Upload(body)] if kind == "file" else read_json(body, limits)


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
    return quoted(header.decode("latin-1"))


def _check_length(content_length: bytes, limits: UploadLimits) -> None:
    """Refuse a body by its announced length; the bytes that arrive are counted in any case."""
    # Twenty digits exceed any limit, and int() is quick for so few.
    size = int(content_length[:20]) if content_length.isdigit() else 0
    if size > limits.max_body_bytes:
        raise UploadTooLarge(f"body is {size} bytes; the limit is {limits.max_body_bytes} bytes")


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
