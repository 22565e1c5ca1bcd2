"""A model with as much to do as it may have refuses further requests; other models do not."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httptools
import pytest
from starlette.types import Receive, Scope, Send

from app.main import Application
from app.problems import Problem
from app.server.connections import Connections
from bench.harness.requests import head, message
from tests.conftest import Connect, Picture
from tests.support.answers import Answer, read_answer
from tests.support.fakes import HeldBackend, SlowBackend
from tests.support.servers import sockets

pytestmark = pytest.mark.anyio


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> bytearray:
    """All that the server's parsers are fed, and the paths of all requests answered by ASGI."""
    fed = bytearray()

    class Parser(httptools.HttpRequestParser):
        def feed_data(self, data: Any) -> None:
            fed.extend(data)
            super().feed_data(data)

    call = Application.__call__

    async def called(app: Application, scope: Scope, receive: Receive, send: Send) -> None:
        fed.extend(scope.get("raw_path", b""))
        await call(app, scope, receive, send)

    monkeypatch.setattr(httptools, "HttpRequestParser", Parser)
    monkeypatch.setattr(Application, "__call__", called)
    return fed


class Browser:
    """A connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def ask(self, request: bytes) -> Answer:
        self.writer.write(request)
        return await read_answer(self._reader)


@asynccontextmanager
async def _browsers(port: int, count: int) -> AsyncIterator[list[Browser]]:
    opened = [Browser(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(count)]
    yield opened
    for browser in opened:
        browser.writer.close()


async def _until_waiting(browsers: list[Browser], request: bytes, backend: HeldBackend) -> None:
    """Send a request on each connection; one is held by the backend, the others wait for it."""
    browsers[0].writer.write(request)
    assert await asyncio.to_thread(backend.entered.wait, 10)
    for browser in browsers[1:]:
        browser.writer.write(request)


async def _until_taken(connections: Connections, requests: int) -> None:
    async with asyncio.timeout(10):
        while connections.working < requests:
            await asyncio.sleep(0)


def _check_refusal(answer: Answer, detail: str) -> None:
    assert answer.status == 503
    problem = Problem.model_validate_json(answer.body)
    assert problem.type == "urn:convscope:problem:queue-full"
    assert problem.detail == detail
    assert problem.instance == "/predict"
    assert problem.request_id == answer.headers["x-request-id"]
    assert answer.headers["retry-after"] == "1"
    assert not answer.is_last


async def test_full_models_posts_are_refused_unparsed_and_their_connections_stay(
    connect: Connect, picture: Picture, parsed: bytearray
) -> None:
    backend = HeldBackend()
    backend.release.set()
    post = message("POST /predict", picture("red"))
    others = [
        message("POST /predict", picture("red"), "X-Request-ID: other"),  # another head
        message("POST /predict?version=1", picture("red")),  # another model
    ]
    async with (
        connect(backend, queue_capacity=2, max_images=1) as client,
        sockets(client) as (port, connections),
        _browsers(port, 5) as (asking, other, *busy),
    ):
        assert (await asking.ask(post)).status == 200
        backend.release.clear()
        backend.entered.clear()
        await _until_waiting(busy, post, backend)
        await _until_taken(connections, len(busy))
        parsed.clear()
        for request in (post, post, others[0], post):
            _check_refusal(await asking.ask(request), "2 images wait; that is the limit")
        assert not parsed
        assert (await asking.ask(head("GET /health/live"))).status == 200
        elsewhere = asyncio.create_task(other.ask(others[1]))
        await _until_taken(connections, len(busy) + 1)
        backend.release.set()
        assert (await elsewhere).status == 200
        for browser in busy:
            assert (await browser.ask(b"")).status == 200
        assert connections.working == 0
        for request in (post, post, *others):
            assert (await asking.ask(request)).status == 200
        metrics = (await client.get("/metrics")).text
    refused = 'convscope_http_requests_total{method="POST",route="/predict",status="503"} 4.0'
    assert refused in metrics
    assert 'convscope_rejections_total{reason="queue-full"} 4.0' in metrics
    assert 'convscope_queue_images{model="colour",version="2"} 0.0' in metrics
    assert sum(map(len, backend.batches)) == 1 + len(busy) + 1 + 4


@pytest.mark.parametrize(("header", "missing"), [("Connection: close", 0), ("X: y", 5)])
async def test_full_model_ends_the_connection_if_asked_to_or_while_a_body_arrives(
    connect: Connect, picture: Picture, header: str, missing: int
) -> None:
    backend = HeldBackend()
    post = message("POST /predict", picture("red"))
    async with (
        connect(backend, queue_capacity=1, max_images=1) as client,
        sockets(client) as (port, connections),
        _browsers(port, 3) as (asking, *busy),
    ):
        await _until_waiting(busy, post, backend)
        await _until_taken(connections, len(busy))
        request = message("POST /predict", picture("red"), header)
        answer = await asking.ask(request[: len(request) - missing])
        assert (answer.status, answer.is_last) == (503, True)
        backend.release.set()
        for browser in busy:
            assert (await browser.ask(b"")).status == 200


async def test_body_that_ends_when_its_model_is_full_is_refused(
    connect: Connect, picture: Picture
) -> None:
    """Its head came while there was room."""
    backend = HeldBackend()
    post = message("POST /predict", picture("red"))
    serving = connect(backend, inference="thread", max_batch=1, max_images=1, max_wait_ms=100)
    async with (
        serving as client,
        sockets(client) as (port, connections),
        _browsers(port, 4) as (asking, *busy),
    ):
        busy[0].writer.write(post)
        await asyncio.sleep(0.2)  # an image takes longer than the bound
        backend.release.set()
        assert (await busy[0].ask(b"")).status == 200
        backend.release.clear()
        backend.entered.clear()
        asking.writer.write(post[:-5])
        await asyncio.sleep(0.1)
        await _until_waiting(busy, post, backend)
        await _until_taken(connections, len(busy))
        answer = await asking.ask(post[-5:])
        _check_refusal(answer, "an image would wait for longer than 100 ms; that is the limit")
        backend.release.set()
        for browser in busy:
            assert (await browser.ask(b"")).status == 200
    assert sum(map(len, backend.batches)) == 1 + len(busy)


@pytest.mark.parametrize("inference", ["loop", "thread"])
async def test_burst_gets_answers_that_are_not_late_and_refusals(
    connect: Connect, picture: Picture, inference: str
) -> None:
    """At 20 images a second, the last of the burst would wait for 4 seconds."""
    post = message("POST /predict", picture("red"))
    elsewhere = message("POST /predict?version=1", picture("red"))
    serving = connect(SlowBackend(0.1), inference=inference, max_batch=2, max_wait_ms=300)
    async with (
        serving as client,
        sockets(client) as (port, _),
        _browsers(port, 81) as (other, *browsers),
    ):
        assert (await other.ask(elsewhere)).status == 200
        for browser in browsers[:8]:  # from which the rate is learnt
            browser.writer.write(post)
        for browser in browsers[:8]:
            assert (await browser.ask(b"")).status == 200
        started = time.monotonic()

        async def ask(browser: Browser) -> tuple[Answer, float]:
            return await browser.ask(post), time.monotonic() - started

        burst = [asyncio.create_task(ask(browser)) for browser in browsers]
        await asyncio.wait(burst, return_when=asyncio.FIRST_COMPLETED)
        assert (await other.ask(elsewhere)).status == 200
        answers = await asyncio.gather(*burst)
        after = [await browser.ask(post) for browser in browsers[-2:]]
    accepted = [seconds for answer, seconds in answers if answer.status == 200]
    refused = [answer for answer, _ in answers if answer.status != 200]
    assert len(accepted) >= 2
    assert max(accepted) < 2.5
    assert refused
    for answer in refused:
        _check_refusal(answer, "an image would wait for longer than 300 ms; that is the limit")
    assert [answer.status for answer in after] == [200, 200]
