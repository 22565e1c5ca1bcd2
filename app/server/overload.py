"""Refusing what is too much at the least cost: plain requests unparsed, answers made beforehand.

What a refusal costs is taken from what is still served.
"""

import re
import secrets
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus

from app import problems
from app.errors import HeadTooLarge, MalformedRequest, QueueFull

MAX_HEAD_BYTES = 32 << 10
"""Request line and headers: what nginx and Apache take with room to spare."""

_PLAIN_LINE = re.compile(rb"POST /predict(\?\S*)? HTTP/1\.1\r\n")
_PLAIN_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d{1,9})(?=\r\n)", re.IGNORECASE)
_NOT_PLAIN = re.compile(
    rb"\r\n(?:transfer-encoding|connection:(?! ?keep-alive\r)|expect|upgrade|[ \t])", re.IGNORECASE
)
_MARK = "0" * 32


def is_plain_post(data: bytes) -> bool:
    """Whether this is one whole POST, and nothing that takes a parser to understand.

    Parsing costs more than all the rest of refusing.
    """
    if not _PLAIN_LINE.match(data):
        return False
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    length = _PLAIN_LENGTH.findall(data, 0, end + 2)
    if len(length) != 1 or int(length[0]) != len(data) - end - 4:
        return False
    return not _NOT_PLAIN.search(data, 0, end + 2)


def head_too_large(size: int) -> HeadTooLarge:
    """Return the error of a head that has so many bytes, or more."""
    return HeadTooLarge(
        f"the request's head is at least {size} bytes; the limit is {MAX_HEAD_BYTES} bytes"
    )


def framing_too_large(size: int) -> MalformedRequest:
    """Return the error of a chunked body that has so many bytes around those of the body."""
    return MalformedRequest(
        f"{size} bytes of the body's framing hold no byte of the body; "
        f"the limit is {MAX_HEAD_BYTES} bytes"
    )


def enough_to_do(limit: int) -> QueueFull:
    """Return the error of a request that is refused because so many are at work."""
    return QueueFull(f"{limit} requests are at work; that is the limit")


def shed_answer(limit: int, path: str, *, keep: bool) -> bytes:
    """Return the whole answer to a request that is refused because so many are at work.

    Args:
        limit: how many.
        path: the request's.
        keep: whether the connection stays.
    """
    before, between, after = _parts(limit, path, keep)
    request_id = secrets.token_hex(len(_MARK) // 2).encode()
    return b"".join((before, request_id, between, request_id, after))


@lru_cache(64)  # the path is the client's
def _parts(limit: int, path: str, keep: bool) -> tuple[bytes, bytes, bytes]:
    """Return what stands before, between and after the two places of the request id."""
    status, headers, body = problems.render(enough_to_do(limit), path, _MARK)
    ours = {"content-length": len(body), **({} if keep else {"connection": "close"})}
    text = answer(status, headers | ours | {"x-request-id": _MARK}, body)
    start, between, after = text.split(_MARK.encode())
    return start, between, after


def answer(status: int, headers: Mapping[str, object], body: bytes) -> bytes:
    """Return an answer as it goes over the wire."""
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{''.join(lines)}\r\n"
    return head.encode() + body
