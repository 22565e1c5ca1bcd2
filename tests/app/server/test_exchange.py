"""The server as an ASGI application sees it: its scope, its events and its answers."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.middleware import RequestMiddleware
from app.problems import Problem
from app.server.chunks import ChunkedBody
from app.server.connections import Connections, Share, Shares
from app.server.exchange import BUFFERED_BYTES
from app.server.protocol import HttpProtocol
from app.telemetry import logs
from app.telemetry.metrics import Metrics
from app.telemetry.requests import STARTED_KEY
from tests.conftest import MakeSettings
from tests.support.applications import AsgiOnly

pytestmark = pytest.mark.anyio

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
START: Message = {"type": "http.response.start", "status": 200, "headers": []}


def _body(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _start(status: int = 200, **headers: bytes) -> Message:
    pairs = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


@pytest.fixture
def connections(make_settings: MakeSettings) -> Connections:
    return Connections(make_settings(), Metrics(), 10, Share(Shares(1), 0), paths=())


@asynccontextmanager
async def _connected(app: ASGIApp, connections: Connections) -> AsyncIterator[Streams]:
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpProtocol(AsgiOnly(app), connections, {"opened": "once"}),
        "127.0.0.1",
        0,
    )
    async with server, asyncio.timeout(20):
        streams = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        try:
            yield streams
        finally:
            streams[1].close()


async def _ask(app: ASGIApp, connections: Connections, sent: bytes) -> bytes:
    """Send bytes, and return all that is received until the server closes."""
    async with _connected(app, connections) as (reader, writer):
        writer.write(sent)
        return await reader.read()


def _sends(*messages: Message) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        for message in messages:
            await send(message)

    return app


def _get(method: str = "GET", version: str = "1.1") -> bytes:
    return f"{method} /a HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


def _headers(received: bytes) -> list[bytes]:
    return received.partition(b"\r\n\r\n")[0].split(b"\r\n")


async def test_application_is_told_everything_about_a_request(connections: Connections) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await _sends(START, _body(b""))(scope, receive, send)

    before = time.perf_counter()
    async with _connected(app, connections) as (reader, writer):
        writer.write(b"PUT http://y/caf%C3%A9?b=%20#c HTTP/1.1\r\nHost: x\r\nX-Odd: \xff\r\n\r\n")
        await reader.readuntil(b"0\r\n\r\n")
        client, server = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
    assert before < scopes[0].pop(STARTED_KEY) < time.perf_counter()
    assert scopes == [
        {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "PUT",
            "scheme": "http",
            "root_path": "",
            "path": "/café",
            "raw_path": b"/caf%C3%A9",
            "query_string": b"b=%20",
            "headers": [(b"host", b"x"), (b"x-odd", b"\xff")],
            "client": client,
            "server": server,
            "state": {"opened": "once"},
        }
    ]


async def test_answer_of_unknown_length_goes_out_in_chunks_as_they_come(
    connections: Connections,
) -> None:
    more = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        await send(START)
        await send(_body(b"one", more=True))
        await more.wait()
        await send(_body(b"", more=True))
        await send(_body(b"two", more=True))
        await send(_body(b""))

    async with _connected(app, connections) as (reader, writer):
        writer.write(_get())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"\r\ntransfer-encoding: chunked\r\n" in head
        assert await reader.readuntil(b"one\r\n") == b"3\r\none\r\n"
        more.set()
        assert await reader.read() == b"3\r\ntwo\r\n0\r\n\r\n"


async def test_old_client_finds_the_end_of_an_answer_by_the_connections_end(
    connections: Connections,
) -> None:
    app = _sends(START, _body(b"one", more=True), _body(b"two"))
    received = await _ask(app, connections, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"\r\nconnection: close" in head
    assert body == b"onetwo"


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_answer_without_a_body_has_none(
    connections: Connections, method: str, status: int
) -> None:
    app = _sends(_start(status, content_length=b"4"), _body(b"four"))
    received = await _ask(app, connections, _get(method))
    assert received.endswith(b"\r\n\r\n")
    assert b"content-length: 4" in _headers(received)


async def test_answer_carries_the_date_and_names_no_server(connections: Connections) -> None:
    received = await _ask(_sends(_start(299), _body(b"")), connections, _get())
    first, *headers = _headers(received)
    assert first == b"HTTP/1.1 299 "
    assert connections.date_header == b"%b\r\n" % headers[0]
    assert headers[0].startswith(b"date: ")
    assert not any(header.startswith(b"server") for header in headers)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [_body(b"early")],
        [START, START],
        [_start(content_length=b"3"), _body(b"four")],
        [_start(content_length=b"5"), _body(b"four")],
        [_start(x=b"a\r\nb: c")],
        [_start(transfer_encoding=b"chunked"), _body(b"")],
        [{"type": "http.response.start", "status": 200, "headers": [(b"a b", b"")]}],
    ],
    ids=["none", "no start", "two", "long", "short", "value", "framing", "name"],
)
async def test_answer_that_breaks_the_rules_is_an_internal_error(
    connections: Connections, messages: list[Message], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("text", "info")
    received = await _ask(_sends(*messages), connections, _get())
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    problem = Problem.model_validate_json(body)
    assert (problem.instance, problem.status) == ("/a", 500)
    assert f"x-request-id: {problem.request_id}".encode() in _headers(received)
    assert b"connection: close" in _headers(received)
    assert "RuntimeError: " in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "last", [[_body(b"123456789")], [], [START]], ids=["long", "unfinished", "start"]
)
async def test_answer_that_fails_after_its_start_is_cut_off(
    connections: Connections, last: list[Message], caplog: pytest.LogCaptureFixture
) -> None:
    app = _sends(_start(content_length=b"10"), _body(b"12345", more=True), *last)
    with caplog.at_level(logging.ERROR):
        try:
            received = await _ask(app, connections, _get())
        except ConnectionResetError:
            received = b""
    assert len(received.partition(b"\r\n\r\n")[2]) < 10
    assert "its answer is cut off" in caplog.text


async def test_nothing_may_follow_an_answer(connections: Connections) -> None:
    raised: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await _sends(START, _body(b"all"))(scope, receive, send)
        try:
            await send(_body(b"more"))
        except RuntimeError as exc:
            raised.append(str(exc))

    received = await _ask(app, connections, _get())
    assert received.endswith(b"3\r\nall\r\n0\r\n\r\n")
    assert raised == ["http.response.body was sent after the answer was complete"]


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await _sends(_start(content_length=str(len(body)).encode()), _body(body))(scope, receive, send)


POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"


async def test_leave_to_send_a_body_is_given_when_the_application_wants_it(
    connections: Connections,
) -> None:
    async with _connected(_echo, connections) as (reader, writer):
        writer.write(POST + b"Expect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"four")
        assert (await reader.readuntil(b"four")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_leave_is_not_given_if_the_body_is_not_wanted_or_has_come(
    connections: Connections,
) -> None:
    app = _sends(START, _body(b"no"))
    async with _connected(app, connections) as (reader, writer):
        writer.write(POST + b"Expect: 100-continue\r\n\r\n")
        received = await reader.read()  # the client may send the body or not: nothing can follow
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close" in _headers(received)
    async with _connected(_echo, connections) as (reader, writer):
        writer.write(POST + b"Expect: 100-continue\r\n\r\nfour")
        assert (await reader.readuntil(b"four")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_old_client_is_not_told_to_continue(connections: Connections) -> None:
    async with _connected(_echo, connections) as (reader, writer):
        writer.write(POST.replace(b"1.1", b"1.0") + b"Expect: 100-continue\r\n\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"four")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_body_whose_end_is_ambiguous_is_refused(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser finds the end of a body where `ChunkedBody` does not."""
    monkeypatch.setattr(ChunkedBody, "end_in", lambda _, data: len(data))
    sent = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    received = await _ask(_echo, connections, sent + _get() + b"garbage")
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"the end of the request's body is ambiguous" in received
    assert not connections.working


