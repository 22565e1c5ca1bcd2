"""Refusals that the server writes without the application.

The cost of a refusal is taken from the requests that are still served. A worker that is full
therefore refuses a plain POST unparsed, with an answer that was made beforehand.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus

from app import problems
from app.errors import HeadTooLarge, MalformedRequest, QueueFull
from app.telemetry.requests import RequestState, new_request_id

MAX_HEAD_BYTES = 32 << 10
"""Request line and headers; nginx and Apache allow no more than about as much."""

_PLAIN_LINE = re.compile(rb"POST /[!-~]* HTTP/1\.1\r\n")
_PLAIN_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d{1,9})(?=\r\n)", re.IGNORECASE)
_NOT_PLAIN = re.compile(
    rb"\r\n(?:transfer-encoding|connection:(?! ?keep-alive\r)|expect|upgrade|[ \t]"
    rb"|content-length(?!: ?\d{1,9}\r))",
    re.IGNORECASE,
)
_PLACEHOLDER = "0" * 32  # of a request id


def is_plain_post(data: bytes) -> bool:
    """Whether this is exactly one POST that can be answered without a parser.

    Parsing costs more than the rest of a refusal.
    """
    if not _PLAIN_LINE.match(data):
        return False
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    length = _PLAIN_LENGTH.findall(data, 0, end + 2)
    if len(length) != 1 or int(length[0]) != len(data) - end - 4:
        return False
    lines = data.count(b"\r\n", 0, end + 2)
    if data.count(b"\r", 0, end + 2) != lines or data.count(b"\n", 0, end + 2) != lines:
        return False
    return not _NOT_PLAIN.search(data, 0, end + 2)


def headers_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of a plain POST; names are in lower case."""
    _, *lines = data[: data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)].split(b"\r\n")
    headers = (line.partition(b":") for line in lines)
    return [(name.lower(), value.strip(b" \t")) for name, _, value in headers]


def split_length(head: bytes) -> tuple[bytes, bytes] | None:
    """Split a head at the number of its Content-Length, if it has one; the number is left out."""
    length = _PLAIN_LENGTH.search(head)
    return (head[: length.start(1)], head[length.end(1) :]) if length else None


def head_too_large(size: int) -> HeadTooLarge:
    """Return the error of a head of `size` bytes, or more."""
    return HeadTooLarge(
        f"the request's head is at least {size} bytes; the limit is {MAX_HEAD_BYTES} bytes"
    )


def framing_too_large(size: int) -> MalformedRequest:
    """Return the error of a chunked body with `size` bytes more of framing than of content."""
    return MalformedRequest(
        f"the body's chunks have {size} bytes more of framing than of content; "
        f"the limit is {MAX_HEAD_BYTES} bytes"
    )


def refusal(error: Exception, request: RequestState, path: str, lines: bytes = b"") -> bytes:
    """Return the whole answer that refuses a request and announces the connection's end.

    Args:
        error: says why.
        request: the facts about it.
        path: the request's, as its client knows it.
        lines: further headers.
    """
    answer = _answer(error, path, request.request_id, lines, keep=False)
    if request.method == "HEAD":
        answer = answer[: answer.index(b"\r\n\r\n") + 4]
    return answer


def shed_answer(error: QueueFull, path: str, lines: bytes = b"", *, keep: bool) -> bytes:
    """Return the whole answer to a request for which there is no room.

    Args:
        error: says why; always the same object.
        path: the request's, as its client knows it.
        lines: further headers.
        keep: whether the connection stays open.
    """
    before, between, after = _shed_parts(error, path, lines, keep)
    request_id = new_request_id().encode()
    return b"".join((before, request_id, between, request_id, after))


@lru_cache(64)  # bounded: the path is the client's
def _shed_parts(
    error: QueueFull, path: str, lines: bytes, keep: bool
) -> tuple[bytes, bytes, bytes]:
    """Return the parts of the answer around the two places of the request id."""
    answer = _answer(error, path, _PLACEHOLDER, lines, keep=keep)
    before, rest = answer.split(_PLACEHOLDER.encode(), 1)
    between, after = rest.rsplit(_PLACEHOLDER.encode(), 1)  # a path may hold the same zeros
    return before, between, after


def _answer(error: Exception, path: str, request_id: str, lines: bytes, *, keep: bool) -> bytes:
    status, headers, body = problems.render(error, path, request_id)
    ours = {"content-length": str(len(body)), "x-request-id": request_id}
    closing = {} if keep else {"connection": "close"}
    return status_line(status) + _lines(headers | ours | closing) + lines + b"\r\n" + body


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()


@lru_cache(64)
def status_line(status: int) -> bytes:
    """Return the first line of an answer."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:  # a status that an application made up
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()
