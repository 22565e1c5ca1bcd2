"""The states of a connection: their drawing, and walks through them."""

import asyncio
import re
import time
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from app.errors import QueueFull
from app.server.application import Client
from app.server.connections import Connections, Share, Shares
from app.server.protocol import TRANSITIONS, HttpProtocol, State
from app.telemetry import logs
from app.telemetry.metrics import Metrics
from app.telemetry.requests import RequestState
from bench import ROOT
from tests.conftest import MakeSettings


def test_drawing_of_the_states_is_the_code() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    (drawing,) = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", text, re.DOTALL)
    drawn = [line.strip() for line in drawing.splitlines()]
    assert drawn[0] == f"[*] --> {State.IDLE}"
    assert drawn[-1] == f"{State.CLOSED} --> [*]"
    assert sorted(drawn[1:-1]) == sorted(
        f"{state} --> {target}: {event}"
        for state, moves in TRANSITIONS.items()
        for event, target in moves.items()
    )


def test_every_state_is_explained() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert all(f"\n| {state} | " in text for state in State)


def test_every_state_can_be_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {target for moves in TRANSITIONS.values() for target in moves.values()}
    assert reached == set(State)
    assert {state for state, moves in TRANSITIONS.items() if not moves} == {State.CLOSED}


class _Transport(asyncio.Transport):
    """Takes everything that is written."""

    def __init__(self) -> None:
        super().__init__()
        self._closing = False
        self.written = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    abort = close


class _Protocol(HttpProtocol):
    """Remembers what the parsing raises, wherever it is called from."""

    raised: Exception | None = None

    def _parse(self, data: bytes) -> None:
        try:
            super()._parse(data)
        except Exception as exc:
            self.raised = exc
            raise


class _Pending:
    """A request taken whole; answered soon, or after some turns, or never."""

    def __init__(self, target: bytes, client: Client, body: bytes) -> None:
        self.state = RequestState("POST", target.decode())
        self.ended = False
        self._client = client
        self._declines = body if target == b"/wd" else None
        self._turns = {b"/w": 0, b"/ws": 3, b"/wd": 3}.get(target, -1)
        self._wait()

    def _wait(self) -> None:
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        if self._turns < 0:
            return
        if self._turns:  # then it answers, even if it was ended when the answer was on its way
            self._turns -= 1
            self._wait()
        else:
            self._answer()

    def _answer(self) -> None:
        if self._declines is None:
            self._client.reply(200, b"", b"x")
        else:
            self._client.decline(self._declines)

    def end(self) -> None:
        assert not self.ended
        self.ended = True


class _App:
    fast_paths = frozenset({"/w", "/ws", "/wn", "/wh", "/wx", "/wd"})
    most_bytes = 4
    stuck_seconds = 0.0
    cors = None
    metrics = Metrics()
    _full = QueueFull("full")

    def __init__(self, random: Random) -> None:
        self._random = random

    def stop_being_ready(self) -> None:
        raise AssertionError("nothing stops")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body if the path says so, then answer or fail."""
        while "r" in scope["path"] and (await receive()).get("more_body"):
            pass
        if "s" in scope["path"]:
            await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if "f" in scope["path"]:
            raise ValueError("as the path says")
        await send({"type": "http.response.body", "body": b"x"})

    def published(self, path: str, *_: object) -> str:
        return path

    def refusal(self, target: bytes) -> QueueFull | None:
        return self._full if b"w" in target and self._random.random() < 0.05 else None

    def handler(self, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> "_Handler | None":
        """Take what the path says."""
        assert (b"host", b"x") in headers
        return _Handler(self, target) if target != b"/wx" else None


class _Handler:
    def __init__(self, app: "_App", target: bytes) -> None:
        self._app = app
        self._target = target

    @property
    def refusal(self) -> QueueFull | None:
        return self._app.refusal(self._target)

    def begin(self, body: bytes, started: float, client: Client) -> _Pending | None:
        """Take what the path says."""
        assert len(body) <= _App.most_bytes
        assert started <= time.perf_counter()
        return None if self._target == b"/wn" else _Pending(self._target, client, body)


_LINES = [b"GET /%s HTTP/1.1", b"POST /%s HTTP/1.1", b"HEAD /%s HTTP/1.1", b"POST /%s HTTP/1.0"]
_ODD_LINES = [b"GET /%s HTTP/2.0", b"SETUP /%s RTSP/1.0", b"CONNECT %s:1 HTTP/1.1", b"%s"]
_PATHS = [b"", b"r", b"s", b"rs", b"f", b"rf", b"0" * 32, b"w", b"ws", b"wn", b"wh", b"wx", b"wd"]
_HEADERS = [b"Expect: 100-continue", b"Connection: close", b"X: " + b"a" * 9000]
_OFFER = b"Connection: Upgrade\r\nUpgrade: h2c"
_BODIES = [
    (b"X: y", b""),
    (b"Content-Length: 5", b"hello"),
    (b"Content-Length: 0005", b"hello"),
    (b"Content-Length: 4", b"body"),
    (b"Content-Length: 3", b"abc"),
    (b"Content-Length: " + b"0" * 5000 + b"5", b"hello"),
    (b"Transfer-Encoding: chunked", b"0\r\n\r\n"),
    (b"Transfer-Encoding: chunked", b"0" * 80 + b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n"),
    (b"Transfer-Encoding: chunked", b"1\r\nx\r\n" * 9000 + b"0\r\n\r\n"),
    (b"Transfer-Encoding: chunked", b"zz\r\n\r\n"),
]


def _request(random: Random) -> bytes:
    """Return a request; one in five has a fault."""
    line = random.choice(_LINES if random.random() < 0.9 else _ODD_LINES) % random.choice(_PATHS)
    framing, body = random.choice(_BODIES)
    headers = [b"Host: x", framing, *random.choices([*_HEADERS, _OFFER], k=random.randrange(3))]
    request = b"\r\n".join([line, *headers, b"", body])
    if random.random() < 0.1:
        place = random.randrange(len(request))
        request = request[:place] + random.randbytes(random.randrange(3)) + request[place + 1 :]
    return request


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(400))
async def test_no_bytes_in_any_packets_raise_an_error(
    make_settings: MakeSettings, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk through the states: requests and faults, cut anywhere, on a worker at times full."""
    random = Random(seed)
    monkeypatch.setattr(logs, "write_request", lambda *_: None)
    connections = Connections(make_settings(), Metrics(), 10, Share(Shares(1), 0), _App.fast_paths)
    connection, transport = _Protocol(_App(random), connections, {}), _Transport()
    connection.connection_made(transport)
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
    requests = [_request(random) for _ in range(6)]
    if random.random() < 0.5:  # the same head again and again, each request a packet
        requests = [request for request in requests for _ in range(random.randrange(1, 4))]
    whole = random.random() < 0.5
    sent = b"".join(requests)
    waits = b"POST /wh " in sent  # for an answer that never comes
    while sent and not transport.is_closing():
        size = len(requests.pop(0)) if whole else random.choice([1, 10, 64, 1000, 40_000])
        busy = connections.settings.max_requests * (random.random() < 0.1)
        connections.working += busy
        connection.data_received(sent[:size])
        connections.working -= busy
        sent = sent[size:]
        for _ in range(random.randrange(4)):
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    await asyncio.sleep(0)
    assert connection.raised is None
    assert not troubles
    assert transport.written.startswith(b"HTTP/1.1 ") or (not transport.written and waits)
    assert not connections.working
    assert not connections.count