async def test_body_is_taken_no_faster_than_the_application_reads(
    connections: Connections,
) -> None:
    read = asyncio.Event()
    largest = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal largest
        await read.wait()
        size, more = 0, True
        while more:
            message = await receive()
            largest = max(largest, len(message["body"]))
            size, more = size + len(message["body"]), message["more_body"]
        await _sends(START, _body(str(size).encode()))(scope, receive, send)

    size = 30_000_000
    async with _connected(app, connections) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(bytes(size))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.5)
        read.set()
        await reader.readuntil(b"8\r\n30000000\r\n0\r\n\r\n")
    assert largest <= BUFFERED_BYTES + (256 << 10)


async def test_application_writes_no_faster_than_the_client_reads(
    connections: Connections,
) -> None:
    written = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        nonlocal written
        await send(START)
        for _ in range(100):
            await send(_body(bytes(1 << 20), more=True))
            written += 1
        await send(_body(b"end"))

    async with _connected(app, connections) as (reader, writer):
        writer.write(_get())
        await asyncio.sleep(0.5)
        assert written < 50
        while not (await reader.read(1 << 20)).endswith(b"end\r\n0\r\n\r\n"):
            pass
    assert written == 100


async def test_application_is_told_that_the_answer_is_no_longer_wanted(
    connections: Connections,
) -> None:
    told: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await _sends(START, _body(b""))(scope, receive, send)
        told.append(await receive())

    async with _connected(app, connections) as (reader, writer):
        writer.write(_get())
        await reader.read()
    assert told == [{"type": "http.disconnect"}]


