"""One request and its answer on a connection: `receive` and `send` of an ASGI application."""

import asyncio
import logging
import re
from collections.abc import Iterable
from enum import Enum, auto
from functools import lru_cache
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from app.server.overload import refusal, status_line
from app.telemetry.requests import SCOPE_KEY, RequestState

BUFFERED_BYTES = 64 << 10
"""How much of a body is held before the application asks for it; beyond that, reading pauses."""

_NO_BODY = frozenset({204, 304})
_BAD_NAME = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")  # RFC 9110, 5.6.2
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_log = logging.getLogger(__name__)


class _Framing(Enum):
    """How a client finds the end of an answer's body."""

    NO_BODY = auto()
    LENGTH = auto()
    CHUNKS = auto()
    CLOSE = auto()  # HTTP/1.0


class Wire(Protocol):
    """The connection, as an exchange uses it."""

    @property
    def date_header(self) -> bytes:
        """The line of the header `date`."""

    @property
    def may_stay_open(self) -> bool:
        """Whether the connection may take another request."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    async def drain(self) -> None:
        """Wait until the client has read enough of the bytes sent."""

    def pause_reading(self) -> None:
        """Take no more bytes from the client for now."""

    def resume_reading(self) -> None:
        """Take bytes from the client again."""

    def abort(self) -> None:
        """Close at once."""

    def answered(self, *, keep: bool) -> None:
        """Called when the answer is complete; `keep` says whether the connection stays open."""


class Exchange:
    """One request and its answer.

    Attributes:
        scope: of ASGI.
        keep: whether the connection stays open after the answer.
        whole: whether the request has been received whole.
        started: whether a part of the answer has been written.
        complete: whether all of it has.
        disconnected: whether the answer is no longer wanted.
    """

    def __init__(self, wire: Wire, scope: Scope, *, keep: bool, expects_continue: bool) -> None:
        """Prepare.

        Args:
            wire: the connection.
            scope: of ASGI.
            keep: whether the client lets the connection stay open.
            expects_continue: whether the client asks for leave before it sends the body.
        """
        self.scope = scope
        self.keep = keep
        self.whole = False
        self.started = False
        self.complete = False
        self.disconnected = False
        self._wire = wire
        self._expects_continue = expects_continue
        self._body = bytearray()
        self._news = asyncio.Event()
        self._framing: _Framing | None = None  # None until the answer starts
        self._head = b""  # of the answer, until it is written
        self._missing = 0  # bytes of the body that Content-Length has announced

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer; its failure is a 500, or cuts off an answer begun."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception as exc:  # noqa: BLE001 - an application may raise anything
            self._fail(exc)
        else:
            if not self.complete:
                self._fail(RuntimeError("the application returned before its answer was complete"))

    def _fail(self, exc: Exception) -> None:
        if self.disconnected:
            return
        if self.started:
            _log.error("the application failed; its answer is cut off", exc_info=exc)
            self._wire.abort()
            return
        request = self.scope.get(SCOPE_KEY)
        request = request or RequestState(self.scope["method"], self.scope["path"])
        self.keep = False
        self._wire.write(refusal(exc, request, request.path))
        self._complete()

    # The request

    def feed(self, body: bytes) -> None:
        """Keep a part of the body for the application."""
        self._body += body
        if len(self._body) > BUFFERED_BYTES:
            self._wire.pause_reading()
        self._news.set()

    def end_request(self) -> None:
        """Note that the request has been received whole."""
        self.whole = True
        self._news.set()

    def disconnect(self) -> None:
        """Note that nobody waits for the answer."""
        self.disconnected = True
        self._news.set()

    async def receive(self) -> Message:
        """Return the next part of the body, or that the client has gone (ASGI's `receive`)."""
        if self._expects_continue and not self.whole:
            self._expects_continue = False
            self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self.disconnected and not self.complete:
            if not self.whole:
                self._wire.resume_reading()
            await self._news.wait()
            self._news.clear()
        if self.disconnected or self.complete:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        return {"type": "http.request", "body": body, "more_body": not self.whole}

    # The answer

    async def send(self, message: Message) -> None:
        """Write a part of the answer (ASGI's `send`).

        The head is written with the first part of the body.

        Raises:
            RuntimeError: the message breaks the rules of ASGI or HTTP.
        """
        if self.disconnected:
            return
        if self.complete:
            raise RuntimeError(f"{message['type']} was sent after the answer was complete")
        if self._framing is None:
            _expect("http.response.start", message)
            self._start(message["status"], message.get("headers", ()))
            return
        _expect("http.response.body", message)
        more = message.get("more_body", False)
        data = self._head + self._frame(message.get("body", b""), more=more)
        self._head = b""
        if data:
            self.started = True
            self._wire.write(data)
        if more:
            await self._wire.drain()
        else:
            self._complete()

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        # Whether a client that waits for `100 Continue` will still send its body is unknown.
        waits = self._expects_continue and not self.whole
        self._expects_continue = False
        self.keep = self.keep and self._wire.may_stay_open and not waits
        length: int | None = None
        announced = False  # that the connection ends
        lines = [status_line(status), self._wire.date_header]
        for given, value in headers:
            name = _checked_name(given)
            if _BAD_VALUE.search(value):
                raise RuntimeError(f"HTTP does not allow the header value {value!r} of {name!r}")
            if name == b"content-length":
                length = int(value)
            elif name == b"connection" and b"close" in value.lower():
                self.keep, announced = False, True
            elif name == b"transfer-encoding":
                raise RuntimeError("an application cannot choose Transfer-Encoding")
            lines += name, b": ", value, b"\r\n"
        if not self.keep and not announced:
            lines.append(b"connection: close\r\n")
        if self.scope["method"] == "HEAD" or status in _NO_BODY:
            self._framing = _Framing.NO_BODY
        elif length is not None:
            self._framing, self._missing = _Framing.LENGTH, length
        elif self.scope["http_version"] == "1.0":
            self._framing, self.keep = _Framing.CLOSE, False
        else:
            self._framing = _Framing.CHUNKS
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)

    def _frame(self, body: bytes, *, more: bool) -> bytes:
        """Return a part of the body as it is written."""
        if self._framing is _Framing.LENGTH:
            self._missing -= len(body)
            if self._missing < 0 or (self._missing and not more):
                problem = "longer" if self._missing < 0 else "shorter"
                raise RuntimeError(f"the answer's body is {problem} than its Content-Length")
            return body
        if self._framing is _Framing.NO_BODY:
            return b""
        if self._framing is _Framing.CHUNKS:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return chunk if more else chunk + b"0\r\n\r\n"
        return body

    def _complete(self) -> None:
        self.complete = True
        self._news.set()
        self._wire.answered(keep=self.keep)


@lru_cache(256)
def _checked_name(name: bytes) -> bytes:
    """Return a header's name in lower case; raise RuntimeError if HTTP does not allow it."""
    if _BAD_NAME.search(name):
        raise RuntimeError(f"HTTP does not allow the header name {name!r}")
    return name.lower()


def _expect(kind: str, message: Message) -> None:
    if message["type"] != kind:
        raise RuntimeError(f"the application sent {message['type']} in place of {kind}")
