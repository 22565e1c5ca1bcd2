"""HTTP/1.1 on one connection, with a bound on everything that a client can hold.

Heads have a limit of size, heads and bodies of time, and connections of number. A full worker
refuses further work here, before anything is spent on it: the cost of a refusal decides how much an
overloaded service still does. A client that goes away ends its own request. httptools parses, but
not a head that the same connection sent just before; one request at a time is answered, and bytes
sent ahead of an answer wait unparsed.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, cast
from urllib.parse import unquote

import httptools

from app import errors, problems
from app.server.application import Application, Handler, Pending
from app.server.chunks import ChunkedBody
from app.server.connections import Connections
from app.server.exchange import Exchange
from app.server.overload import (
    MAX_HEAD_BYTES,
    framing_too_large,
    head_too_large,
    headers_of,
    is_plain_post,
    refusal,
    shed_answer,
    split_length,
    status_line,
)
from app.telemetry.metrics import OTHER
from app.telemetry.requests import (
    SCOPE_KEY,
    STARTED_KEY,
    ClientAddress,
    RequestState,
    request_id_of,
)

DRAIN_SECONDS = 10
DRAIN_BYTES = 64 << 20
"""How long and how much of an unwanted body is read away, so that its sender sees the answer."""

_QUOTED_BYTES = 100  # of a target that an error repeats
_LENGTH_DIGITS = 20  # of Content-Length: those of 2**64
_REPEATABLE_BYTES = 2048  # of a head that is remembered, for each connection
_EMPTY_LINE = b"\r\n\r\n"  # ends a head
_UPGRADE = re.compile(rb"(?<=\r\n)upgrade:[^\r]*\r\n", re.IGNORECASE)


class State(StrEnum):
    """A connection's state; `docs/architecture.md` draws it."""

    __hash__ = str.__hash__  # Enum's own is not in C

    IDLE = "Idle"
    """Between two requests."""
    HEAD = "Head"
    """A request's head arrives."""
    BODY = "Body"
    """The body arrives; the application runs already, unless it is offered the whole request."""
    ANSWERING = "Answering"
    """The request has arrived whole, and the application runs."""
    DRAINING = "Draining"
    """The request is answered; the rest of its body is read away."""
    SHEDDING = "Shedding"
    """The request will be refused, because the worker is full; its body may have arrived too."""
    LINGERING = "Lingering"
    """The last answer is written; bytes that still arrive are read away until the client closes."""
    CLOSED = "Closed"
    """No more is read; the end of the last answer may still be on its way."""


class Event(StrEnum):
    """A reason to leave a state."""

    __hash__ = str.__hash__

    STARTED = "first byte"
    REPEATED = "same head, and its body"
    TAKEN = "head accepted"
    SHED = "worker full"
    WHOLE = "end of request"
    ANSWERED = "answered"
    ANSWERED_LAST = "last answer"
    REFUSED = "refused"
    CLOSED = "closed"


TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.IDLE: {
        Event.STARTED: State.HEAD,
        Event.REPEATED: State.ANSWERING,
        Event.CLOSED: State.CLOSED,
    },
    State.HEAD: {
        Event.TAKEN: State.BODY,
        Event.SHED: State.SHEDDING,
        Event.REFUSED: State.LINGERING,
        Event.CLOSED: State.CLOSED,
    },
    State.BODY: {
        Event.WHOLE: State.ANSWERING,
        Event.ANSWERED: State.DRAINING,
        Event.ANSWERED_LAST: State.LINGERING,
        Event.REFUSED: State.LINGERING,
        Event.CLOSED: State.CLOSED,
    },
    State.ANSWERING: {
        Event.ANSWERED: State.IDLE,
        Event.ANSWERED_LAST: State.CLOSED,
        Event.REFUSED: State.LINGERING,
        Event.CLOSED: State.CLOSED,
    },
    State.DRAINING: {Event.WHOLE: State.IDLE, Event.CLOSED: State.CLOSED},
    State.SHEDDING: {
        Event.WHOLE: State.IDLE,
        Event.REFUSED: State.LINGERING,
        Event.CLOSED: State.CLOSED,
    },
    State.LINGERING: {Event.CLOSED: State.CLOSED},
    State.CLOSED: {},
}

_PARSING = frozenset({State.HEAD, State.BODY, State.DRAINING, State.SHEDDING})
_WAITING = frozenset({State.IDLE, State.BODY, State.DRAINING, State.LINGERING})