async def test_request_is_ended_when_its_client_goes(connections: Connections) -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async with _connected(app, connections) as (_, writer):
        writer.write(_get())
        while not connections.tasks:
            await asyncio.sleep(0.01)
        writer.close()
        await ended.wait()
    assert not connections.count


async def test_requests_that_take_too_long_at_shutdown_are_refused(
    connections: Connections,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        await asyncio.sleep(60)

    async with _connected(app, connections) as (reader, writer):
        writer.write(POST + b"\r\nfour")
        while not connections.working:
            await asyncio.sleep(0.01)
        connections.closing = True
        connections.give_up()
        received = await reader.read()
    assert received.startswith(b"HTTP/1.1 503 ")
    assert b'"urn:convscope:problem:shutting-down"' in received
    assert not connections.working


async def test_requests_sent_ahead_are_answered_at_shutdown_too(connections: Connections) -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await _sends(START, _body(b"done"))(scope, receive, send)

    async with _connected(app, connections) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        while not connections.tasks:
            await asyncio.sleep(0.01)
        connections.closing = True
        go_on.set()
        received = await reader.read()
    assert received.count(b"done") == 3
    assert received.count(b"connection: close") == 1


def _statuses(connections: Connections) -> list[str]:
    """Return the statuses of the requests that the middleware has counted."""
    connections.metrics.flush()
    text = generate_latest(connections.metrics.registry).decode()
    return re.findall(r'convscope_http_requests_total\{[^}]*status="(\d+)"', text)


async def test_failure_between_start_and_body_is_counted_as_it_is_answered(
    connections: Connections,
) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await _sends(_start(200))(scope, receive, send)
        raise ValueError("between start and body")

    received = await _ask(RequestMiddleware(fails, connections.metrics), connections, _get())
    assert received.startswith(b"HTTP/1.1 500 ")
    assert Problem.model_validate_json(received.partition(b"\r\n\r\n")[2]).status == 500
    assert _statuses(connections) == ["500"]


@pytest.mark.parametrize("parts", [1, 64])
async def test_client_that_does_not_read_is_counted_by_the_answer_it_got(
    connections: Connections, parts: int
) -> None:
    """It is closed while its answer waits to be read; the request behind that is not begun."""
    whole = [_body(bytes(64 << 20))]
    app = _sends(START, *(whole if parts == 1 else [_body(bytes(1 << 20), more=True)] * parts))
    async with _connected(RequestMiddleware(app, connections.metrics), connections) as streams:
        streams[1].write(_get() + _get())
        while not connections.blocked:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        (connection,) = connections.blocked
        connection.abort()
        while connections.tasks:
            await asyncio.sleep(0.01)
    assert _statuses(connections) == ["200"]
