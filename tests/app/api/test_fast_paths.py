"""A prediction that is answered on the fast path is answered as FastAPI does."""

import asyncio
import base64
import logging
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.api.fast_paths import MAX_BYTES, PATHS
from app.server.connections import Connections
from bench.harness.requests import end_of_form, form_type, message, part
from tests.conftest import Connect, Picture
from tests.support.answers import read_answer
from tests.support.applications import application_of
from tests.support.fakes import (
    FailingBackend,
    HeldBackend,
    RecordingBackend,
    SlowBackend,
    black,
)
from tests.support.pictures import as_file
from tests.support.servers import sockets

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}


@asynccontextmanager
async def _fast(
    client: httpx.AsyncClient,
) -> AsyncIterator[tuple[httpx.AsyncClient, list[bool], Connections]]:
    """Yield a client on a socket, and whether each request it sends is taken by the fast path."""
    paths = application_of(client).framework.state.fast_paths
    find, taken = paths.handler, list[bool]()

    def recorded(*head: Any) -> Any:
        handler = find(*head)
        if handler is None:
            taken.append(False)
            return None
        begin = handler.begin

        def begun(body: bytes, started: float, client: Any) -> Any:
            prediction = begin(body, started, client)
            taken.append(prediction is not None)
            place = len(taken) - 1

            def declined(body: bytes) -> None:
                taken[place] = False
                type(client).decline(client, body)

            client.decline = declined
            return prediction

        handler.begin = begun
        return handler

    paths.handler = recorded
    async with sockets(client) as (port, connections):
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as fast:
            yield fast, taken, connections


def _comparable(response: httpx.Response) -> tuple[Any, ...]:
    content = response.json()
    content.pop("request_id", None)
    ours = {"x-request-id", "server-timing", "content-length", "date"}
    return (
        response.status_code,
        content,
        {*response.headers.items()}
        - {(name, value) for name, value in response.headers.items() if name in ours},
    )


@pytest.mark.parametrize(
    ("query", "headers", "body", "taken"),
    [
        ("", PNG, "red", True),
        ("?top_k=2&model=colour&version=1", {}, "green", True),
        ("?model=&version=", PNG, "red", True),
        ("?coverage=0.9", PNG, "red", False),
        ("", {**PNG, "X-Request-Timeout-Ms": "9000"}, "red", True),
        ("?top_k=0", PNG, "red", False),
        ("?top_k=99", PNG, "red", False),
        ("?top_k=x&coverage=7", PNG, "red", False),
        ("?top_k=1&top_k=2", PNG, "red", False),
        ("?topk=1", PNG, "red", False),
        ("?sets=best", PNG, "red", False),
        ("?model=cats", PNG, "red", False),
        ("", PNG, "", False),
        ("", PNG, "no image", False),
        ("", {"Content-Type": "text/plain"}, "red", False),
        ("", {**PNG, "Content-Encoding": "gzip"}, "red", False),
        ("", {**PNG, "X-Request-Timeout-Ms": "soon"}, "red", False),
    ],
)
async def test_prediction_is_answered_as_by_fastapi(
    connect: Connect,
    picture: Picture,
    query: str,
    headers: dict[str, str],
    body: str,
    taken: bool,
) -> None:
    content = picture(body) if body in {"red", "green"} else body.encode()
    async with connect() as slow, _fast(slow) as (fast, offers, _):
        answers = [
            await asked.post(f"/predict{query}", content=content, headers=headers)
            for asked in (fast, slow)
        ]
    assert _comparable(answers[0]) == _comparable(answers[1])
    assert answers[0].status_code == 200 or not taken
    assert offers == [taken]