class HttpProtocol(asyncio.Protocol):
    """One connection; it is in one `State`, and `TRANSITIONS` lead to the others."""

    def __init__(
        self,
        app: Application,
        connections: Connections,
        lifespan_state: Mapping[str, Any],
    ) -> None:
        """Prepare.

        Args:
            app: answers the requests.
            connections: of the worker.
            lifespan_state: is copied into the scope of every request.
        """
        self._app = app
        self._connections = connections
        self._settings = connections.settings
        self._lifespan_state = lifespan_state
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._state = State.IDLE
        self._since = 0.0  # when the state was entered
        self._bytes = 0  # received in this state; of a body, its framing less its content
        self._reading = True
        self._writable = asyncio.Event()
        self._writable.set()
        self._ahead = b""  # sent before the answer to the request before it
        # Of the request:
        self._method = OTHER
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head = b""
        self._tail = b""  # the last bytes that may begin an empty line
        self._body_left = 0  # bytes, where Content-Length says how many
        self._chunks: ChunkedBody | None = None
        self._fault: errors.RequestError | None = None
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._handler: Handler | None = None  # takes the request when it is whole
        self._repeatable: tuple[bytes, bytes] | None = None  # its head, around Content-Length
        self._collected: bytearray | None = None  # of the body, until the request is offered whole
        self._head_at = 0.0  # when its head had arrived, by `perf_counter`
        self._pending: Pending | None = None  # the application has taken it
        self._why_shed = connections.full
        self._expects_continue = False
        self._stays_open = False  # whether the connection stays open after it
        self._at_work = False  # whether the request counts as work

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it if all others are at work."""
        self._transport = cast(asyncio.Transport, transport)
        self._client = _address(transport.get_extra_info("peername"))
        self._server = _address(transport.get_extra_info("sockname"))
        self._since = time.monotonic()
        if self._connections.add(self):
            self._connections.wait(self)
            return
        error = errors.TooManyConnections("every connection that may be open is at work")
        self._refuse(error)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """End the request whose client has gone."""
        self._give_up_collecting(problems.CLIENT_GONE)
        self._close()
        self._end_request(problems.CLIENT_GONE)
        self._connections.remove(self)
        self._writable.set()
        del self._parser  # which refers to this object

    def pause_writing(self) -> None:
        """Called by the event loop when the client does not read."""
        self._writable.clear()
        self._connections.blocked[self] = time.monotonic()

    def resume_writing(self) -> None:
        """Called by the event loop when the client reads again."""
        self._writable.set()
        self._connections.blocked.pop(self, None)
        if self._state is State.CLOSED:
            self._connections.blocked[self] = time.monotonic()
        elif self._state is State.IDLE:
            self.resume_reading()
            self.data_received(b"")

    def abort(self) -> None:
        """Close at once, to make room or because the client does not read."""
        status, _ = problems.STATUSES[errors.TooManyConnections]
        self._give_up_collecting(status)
        self._end_request(status)
        self._close()
        self._connections.remove(self)
        self._transport.abort()

    def _close(self) -> None:
        if self._state is not State.CLOSED:
            self._move(Event.CLOSED)

    def close_if_idle(self) -> None:
        """Close a connection on which the application answers no request."""
        if self._state in {State.IDLE, State.DRAINING, State.LINGERING}:
            self._close()

    def give_up(self) -> None:
        """Refuse the request under way, because the server has waited long enough for it."""
        if self._exchange is None and self._pending is None and self._collected is None:
            self.abort()
            return
        limit = f"{self._settings.shutdown_seconds} seconds"
        self._refuse(errors.ShuttingDown(f"the server stops; it has waited for {limit}"))

    def check(self, now: float) -> None:
        """Close the connection if its client has taken longer than it may."""
        waited = now - self._since
        if self._state is State.IDLE and waited > self._settings.keep_alive_seconds:
            self._close()
        elif self._state in {State.DRAINING, State.LINGERING} and waited > DRAIN_SECONDS:
            self.abort()
        elif self._state is State.HEAD and waited > self._settings.head_timeout_seconds:
            limit = f"{self._settings.head_timeout_seconds:g} seconds"
            self._refuse(errors.HeadTimeout(f"the request's head did not arrive within {limit}"))
        elif self._state is State.BODY and waited > self._settings.body_timeout_seconds:
            limit = f"{self._settings.body_timeout_seconds:g} seconds"
            self._refuse(errors.UploadTimeout(f"body did not arrive within the limit of {limit}"))

    def _move(self, event: Event) -> None:
        """Enter the state to which an event leads."""
        self._state = state = TRANSITIONS[self._state][event]
        self._since, self._bytes, self._head = time.monotonic(), 0, b""
        if state in _WAITING:
            self._connections.wait(self)
        elif state is State.ANSWERING:
            self._at_work = self._method == "POST"
            self._connections.work(self, self._at_work)
        if state is State.CLOSED:
            self._connections.blocked.setdefault(self, self._since)
            self._transport.close()
            return
        self.resume_reading()
        if state is State.LINGERING and not self._transport.is_closing():
            self._transport.write_eof()

    # What arrives

    def data_received(self, data: bytes) -> None:
        """Parse, unless a request is being answered; keep bytes that were sent ahead."""
        data, self._ahead = self._ahead + data, b""
        if self._state is State.ANSWERING:
            self._keep(data)
        else:
            self._parse(data)

    def _keep(self, data: bytes) -> None:
        self._ahead = data
        if len(data) > MAX_HEAD_BYTES:
            self.pause_reading()

    def _parse(self, data: bytes) -> None:
        """Parse request after request, until one of them has to be answered."""
        while data:
            if self._state is State.IDLE:
                if not self._writable.is_set():  # the client has answers to read first
                    self._keep(data)
                    return
                data = data.lstrip(b"\r\n")  # RFC 9112, 2.2
                if self._take_repeated(data) or self._shed_unparsed(data):
                    return
                if data:
                    self._move(Event.STARTED)
                    self._tail = b""
                    self._chunks = None
            if self._state not in _PARSING:
                break
            size = self._next_size(data)
            self._feed(data[:size])
            data = data[size:]
        if self._state is State.SHEDDING:  # more of its body is to come
            self._refuse(self._why_shed)
        elif self._state is State.ANSWERING:
            self._keep(data)
        elif self._state is State.LINGERING:
            self._discard(len(data))

    def _shed_unparsed(self, data: bytes) -> bool:
        """Refuse a POST for which there is no room, without parsing it; return whether so."""
        if not data.startswith(b"POST "):
            return False
        target = data[5 : data.find(b" ", 5)]
        error = self._connections.refusal or self._app.refusal(target)
        if error is None or not is_plain_post(data):
            return False
        self._target, self._headers, self._repeatable = target, headers_of(data), None
        self._answer_shed(error, keep=not self._connections.closing)
        return True

    def _take_repeated(self, data: bytes) -> bool:
        """Take a whole request with the head of the last one, unparsed; return whether so.

        All that was read out of that head still stands. Only Content-Length may be another.
        """
        handler = self._handler
        if self._repeatable is None or handler is None:
            return False
        before, after = self._repeatable
        if not data.startswith(before):
            return False
        end = data.find(b"\r", len(before), len(before) + _LENGTH_DIGITS)
        start = end + len(after)
        length = data[len(before) : end]
        if not (
            length.isdigit()
            and data.startswith(after, end)
            and int(length) == len(data) - start <= self._app.most_bytes
        ):
            return False
        error = self._connections.refusal or handler.refusal
        if error is not None:
            self._answer_shed(error, keep=self._stays_open and not self._connections.closing)
            return True
        self._head_at = time.perf_counter()
        self._move(Event.REPEATED)
        self._offer(handler, data[start:])
        return True

    def _next_size(self, data: bytes) -> int:
        """Return how many bytes to parse, so that the end of a head or body is the end of them."""
        if self._body_left:
            return min(self._body_left, len(data))
        if self._chunks is not None:
            return self._chunks.end_in(data[:MAX_HEAD_BYTES])  # too much framing is noticed soon
        end = (self._tail + data[:3]).find(_EMPTY_LINE)
        if end >= 0:
            return end + len(_EMPTY_LINE) - len(self._tail)
        end = data.find(_EMPTY_LINE)
        return len(data) if end < 0 else end + len(_EMPTY_LINE)

    def _feed(self, data: bytes) -> None:
        """Parse a part of one request, and refuse it if it turns out to be wrong."""
        self._bytes += len(data)
        if self._state is State.HEAD:
            self._head += data
        if self._body_left:
            self._body_left -= len(data)
        elif self._chunks is None:
            last = self._tail + data[-4:]
            self._tail = b"" if last.endswith(_EMPTY_LINE) else last[-3:]
        try:
            self._feed_parser(data)
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError as exc:
            malformed = errors.MalformedRequest(f"malformed HTTP/1.1 request: {exc}")
            self._fault = self._fault or malformed
        if self._state is State.DRAINING:
            self._discard(0)
        elif self._fault is not None and self._state is not State.CLOSED:
            self._refuse(self._fault)
        elif self._state is State.HEAD and self._bytes > MAX_HEAD_BYTES:
            self._refuse(head_too_large(self._bytes))
        elif self._state is State.BODY and self._bytes > MAX_HEAD_BYTES:
            self._refuse(framing_too_large(self._bytes))

    def _feed_parser(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._fault is None:
                # The parser would skip the body; it parses the head again, without the offer.
                self._parser = httptools.HttpRequestParser(self)
                self._head = _UPGRADE.sub(b"", self._head)
                self._feed_parser(self._head)

    def _discard(self, size: int) -> None:
        """Count bytes that are read away, and close when there are too many."""
        self._bytes += size
        if self._bytes > DRAIN_BYTES:
            self.abort()
        elif self._fault is not None and self._state is State.DRAINING:
            self._close()  # the request has had its answer

    # Called by the parser

    def on_message_begin(self) -> None:
        """Forget the request before."""
        if self._state is not State.HEAD:  # a body has ended before the bytes that were its own
            self._fault = errors.MalformedRequest("the end of the request's body is ambiguous")
            return
        self._method, self._target, self._headers = OTHER, b"", []
        self._handler = self._repeatable = self._collected = None

    def on_url(self, url: bytes) -> None:
        """Keep a part of the target."""
        if self._state is State.HEAD:
            self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers behind a body are dropped."""
        if self._state is State.HEAD:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Look at the head, and accept it unless it has a fault."""
        self._method = self._parser.get_method().decode()
        version = self._parser.get_http_version()
        length, hosts, expects_continue = b"0", 0, False
        codings: list[bytes] = []
        for name, value in self._headers:
            if name == b"content-length":
                length = value.rstrip()
            elif name == b"transfer-encoding":
                self._chunks = ChunkedBody()
                codings.append(value.rstrip())
            elif name == b"host":
                hosts += 1
            elif name == b"expect":
                expects_continue = version == "1.1" and value.lower() == b"100-continue"
        try:
            self._check_head(hosts, len(length), b", ".join(codings or [b"chunked"]))
            self._url = httptools.parse_url(self._target)  # or a whole URL: RFC 9112, 3.2.2
        except httptools.HttpParserInvalidURLError:
            shown = self._target[:_QUOTED_BYTES].decode("latin-1")
            self._fault = errors.MalformedRequest(
                f"the request's target {shown!r} is neither a path nor a whole URL"
            )
            return
        except errors.RequestError as exc:
            self._fault = exc
            return
        if not self._parser.should_upgrade():  # else `_feed_parser` parses it without the offer
            self._body_left = int(length)
            self._accept(expects_continue=expects_continue)

    def _accept(self, *, expects_continue: bool) -> None:
        """Start a request whose head has no fault, or wait for all of it, or refuse it."""
        if self._method == "POST":
            error = self._connections.refusal or self._app.refusal(self._target)
            if error is not None:
                self._why_shed = error
                self._move(Event.SHED)
                return
        head = self._head
        self._move(Event.TAKEN)
        self._expects_continue = expects_continue
        self._stays_open = self._keeps_open
        if self._may_be_offered:
            self._handler = self._app.handler(self._target, self._headers)
        self._head_at = time.perf_counter()
        if self._handler is None:
            self._start_exchange()
            return
        self._collected = bytearray()
        if len(head) <= _REPEATABLE_BYTES:
            self._repeatable = split_length(head)

    @property
    def _may_be_offered(self) -> bool:
        """Whether the application may want to answer this request when it is whole."""
        return (
            self._method == "POST"
            and self._path in self._app.fast_paths
            and self._chunks is None
            and not self._expects_continue
            and self._body_left <= self._app.most_bytes
        )

    def _start_exchange(self) -> Exchange:
        """Let the application answer by ASGI."""
        raw_path = self._url.path or b"/"
        path = raw_path.decode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self._parser.get_http_version(),
            "server": self._server,
            "client": self._client,
            "scheme": "http",
            "method": self._method,
            "root_path": "",
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": self._url.query or b"",
            "headers": self._headers,
            "state": dict(self._lifespan_state),
            STARTED_KEY: self._head_at,
        }
        self._exchange = Exchange(
            self, scope, keep=self._stays_open, expects_continue=self._expects_continue
        )
        self._task = self._loop.create_task(self._exchange.run(self._app))
        self._connections.tasks.add(self._task)
        self._task.add_done_callback(self._connections.tasks.discard)
        return self._exchange

    def _check_head(self, hosts: int, digits: int, coding: bytes) -> None:
        """Raise RequestError if the head is not taken.

        Args:
            hosts: the number of Host headers.
            digits: the length of Content-Length.
            coding: the value of Transfer-Encoding, `chunked` if there is none.
        """
        if self._fault is not None:
            raise self._fault
        if self._bytes > MAX_HEAD_BYTES:
            self._method = OTHER  # as if the rest of the head were still to come
            raise head_too_large(self._bytes)
        line = self._head.partition(b"\r\n")[0]
        if not line.endswith((b" HTTP/1.1", b" HTTP/1.0")):  # the parser also takes RTSP and others
            shown = line.rpartition(b" ")[2][:_QUOTED_BYTES].decode("latin-1")
            raise errors.MalformedRequest(
                f"the request's first line ends in {shown!r}; it must end in HTTP/1.1 or HTTP/1.0"
            )
        if digits > _LENGTH_DIGITS:
            raise errors.MalformedRequest(
                f"Content-Length has {digits} digits; the limit is {_LENGTH_DIGITS}"
            )
        if coding.lower() != b"chunked":  # the parser takes any before it
            shown = coding[:_QUOTED_BYTES].decode("latin-1")
            raise errors.MalformedRequest(
                f"Transfer-Encoding is {shown!r}; it must be 'chunked' or absent"
            )
        if self._method == "CONNECT":
            raise errors.MalformedRequest("CONNECT is not taken")
        if hosts != 1 and (hosts or self._parser.get_http_version() == "1.1"):  # RFC 9112, 3.2
            raise errors.MalformedRequest(
                f"the request has {hosts} Host headers; there must be one"
            )

    def on_body(self, body: bytes) -> None:
        """Give the application a part of the body."""
        if self._state is not State.BODY:
            return
        self._bytes -= 2 * len(body)  # counted once as received
        if self._collected is not None:
            self._collected += body
        elif self._exchange is not None:
            self._exchange.feed(body)

    def on_message_complete(self) -> None:
        """Wait for the answer, or for the next request if this one has its answer."""
        if self._fault is not None:
            return
        if self._state is State.SHEDDING:
            self._move(Event.WHOLE)
            self._answer_shed(
                self._why_shed, keep=self._keeps_open and not self._connections.closing
            )
        elif self._state is not State.HEAD:
            self._move(Event.WHOLE)
            if self._collected is not None and self._handler is not None:
                body, self._collected = bytes(self._collected), None
                if (error := self._handler.refusal) is not None:
                    self._answer_shed(error, keep=self._stays_open and self.may_stay_open)
                else:
                    self._offer(self._handler, body)
            elif self._exchange is not None:
                self._exchange.end_request()

    def _offer(self, handler: Handler, body: bytes) -> None:
        """Offer a whole request to its handler; one that it does not take goes by ASGI."""
        self._pending = handler.begin(body, self._head_at, self)
        if self._pending is None:
            self._leave_to_asgi(body)

    def _leave_to_asgi(self, body: bytes) -> None:
        length = b"%d" % len(body)  # the head may be that of an earlier request
        self._headers = [
            (name, length if name == b"content-length" else value) for name, value in self._headers
        ]
        exchange = self._start_exchange()
        exchange.feed(body)
        exchange.end_request()

    # What the handler does; `Client`

    @property
    def address(self) -> ClientAddress:
        """Host and port of the client."""
        return self._client

    def decline(self, body: bytes) -> None:
        """Let the application answer a request by ASGI although its offer was taken."""
        if self._pending is not None:
            self._pending = None
            self._leave_to_asgi(body)

    def reply(self, status: int, lines: bytes, body: bytes) -> bool:
        """Answer a request whose offer was taken; return whether anyone still waits for it.

        Args:
            status: of the answer.
            lines: its headers, each with its line end.
            body: is written whole.
        """
        if self._pending is None or self._transport.is_closing():
            return False
        keep = self._stays_open and self.may_stay_open
        self._transport.write(
            b"%b%b%bcontent-length: %d\r\n%b\r\n%b"
            % (
                status_line(status),
                self._connections.date_header,
                lines,
                len(body),
                b"" if keep else b"connection: close\r\n",
                body,
            )
        )
        self.answered(keep=keep)
        return True

    @property
    def _keeps_open(self) -> bool:
        """Whether the client lets the connection stay open; after HTTP/1.0 it never does."""
        return self._parser.get_http_version() == "1.1" and self._parser.should_keep_alive()

    # What is answered; `Wire`

    @property
    def date_header(self) -> bytes:
        """The line of the header `date`."""
        return self._connections.date_header

    @property
    def may_stay_open(self) -> bool:
        """Whether the connection may take another request."""
        return bool(self._ahead) or not self._connections.closing

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has read enough of the bytes sent."""
        await self._writable.wait()

    def pause_reading(self) -> None:
        """Take no more bytes from the client for now."""
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes from the client again."""
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def answered(self, *, keep: bool) -> None:
        """Go on to the next request, or to the end of this one's body, or close."""
        self._exchange = self._task = self._pending = None
        self._end_work()
        if keep:
            self._move(Event.ANSWERED)
        elif self._ahead:  # unread bytes would reset the connection, and the answer with it
            self._move(Event.REFUSED)
        else:
            self._move(Event.ANSWERED_LAST)
        if self._state is State.IDLE and self._ahead:
            self._loop.call_soon(self.data_received, b"")

    def _answer_shed(self, error: errors.QueueFull, *, keep: bool) -> None:
        """Refuse a request that has arrived whole because there is no room for it."""
        self._connections.count_shed(self._path)
        self._transport.write(shed_answer(error, self._published, self._cross_origin, keep=keep))
        if self._state is State.ANSWERING:
            self.answered(keep=keep)
        elif keep:
            self._since = time.monotonic()
            self._connections.wait(self)
        else:
            self._move(Event.CLOSED)

    def _refuse(self, error: errors.ConvscopeError) -> None:
        """Answer for the application, and take no further request."""
        if self._exchange is not None and self._exchange.started:
            self.abort()  # half an answer cannot become another
            return
        seconds = time.monotonic() - self._since
        status, _ = problems.STATUSES[type(error)]
        collecting = self._collected is not None
        seen = self._end_request(status)
        request = seen or self._request()
        self._transport.write(refusal(error, request, self._published, self._cross_origin))
        if isinstance(error, errors.QueueFull):
            self._connections.count_shed(self._path)
        elif seen is not None:  # the middleware counts and logs it
            seen.rejection = problems.reason(type(error))
        elif collecting:
            self._connections.metrics.count_rejection(problems.reason(type(error)))
            self._connections.count_given_up(request, status, seconds)
        else:
            self._connections.count_refusal(error, request, seconds)
        self._move(Event.CLOSED if self._state is State.IDLE else Event.REFUSED)

    def _end_request(self, status: int) -> RequestState | None:
        """End the application's part in a request that it will not answer; return its state.

        None means that the application has not seen the request.
        """
        self._end_work()
        self._collected = None
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.state.ended_with = status
            pending.end()
            return pending.state
        if self._exchange is None or self._task is None:
            return None
        state: RequestState | None = self._exchange.scope.get(SCOPE_KEY)
        if state is not None:
            state.ended_with = status
        self._exchange.disconnect()
        self._task.cancel()
        self._exchange = self._task = None
        return state

    def _give_up_collecting(self, status: int) -> None:
        """Count a request whose body was still being collected, and will not be offered."""
        if self._collected is not None:
            self._collected = None
            seconds = time.perf_counter() - self._head_at
            self._connections.count_given_up(self._request(), status, seconds)

    def _end_work(self) -> None:
        self._connections.working -= self._at_work
        self._at_work = False

    def _request(self) -> RequestState:
        """Return the facts about a request that the application has not seen."""
        return RequestState(self._method, self._path, request_id_of(self._headers))

    @property
    def _cross_origin(self) -> bytes:
        """Headers that let the page which sent the request read its refusal, if it may."""
        cors = self._app.cors
        return cors.lines(self._headers) if cors is not None else b""

    @property
    def _published(self) -> str:
        """The request's path as its client knows it."""
        return self._app.published(self._path, self._headers, self._client)

    @property
    def _path(self) -> str:
        return self._target.partition(b"?")[0].decode("ascii", "backslashreplace")


def _address(name: object) -> ClientAddress:
    """Return host and port of a socket's name."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
