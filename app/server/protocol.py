"""HTTP on a socket: uvicorn's protocol, with a bound on all that a client can hold.

Heads have a limit of size, heads and bodies of time, and connections of number. A worker that has
enough to do refuses further work here, before anything is spent on it: what a refusal costs decides
how much a service still does when it is asked for too much. A client that goes away ends its own
request. This module does not know what a request is about.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app import errors, problems
from app.server.connections import Connections
from app.server.heads import find_fault, resource
from app.server.overload import (
    MAX_HEAD_BYTES,
    answer,
    enough_to_do,
    framing_too_large,
    head_too_large,
    is_plain_post,
    shed_answer,
)
from app.telemetry import logs
from app.telemetry.metrics import OTHER
from app.telemetry.requests import SCOPE_KEY, RequestState

MAX_AHEAD = 16
"""Requests that may be sent ahead of the answer to the one before."""

DRAIN_SECONDS = 10
DRAIN_BYTES = 64 << 20
"""How long and how much of a refused body is read away, so that its sender sees the answer."""

_UPGRADING = frozenset({b"upgrade", b"connection", b"http2-settings"})
_SHED = errors.QueueFull("refused, with the connection")


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    The parser is between two requests (`_IDLE`), in a `_HEAD` or a `_BODY`, or at the end of what
    has been answered already (`_DRAIN`). The connection waits for its client unless a request that
    has come whole is running; requests that were sent ahead stand in uvicorn's `pipeline`.
    """

    _IDLE, _HEAD, _BODY, _DRAIN = range(4)

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._connections = connections
        self._settings = connections.settings
        self._phase = self._IDLE
        self._since = 0.0
        self._bytes = 0  # of the head, or of what is drained
        self._shed = False
        self._fault: errors.RequestError | None = None  # found by the parser's callbacks
        self._refusal: errors.ConvscopeError | None = None
        self._running: tuple[RequestResponseCycle, asyncio.Task[None]] | None = None
        self._at_work = False  # whether what runs is a whole POST

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it if all others are at work."""
        super().connection_made(transport)
        if self._connections.add(self):
            self._wait(self._IDLE)
        else:
            self._refuse(errors.TooManyConnections("every connection that may be open is at work"))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request that nobody waits for any more."""
        super().connection_lost(exc)
        self._connections.remove(self)
        self._end_work()
        self._end_task(problems.CLIENT_GONE)

    def pause_writing(self) -> None:
        """Called by the event loop when the client does not read."""
        super().pause_writing()
        self._connections.blocked[self] = time.monotonic()

    def resume_writing(self) -> None:
        """Called by the event loop when the client reads again."""
        super().resume_writing()
        self._connections.blocked.pop(self, None)

    def _end_task(self, status: int) -> RequestState | None:
        """End the application's part in a request that it will not answer; return its state.

        None means that the application has not seen the request.
        """
        if self._running is None:
            return None
        cycle, task = self._running
        self._running = None
        cycle.disconnected = True
        scope: Mapping[str, Any] = cycle.scope
        state: RequestState | None = scope.get(SCOPE_KEY)
        if state is not None:
            state.ended_with = status
        task.cancel()
        return state

    def shutdown(self) -> None:
        """Let the next answer be the last; who sends none is closed by the server in a moment."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def abort(self) -> None:
        """Close at once, to make room or because the client does not read."""
        status, _ = problems.STATUSES[errors.TooManyConnections]
        self._end_task(status)
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
            # Closing waits for what the client has not read.
            unread = self.transport.get_write_buffer_size()
            self.transport.abort() if unread else self.transport.close()
        elif self._phase == self._DRAIN and waited > DRAIN_SECONDS:
            self.transport.abort()
        elif self._phase == self._HEAD and waited > self._settings.head_timeout_seconds:
            limit = f"{self._settings.head_timeout_seconds:g} seconds"
            self._refuse(errors.HeadTimeout(f"the request's head did not arrive within {limit}"))
        elif self._phase == self._BODY and waited > self._settings.body_timeout_seconds:
            limit = f"{self._settings.body_timeout_seconds:g} seconds"
            self._refuse(errors.UploadTimeout(f"body did not arrive within the limit of {limit}"))

    def _enter(self, phase: int) -> None:
        self._phase, self._since, self._bytes = phase, time.monotonic(), 0

    def _wait(self, phase: int) -> None:
        self._enter(phase)
        self._connections.wait(self)

    # What arrives

    def data_received(self, data: bytes) -> None:
        """Feed the parser, within the limits."""
        if self._phase == self._IDLE:
            if self._connections.full and self._running is None and is_plain_post(data):
                self.url = data[5 : data.index(b" ", 5)]
                self._answer_shed(keep=not self._connections.closing)
                return
            self._enter(self._HEAD)
        self._bytes += len(data)
        if self._phase == self._DRAIN and self._bytes > DRAIN_BYTES:
            self.transport.abort()
        elif self._refusal is None:
            self._feed(data)
            if self._refusal is None and not self.transport.is_closing():
                self._judge()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            if self._fault is None:
                self._decline_upgrade(data[exc.args[0] :])
        except httptools.HttpParserError as exc:
            if self._phase == self._DRAIN:
                self.transport.close()  # it has had its answer
            else:
                self._refuse(errors.MalformedRequest(f"this is not HTTP/1.1 that is read: {exc}"))

    def _decline_upgrade(self, rest: bytes) -> None:
        """Go on with HTTP/1.1: the parser has left all after the head to another protocol."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in _UPGRADING]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            lines.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._feed(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def _judge(self) -> None:
        """Refuse what has turned out to be too much."""
        if self._fault is not None:
            self._refuse(self._fault)
        elif self._phase == self._BODY and self._bytes > MAX_HEAD_BYTES:
            self._refuse(framing_too_large(self._bytes))
        elif self._phase == self._HEAD and self._bytes > MAX_HEAD_BYTES:
            self._refuse(head_too_large(self._bytes))
        elif self._shed:  # and more of its body is to come
            self._connections.count_shed(self._path)
            self._refuse(enough_to_do(self._settings.max_requests))

    @property
    def _deaf(self) -> bool:
        return self._fault is not None or self._refusal is not None

    def on_message_begin(self) -> None:
        """Begin a head, also in the packet that ends the request before it."""
        if self._phase != self._HEAD:
            self._enter(self._HEAD)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; what stands behind a body is not read."""
        if self._phase == self._HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless there is something wrong with its head or enough to do."""
        self._fault = self._fault or self._find_fault()
        if self._deaf or self.parser.should_upgrade():  # `_decline_upgrade` brings it here again
            return
        self._enter(self._BODY)
        self.url = resource(self.url)
        if self._connections.full and self._running is None:
            self._shed = self.parser.get_method() == b"POST"
        if self._shed:
            return
        super().on_headers_complete()
        if self._running is not None and self._running[0] is self.cycle:
            self._connections.wait(self)  # from now on: its client does something
        if self._connections.closing:
            self.cycle.keep_alive = False

    def _find_fault(self) -> errors.RequestError | None:
        if len(self.pipeline) == MAX_AHEAD:
            return errors.MalformedRequest(
                f"more than {MAX_AHEAD} requests were sent ahead of their answers"
            )
        return find_fault(self.parser, self.url, self.headers, self._bytes)

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, unless the request is refused."""
        if self._phase == self._BODY:
            self._bytes = 0
        if not self._shed and not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is at work from now on; refuse it here if there is enough."""
        if self._deaf or self._phase == self._HEAD:
            return
        if self._shed:
            self._shed = False
            keep = self.parser.should_keep_alive() and not self._connections.closing
            self._answer_shed(keep=keep)
        elif self.cycle.response_complete:
            self._wait(self._IDLE)
        else:
            self._phase = self._IDLE
            super().on_message_complete()
            if not self.pipeline:
                self.flow.resume_reading()  # or nobody would see that the client goes
            self._begin_work()

    # What is answered

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        task = self.loop.create_task(cycle.run_asgi(app))
        self._running = cycle, task
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _begin_work(self) -> None:
        """Count what runs as work once it has come whole; what was sent ahead counts later."""
        if self._running is not None and not self._running[0].more_body and not self._at_work:
            self._at_work = self._running[0].scope["method"] == "POST"
            self._connections.work(self, self._at_work)

    def _end_work(self) -> None:
        self._connections.working -= self._at_work
        self._at_work = False

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the end of this one; `sweep` minds the time."""
        self.server_state.total_requests += 1
        self._running = None
        self._end_work()
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._wait(self._phase)
            self._start_asgi_task(*self.pipeline.pop())
            self._begin_work()
        elif self._refusal is not None:
            self.transport.close()
        else:
            self.flow.resume_reading()
            self._wait(self._DRAIN if self._phase == self._BODY else self._phase)

    def _answer_shed(self, *, keep: bool) -> None:
        """Refuse a request that has been received whole, and keep the connection if told so."""
        self._connections.count_shed(self._path)
        self.transport.write(shed_answer(self._settings.max_requests, self._path, keep=keep))
        if keep:
            self._wait(self._IDLE)
        else:
            self._refusal = _SHED
            self.transport.close()

    def _refuse(self, error: errors.ConvscopeError) -> None:
        """Answer for the application, and take no further request."""
        self._refusal = error
        reason = problems.reason(type(error))
        if self.pipeline or (self._running is not None and not self._running[0].more_body):
            # The answers before this one are the last.
            if self.pipeline and self.cycle.more_body:
                self.pipeline.popleft()
            self._connections.metrics.count_rejection(reason)
            return
        status, _ = problems.STATUSES[type(error)]
        known = self._end_task(status)
        method = str((self.scope or {}).get("method", OTHER))
        state = known or RequestState(method, self._path)
        request_id = state.request_id
        status, headers, body = problems.render(error, self._path, request_id)
        ours = {"content-length": len(body), "x-request-id": request_id, "connection": "close"}
        self.transport.write(answer(status, headers | ours, body))
        seconds = time.monotonic() - self._since
        if isinstance(error, errors.TooManyConnections):
            self.transport.close()
        else:
            self.transport.write_eof()
            self._wait(self._DRAIN)
        if self._shed:
            return  # counted already, and too many for a line each
        self._connections.metrics.count_rejection(reason)
        if known:
            return  # what runs around every request counts and logs it
        self._connections.metrics.count_refused(method, OTHER, status)
        if isinstance(error, errors.TooManyConnections):
            return  # nobody reads thousands of lines that say the same
        logs.write_request(state, status, seconds)

    @property
    def _path(self) -> str:
        return getattr(self, "url", b"").partition(b"?")[0].decode("ascii", "backslashreplace")
