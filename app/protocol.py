"""HTTP on a socket: uvicorn's protocol, with a bound on all that a client can hold.

Heads have a limit of size, heads and bodies of time, and connections of number. A worker that has
enough to do refuses further work here, before anything is spent on it: what a refusal costs decides
how much a service still does when it is asked for too much. A client that goes away ends its own
request.
This module does not know what a request is about.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app import http_errors, logs
from app.connections import Connections
from app.errors import (
    ConvscopeError,
    HeadTimeout,
    HeadTooLarge,
    MalformedRequest,
    QueueFull,
    TooManyConnections,
    UploadTimeout,
)
from app.metrics import OTHER
from app.middleware import CLIENT_GONE, ENDED

MAX_HEAD_BYTES = 32 << 10
"""Request line and headers: what nginx and Apache take with room to spare."""

DRAIN_SECONDS = 10
DRAIN_BYTES = 64 << 20
"""How long and how much of a refused body is read away, so that its sender sees the answer."""

_PLAIN_LINE = re.compile(rb"POST /predict(\?\S*)? HTTP/1\.1\r\n")
_PLAIN_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d{1,9})(?=\r\n)", re.IGNORECASE)
_NOT_PLAIN = re.compile(
    rb"\r\n(?:transfer-encoding|connection:(?! ?keep-alive\r)|expect|upgrade|[ \t])", re.IGNORECASE
)
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
_ID_CHARACTERS = 32


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    It waits for its client (in `_IDLE` for a request, in `_HEAD` and `_BODY` for the rest of it, in
    `_DRAIN` for the end of one that has been answered), unless `_unanswered` requests are at work.
    """

    _IDLE, _HEAD, _BODY, _DRAIN = range(4)

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._connections = connections
        self._settings = connections.settings
        self._phase = self._IDLE
        self._since = 0.0
        self._bytes = 0  # of the head, or of what is drained
        self._unanswered = 0
        self._shed = False
        self._too_large: HeadTooLarge | None = None
        self._refusal: ConvscopeError | None = None
        self._running: tuple[RequestResponseCycle, asyncio.Task[None]] | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it if all others are at work."""
        super().connection_made(transport)
        if self._connections.add(self):
            self._wait(self._IDLE)
        else:
            self._refuse(TooManyConnections("every connection that may be open is at work"))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request that nobody waits for any more."""
        super().connection_lost(exc)
        self._connections.remove(self)
        self._connections.working -= self._unanswered
        self._unanswered = 0
        self._end_task(CLIENT_GONE)

    def _end_task(self, status: int) -> str | None:
        """End the application's part in a request that it will not answer; return its id."""
        if self._running is None:
            return None
        cycle, task = self._running
        self._running = None
        cycle.disconnected = True
        cycle.scope["state"][ENDED] = status
        task.cancel()
        return cycle.scope["state"].get("request_id")

    def shutdown(self) -> None:
        """Let the next answer be the last; who sends none is closed by the server in a moment."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def abort(self) -> None:
        """Close at once, to make room."""
        self._connections.remove(self)
        self.transport.abort()

    def close_if_idle(self) -> None:
        """Close a connection on which nothing is under way, or nothing but what is refused."""
        if self._phase in {self._IDLE, self._DRAIN}:
            self.transport.close()

    def check(self, now: float) -> None:
        """Close the connection if its client has taken longer than it may."""
        waited = now - self._since
        if self._phase == self._IDLE and waited > self._settings.keep_alive_seconds:
            self.transport.close()
        elif self._phase == self._DRAIN and waited > DRAIN_SECONDS:
            self.transport.abort()
        elif self._phase == self._HEAD and waited > self._settings.head_timeout_seconds:
            limit = self._settings.head_timeout_seconds
            self._refuse(HeadTimeout(f"the request's head did not arrive within {limit:g} seconds"))
        elif self._phase == self._BODY and waited > self._settings.body_timeout_seconds:
            limit = self._settings.body_timeout_seconds
            self._refuse(
                UploadTimeout(f"body did not arrive within the limit of {limit:g} seconds")
            )

    def _wait(self, phase: int) -> None:
        self._phase, self._since, self._bytes = phase, time.monotonic(), 0
        self._connections.wait(self)

    # What arrives

    def data_received(self, data: bytes) -> None:
        """Feed the parser, within the limits."""
        if self._phase == self._IDLE:
            if self._connections.full and not self._unanswered and _is_plain_post(data):
                self.url = data[5 : data.index(b" ", 5)]
                self._answer_shed(keep=not self._connections.closing)
                return
            self._phase, self._since, self._bytes = self._HEAD, time.monotonic(), 0
        if self._phase in {self._HEAD, self._DRAIN}:
            self._bytes += len(data)
        if self._phase == self._DRAIN and self._bytes > DRAIN_BYTES:
            self.transport.abort()
        elif self._refusal is None:
            if self._phase == self._HEAD and b"pgrade:" in data:
                data = _without_upgrade(data)
            try:
                self.parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
                self._refuse(MalformedRequest(f"this is not HTTP/1.1 that is read: {exc}"))
            if self._refusal is None and not self.transport.is_closing():
                self._judge()

    def _judge(self) -> None:
        """Refuse what has turned out to be too much."""
        if self._too_large is not None:
            self._refuse(self._too_large)
        elif self._phase == self._HEAD and self._bytes > MAX_HEAD_BYTES:
            self._refuse(_head_too_large(self._bytes))
        elif self._shed:  # and more of its body is to come
            self._connections.count_shed(self._path)
            self._refuse(QueueFull(_enough_to_do(self._settings.max_requests)))

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is too large or there is enough to do."""
        self._phase, self._since = self._BODY, time.monotonic()
        if self._bytes > MAX_HEAD_BYTES:  # with what came of the body
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._too_large = _head_too_large(size)
                return
        if self._connections.full and not self._unanswered:
            self._shed = self.parser.get_method() == b"POST"
        if self._shed:
            return
        super().on_headers_complete()
        if self._connections.closing:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, unless the request is refused."""
        if not self._shed and self._too_large is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is at work from now on; refuse it here if there is enough."""
        if self._too_large is not None:
            return
        if self._shed:
            self._shed = False
            keep = self.parser.should_keep_alive() and not self._connections.closing
            self._answer_shed(keep=keep)
        elif self.cycle.response_complete:
            self._wait(self._IDLE)
        else:
            self._phase = self._IDLE
            self._unanswered += 1
            self._connections.work(self)
            super().on_message_complete()

    # What is answered

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        task = self.loop.create_task(cycle.run_asgi(app))
        self._running = cycle, task
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the end of this one; `sweep` minds the time."""
        self.server_state.total_requests += 1
        self._running = None
        if self._unanswered:
            self._unanswered -= 1
            self._connections.working -= 1
        if self.transport.is_closing():
            return
        if self._refusal is not None:
            self.transport.close()
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._unanswered:
            self._wait(self._DRAIN if self._phase == self._BODY else self._phase)

    def _answer_shed(self, *, keep: bool) -> None:
        """Refuse a request that has been received whole, and keep the connection if told so."""
        self._connections.count_shed(self._path)
        head, body, tail = _shed_answer(self._settings.max_requests, self._path)
        request_id = secrets.token_hex(_ID_CHARACTERS // 2).encode()
        close = b"" if keep else b"connection: close\r\n"
        parts = head, close, b"x-request-id: ", request_id, b"\r\n\r\n", body, request_id, tail
        self.transport.write(b"".join(parts))
        if keep:
            self._wait(self._IDLE)
        else:
            self.transport.close()

    def _refuse(self, error: ConvscopeError) -> None:
        """Answer for the application, and take no further request."""
        self._refusal = error
        if self._unanswered:
            return  # the answer before this one is the last
        status, _ = http_errors.STATUSES[type(error)]
        known = self._end_task(status)
        request_id = known or secrets.token_hex(_ID_CHARACTERS // 2)
        status, headers, body = http_errors.render(error, self._path, request_id)
        ours = {"content-length": len(body), "x-request-id": request_id, "connection": "close"}
        self.transport.write(_head(status, headers | ours) + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        seconds = time.monotonic() - self._since
        self._wait(self._DRAIN)
        if self._shed:
            return  # counted already, and too many for a line each
        self._connections.metrics.count_rejection(http_errors.reason(type(error)))
        if known:
            return  # what runs around every request counts and logs it
        method = str((self.scope or {}).get("method", OTHER))
        self._connections.metrics.count_refused(method, OTHER, status)
        token = logs.request_id.set(request_id)
        logs.write_request({"method": method, "path": self._path}, status, seconds, None)
        logs.request_id.reset(token)

    @property
    def _path(self) -> str:
        return getattr(self, "url", b"").partition(b"?")[0].decode("ascii", "backslashreplace")


def _head_too_large(size: int) -> HeadTooLarge:
    return HeadTooLarge(
        f"the request's head is at least {size} bytes; the limit is {MAX_HEAD_BYTES} bytes"
    )


def _is_plain_post(data: bytes) -> bool:
    """Whether this is one whole POST, and nothing that takes a parser to understand.

    What is refused need not be parsed: that costs more than all the rest of refusing it.
    """
    if not _PLAIN_LINE.match(data):
        return False
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    length = _PLAIN_LENGTH.findall(data, 0, end + 2)
    if len(length) != 1 or int(length[0]) != len(data) - end - 4:
        return False
    return not _NOT_PLAIN.search(data, 0, end + 2)


def _without_upgrade(data: bytes) -> bytes:
    """Take no offer of another protocol: the parser would leave the body to that."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"", head) + end + rest


def _enough_to_do(limit: int) -> str:
    return f"{limit} requests are at work; that is the limit"


@lru_cache(64)  # the path is the client's
def _shed_answer(limit: int, path: str) -> tuple[bytes, bytes, bytes]:
    """Return the head, and the body before and after the request id."""
    mark = "0" * _ID_CHARACTERS
    status, headers, body = http_errors.render(QueueFull(_enough_to_do(limit)), path, mark)
    before, _, after = body.rpartition(mark.encode())
    return _head(status, {**headers, "content-length": str(len(body))}), before, after


def _head(status: int, headers: Mapping[str, object]) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{''.join(lines)}".encode()
