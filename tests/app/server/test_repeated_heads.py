"""A request whose head repeats the last one is answered as on a connection of its own."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from app.api.fast_paths import MAX_BYTES
from app.main import Application
from bench.harness.requests import head
from tests.conftest import Connect
from tests.support.answers import Answer, read_answer
from tests.support.applications import application_of
from tests.support.artifacts import solid
from tests.support.fakes import RecordingBackend
from tests.support.pictures import as_png
from tests.support.servers import sockets

pytestmark = pytest.mark.anyio

RED, BLUE = (as_png(solid(label)[0]) for label in ("red", "blue"))
LIVE, LAST = head("GET /health/live"), head("GET /health/live", "Connection: close")


def _post(
    body: bytes = RED,
    *headers: str,
    line: str = "POST /predict HTTP/1.1",
    length: str | None = None,
) -> bytes:
    lines = [
        line,
        "Host: x",
        f"Content-Length: {len(body) if length is None else length}",
        "Content-Type: image/png",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True)
class Sent:
    """Requests sent together: in one packet, or in two with so many bytes in the first."""

    requests: Sequence[bytes]
    cut: int = 0


Turn = bytes | Sent


def _sent(turn: Turn) -> Sent:
    return turn if isinstance(turn, Sent) else Sent([turn])


async def _converse(port: int, turns: Sequence[Turn]) -> list[Answer]:
    """Return the answers on one connection, or the next one where the server ends it."""
    answers: list[Answer] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for turn in [*map(_sent, turns), Sent([LAST])]:
        if answers and answers[-1].is_last:
            if turn.requests == [LAST]:
                break
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = b"".join(turn.requests)
        for packet in filter(None, (data[: turn.cut], data[turn.cut :])):
            writer.write(packet)
            for _ in range(3):  # the server, in the same loop, reads it
                await asyncio.sleep(0)
        for _ in turn.requests:
            answers.append(await read_answer(reader))
            if answers[-1].is_last:
                assert await reader.read() == b""
    writer.close()
    return answers


async def _alone(port: int, turns: Sequence[Turn]) -> list[Answer]:
    """Return the answers to the same requests, each on a connection of its own."""
    requests = [request for turn in turns for request in _sent(turn).requests]
    answers = [await _converse(port, [request]) for request in requests]
    return [first for first, *_ in answers[:-1]] + answers[-1]


def _looked_up(client: httpx.AsyncClient) -> list[bytes]:
    """Return a list that will hold the target of every head that the application looks at."""
    paths = application_of(client).framework.state.fast_paths
    find, targets = paths.handler, list[bytes]()

    def handler(target: bytes, headers: Any) -> Any:
        targets.append(target)
        return find(target, headers)

    paths.handler = handler
    return targets


FIRST = _post()
LONG = f"X: {'a' * 2048}"
ODD_LENGTHS = ["+5", "5 ", "5a", "0x5", "", "-1", "5" * 25, "\N{SUPERSCRIPT TWO}", "5_0", "5, 5"]


@pytest.mark.parametrize(
    ("turns", "heads"),
    [
        pytest.param([FIRST, FIRST], 1, id="twice"),
        pytest.param([FIRST, FIRST, FIRST], 1, id="three times"),
        pytest.param([FIRST, _post(BLUE.ljust(5000, b"\0")), FIRST], 1, id="another length"),
        pytest.param([FIRST, _post(b"no image at all"), FIRST], 1, id="no image"),
        pytest.param([FIRST, _post(b""), FIRST], 1, id="no body"),
        pytest.param([FIRST, _post(length=f"{len(RED):019}"), FIRST], 1, id="zeros"),
        pytest.param([FIRST, _post(length=f"{len(RED):020}"), FIRST], 3, id="20 digits"),
        pytest.param([FIRST, _post(length=f"{len(RED):021}")], 1, id="21 digits"),
        pytest.param([FIRST, _post(line="POST /predict?top_k=1 HTTP/1.1")], 2, id="query"),
        pytest.param([FIRST, _post(line="POST /predict?top_k=0 HTTP/1.1")], 2, id="bad query"),
        pytest.param([_post(RED, "X-Request-ID: a"), _post(RED, "X-Request-ID: b")], 2, id="id"),
        pytest.param([FIRST, _post(RED, "X-Request-Timeout-Ms: soon")], 2, id="bad header"),
        pytest.param([FIRST, _post(line="PUT /predict HTTP/1.1")], 1, id="method"),
        pytest.param([FIRST, _post(line="POST /predict HTTP/1.0")], 2, id="version"),
        pytest.param([FIRST, Sent([FIRST], 30), FIRST], 2, id="head in two packets"),
        pytest.param([FIRST, Sent([FIRST], len(FIRST) - len(RED))], 2, id="head, then body"),
        pytest.param([FIRST, Sent([FIRST], len(FIRST) - 1)], 2, id="last byte later"),
        pytest.param([Sent([FIRST, FIRST])], 1, id="two in a packet"),
        pytest.param([Sent([FIRST, FIRST, FIRST])], 2, id="three in a packet"),
        pytest.param([FIRST, _post(RED.ljust(MAX_BYTES, b"\0"))], 1, id="largest offer"),
        pytest.param([FIRST, _post(RED.ljust(MAX_BYTES + 1, b"\0")), FIRST], 2, id="no offer"),
        pytest.param([FIRST, _post(length=str(len(RED) - 1))], 2, id="too short a length"),
        pytest.param([FIRST, FIRST + b"x"], 2, id="a byte too many"),
        pytest.param([_post(RED, "Connection: close")] * 2, 2, id="close"),
        pytest.param(
            [_post(RED, "Connection: keep-alive", line="POST /predict HTTP/1.0")] * 2,
            2,
            id="HTTP/1.0",
        ),
        pytest.param([FIRST, LIVE, FIRST, FIRST], 2, id="GET between"),
        pytest.param(
            [FIRST, _post(line="POST /explain HTTP/1.1"), FIRST, FIRST], 2, id="explain between"
        ),
        pytest.param([_post(RED, LONG), _post(BLUE, LONG)], 2, id="long head"),
        pytest.param([FIRST, _post(RED, f"Content-Length: {len(RED)}")], 1, id="two lengths"),
        pytest.param([FIRST, _post(RED, "Transfer-Encoding: chunked")], 1, id="two framings"),
        pytest.param([FIRST, FIRST.replace(b"Content-Length", b"content-length")], 2, id="case"),
        *(pytest.param([FIRST, _post(length=odd)], None, id=f"[{odd}]") for odd in ODD_LENGTHS),
    ],
)
async def test_head_that_may_repeat_the_last_one_is_answered_as_on_a_fresh_connection(
    connect: Connect, turns: Sequence[Turn], heads: int | None
) -> None:
    async with connect(RecordingBackend()) as client, sockets(client) as (port, connections):
        looked_up = _looked_up(client)
        together = await _converse(port, turns)
        assert heads in (len(looked_up), None)  # the others were not parsed
        alone = await _alone(port, turns)
        assert connections.working == 0
    assert [answer.comparable for answer in together] == [answer.comparable for answer in alone]
    assert together[0].status == 200
    made_up = [answer.made_up_id for answer in together if answer.made_up_id is not None]
    assert len(set(made_up)) == len(made_up)


def _request(random: Random, heads: Sequence[Callable[[bytes], bytes]]) -> bytes:
    if random.random() < 0.1:
        return LIVE
    body = random.choice([RED, BLUE, RED.ljust(3000, b"\0"), b"no image", b"", RED[:40]])
    return random.choice(heads)(body)


def _head(random: Random) -> Callable[[bytes], bytes]:
    """Return one of the heads of a walk; some differ in little, some have faults."""
    query = random.choice(["", "", "?top_k=1", "?top_k=2&version=1", "?top_k=x"])
    version = random.choice(["1.1"] * 9 + ["1.0"])
    method = random.choice(["POST"] * 9 + ["PUT"])
    headers = random.choice(
        [[], [], ["X-Request-ID: a"], ["X-Request-ID: b"], ["Connection: close"], [LONG]]
    )
    digits = random.choice([0, 0, 6, 19, 20, 21])

    def make(body: bytes) -> bytes:
        line = f"{method} /predict{query} HTTP/{version}"
        return _post(body, *headers, line=line, length=f"{len(body):0{digits}}")

    return make


def _turn(random: Random, heads: Sequence[Callable[[bytes], bytes]]) -> Turn:
    request = _request(random, heads)
    if random.random() < 0.3:
        return Sent([request], random.randrange(len(request)))
    return request


@pytest.mark.parametrize("inference", ["loop", "thread"])
@pytest.mark.parametrize("seed", range(10))
async def test_requests_in_any_order_are_answered_as_on_fresh_connections(
    connect: Connect, inference: str, seed: int
) -> None:
    random = Random(seed)
    serving = connect(RecordingBackend(), inference=inference)
    async with serving as client, sockets(client) as (port, connections):
        for _ in range(5):
            heads = [_head(random) for _ in range(2)]
            turns = [_turn(random, heads) for _ in range(12)]
            together, alone = await _converse(port, turns), await _alone(port, turns)
            assert [answer.comparable for answer in together] == [
                answer.comparable for answer in alone
            ]
        assert connections.working == 0
        metrics = (await client.get("/metrics")).text
    assert "convscope_http_requests_in_flight 1.0" in metrics  # the one that asks


async def test_application_is_told_each_requests_own_content_length(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated head is left to ASGI where the handler does not take its request."""
    lengths: list[bytes] = []
    call = Application.__call__

    async def called(app: Application, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/predict":
            lengths.append(dict(scope["headers"])[b"content-length"])
        await call(app, scope, receive, send)

    monkeypatch.setattr(Application, "__call__", called)
    bodies = [b"no image", b"no image either", b""]
    async with connect(RecordingBackend()) as client, sockets(client) as (port, _):
        await _converse(port, [FIRST, *map(_post, bodies)])
    assert lengths == [b"%d" % len(body) for body in bodies]