async def test_form_and_json_of_one_small_image_are_answered_as_by_fastapi(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    red = picture("red")
    bodies: list[tuple[dict[str, Any], bool]] = [
        ({"files": {"file": ("r.png", red)}}, True),
        ({"json": {"images": [base64.b64encode(red).decode()]}}, True),
        (
            {
                "content": b'{"images": ["%s"]}' % base64.encodebytes(red),
                "headers": {"Content-Type": "application/json"},
            },
            True,
        ),
        (
            {
                "content": part('name="file"', red).replace(b"\r\n", b" \t\r\n", 1) + end_of_form(),
                "headers": {"Content-Type": form_type()},
            },
            True,
        ),
        ({"files": [("file", ("r.png", red)), ("file", ("s.png", red))]}, False),
        ({"files": {"image": ("r.png", red)}}, False),
        ({"json": {"images": []}}, False),
        ({"content": picture("red", size=(200, 200))}, False),
        ({"content": picture("red", kind="TIFF")}, False),
        ({"content": picture("red", kind="JPEG")}, True),
        ({"content": picture("red", kind="JPEG")[:-2]}, False),
    ]
    async with _fast(client) as (fast, offers, _):
        for options, _taken in bodies:
            answers = [await asked.post("/predict", **options) for asked in (fast, client)]
            assert _comparable(answers[0]) == _comparable(answers[1])
    assert offers == [taken for _, taken in bodies]


async def test_larger_and_chunked_bodies_are_not_offered(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield picture("red")

    large = picture("red", kind="BMP", size=(150, 150))
    assert len(large) > MAX_BYTES
    async with _fast(client) as (fast, offers, _):
        for content in (large, pieces()):
            answer = await fast.post("/predict", content=content)
            assert answer.json()["predictions"][0]["label"] == "red"
    assert offers == []


async def test_requests_are_counted_by_the_same_route(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    async with _fast(client) as (fast, offers, _):
        for asked in (client, fast):
            await asked.post("/predict", content=picture("red"))
        metrics = (await client.get("/metrics")).text
    assert offers == [True]
    for name, labels in {
        "http_requests_total": '{method="POST",route="/predict",status="200"}',
        "http_request_duration_seconds_count": '{method="POST",route="/predict"}',
        "predictions_total": '{label="red",model="colour",version="2"}',
        "queue_seconds_count": '{model="colour",version="2"}',
        "decode_seconds_count": "",
        "read_seconds_count": "",
    }.items():
        assert f"convscope_{name}{labels} 2.0" in metrics


async def test_every_fast_path_is_documented(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert all("post" in paths[path] for path in PATHS)


async def test_answer_that_is_late_is_a_504(connect: Connect, picture: Picture) -> None:
    backend = HeldBackend()
    headers = {"X-Request-Timeout-Ms": "50", "X-Request-ID": "late"}
    async with connect(backend) as client, _fast(client) as (fast, offers, _):
        answer = await fast.post("/predict", content=picture("red"), headers=headers)
        backend.release.set()
        metrics = (await client.get("/metrics")).text
    assert offers == [True]
    assert answer.status_code == 504
    assert answer.json()["detail"] == "no answer within 0.05 s"
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "late"
    assert 'convscope_rejections_total{reason="deadline-exceeded"} 1.0' in metrics


@pytest.mark.parametrize("inference", ["loop", "thread"])
async def test_backend_that_fails_is_a_500_that_says_nothing_of_the_inside(
    connect: Connect, caplog: pytest.LogCaptureFixture, inference: str
) -> None:
    content = as_file(black()[0], "PNG")
    failing = connect(FailingBackend(), inference=inference)
    async with failing as client, _fast(client) as (fast, offers, _):
        answer = await fast.post("/predict", content=content, headers={"X-Request-ID": "broken"})
    assert offers == [True]
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["request_id"] == "broken"
    assert [record for record in caplog.records if record.levelno == logging.ERROR]


async def test_client_that_goes_is_counted_and_its_image_is_never_computed(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    async with connect(backend) as client, _fast(client) as (fast, offers, connections):
        first = asyncio.create_task(fast.post("/predict", content=picture("red")))
        assert await asyncio.to_thread(backend.entered.wait, 60)
        headers = {"X-Request-ID": "left"}
        leaves = asyncio.create_task(
            fast.post("/predict", content=picture("green"), headers=headers)
        )
        async with asyncio.timeout(30):
            while len(offers) < 2:
                await asyncio.sleep(0.01)
            leaves.cancel()
            while connections.working > 1:
                await asyncio.sleep(0.01)
        backend.release.set()
        assert (await first).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert offers == [True, True]
    assert [len(batch) for batch in backend.batches] == [1]
    count = 'convscope_http_requests_total{method="POST",route="/predict",status="499"} 1.0'
    assert count in metrics
    assert 'convscope_queue_images{model="colour",version="2"} 0.0' in metrics


@pytest.mark.parametrize(
    "failing", ["app.api.fast_paths.decode", "app.tasks.classification.Interpreter.render"]
)
async def test_failure_of_our_own_is_a_500_and_the_next_request_is_answered(
    client: httpx.AsyncClient,
    picture: Picture,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("of the inside")

    async with _fast(client) as (fast, offers, connections):
        with monkeypatch.context() as patch:
            patch.setattr(failing, fail)
            answer = await fast.post("/predict", content=picture("red"))
        assert answer.status_code == 500
        assert answer.json()["type"] == "about:blank"
        assert connections.working == 0
        assert (await fast.post("/predict", content=picture("red"))).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert offers == [True, True]
    for status in (500, 200):
        labels = f'{{method="POST",route="/predict",status="{status}"}}'
        assert f"convscope_http_requests_total{labels} 1.0" in metrics


@pytest.mark.parametrize("inference", ["loop", "thread"])
@pytest.mark.parametrize(
    ("broken", "status", "reason"),
    [
        (b"no image", 415, "not-an-image"),
        (as_file(black()[0], "PNG")[:40], 422, "damaged-image"),
        (as_file(black()[0], "JPEG")[:-100], 422, "damaged-image"),
    ],
)
async def test_broken_image_in_the_midst_of_a_batch_is_answered_as_by_fastapi(
    connect: Connect, picture: Picture, inference: str, broken: bytes, status: int, reason: str
) -> None:
    backend = RecordingBackend()
    bodies = [*map(picture, ("red", "green", "blue")), broken, picture("cyan"), picture("red")]
    serving = connect(backend, inference=inference)
    async with serving as client, sockets(client) as (port, connections):
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in bodies]
        for _ in range(2):  # on the same connections, with the same heads
            for (_, writer), body in zip(streams, bodies, strict=True):
                writer.write(message("POST /predict", body))
            answers = [await read_answer(reader) for reader, _ in streams]
            assert [answer.status for answer in answers] == [200] * 3 + [status] + [200] * 2
            labels = [
                answer.content["predictions"][0]["label"]
                for answer in answers
                if answer.status == 200
            ]
            assert labels == ["red", "green", "blue", "cyan", "red"]
        assert connections.working == 0
        metrics = (await client.get("/metrics")).text
        routed = await client.post("/predict", content=broken)
        for _, writer in streams:
            writer.close()
    assert routed.json() | {"request_id": answers[3].content["request_id"]} == answers[3].content
    assert routed.headers["content-type"] == answers[3].headers["content-type"]
    assert "convscope_http_requests_in_flight 1.0" in metrics  # the one that asks
    for name, count in {
        'http_requests_total{method="POST",route="/predict",status="200"}': 10,
        f'http_requests_total{{method="POST",route="/predict",status="{status}"}}': 2,
        'http_request_duration_seconds_count{method="POST",route="/predict"}': 12,
        f'rejections_total{{reason="{reason}"}}': 2,
        'predictions_total{label="red",model="colour",version="2"}': 4,
        "decode_seconds_count": 10,
        'queue_images{model="colour",version="2"}': 0,
    }.items():
        assert f"convscope_{name} {count}.0" in metrics
    assert sum(map(len, backend.batches)) == 10
    assert len(backend.batches) < 10  # some were computed together


@pytest.mark.parametrize("inference", ["loop", "thread"])
async def test_clients_that_leave_at_any_moment_are_counted_once_and_leave_nothing(
    connect: Connect, picture: Picture, inference: str
) -> None:
    body, clients = picture("red"), 90
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    backend = SlowBackend(0.004)

    async def leave(port: int, after: float | None) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        if after is None:
            assert (await reader.read(12)).endswith(b" 200")
        else:
            await asyncio.sleep(after)
        writer.close()

    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
    serving = connect(backend, inference=inference, max_batch=4, max_wait_ms=60_000)
    async with serving as client, sockets(client) as (port, connections):
        moments = random.Random(0)
        for _ in range(4):
            async with asyncio.timeout(30):
                await asyncio.gather(
                    # On a slow machine, only one that waits gets an answer.
                    leave(port, after=None),
                    *(leave(port, moments.uniform(0, 0.05)) for _ in range(clients - 1)),
                )
                while connections.count or connections.working:
                    await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        metrics = (await client.get("/metrics")).text
    counted = re.findall(r"^convscope_http_requests_total\{.*POST.*\} (\d+)", metrics, re.MULTILINE)
    assert sum(map(int, counted)) == 4 * clients
    assert len(counted) == 2  # some with 200, some with 499
    assert "convscope_http_requests_in_flight 1.0" in metrics  # the one that asks
    assert 'convscope_queue_images{model="colour",version="2"} 0.0' in metrics
    assert not troubles
