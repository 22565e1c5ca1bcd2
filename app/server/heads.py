"""The head of a request: what makes it one that is not taken, and which resource it asks for.

This module knows no connection.
"""

from collections.abc import Sequence

import httptools

from app.errors import MalformedRequest, RequestError
from app.server.overload import MAX_HEAD_BYTES, head_too_large

_QUOTED = 100  # bytes of a target that are said back


def find_fault(
    parser: httptools.HttpRequestParser,
    target: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    received: int,
) -> RequestError | None:
    """Return why a head is not taken, if so.

    Args:
        parser: has read the head.
        target: as it stands in the request line.
        headers: names in lower case, and values.
        received: bytes of the head, with what may have come of the body.
    """
    if received > MAX_HEAD_BYTES:
        size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers)
        if size > MAX_HEAD_BYTES:
            return head_too_large(size)
    if parser.get_method() == b"CONNECT":
        return MalformedRequest("CONNECT is not taken")
    hosts = sum(name == b"host" for name, _ in headers)
    if hosts != 1 and (hosts or parser.get_http_version() == "1.1"):  # RFC 9112, 3.2
        return MalformedRequest(f"the request has {hosts} Host headers; there must be one")
    try:
        resource(target)
    except httptools.HttpParserInvalidURLError:
        shown = target[:_QUOTED].decode("latin-1")
        return MalformedRequest(f"the request's target {shown!r} is neither a path nor a whole URL")
    return None


def resource(target: bytes) -> bytes:
    """Return the path and query of a target, which may be a whole URL (RFC 9112, 3.2.2).

    Raises:
        httptools.HttpParserInvalidURLError: the target is neither that nor a path.
    """
    if target.startswith(b"/"):
        return target
    url = httptools.parse_url(target)
    query = b"" if url.query is None else b"?" + url.query
    return (url.path or b"/") + query
