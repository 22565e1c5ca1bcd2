"""A server that knows ASGI alone gives the answers of our own, small predictions the short way."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import Message

from app.engines.asgi import AsgiApplication
from app.problems import CLIENT_GONE
from tests.conftest import Connect, Picture
from tests.support.applications import application_of
from tests.support.fakes import HeldBackend

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}
MOVING = {"x-request-id", "server-timing"}


def whole(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """Return a client of the same application behind `AsgiApplication`."""
    transport = httpx.ASGITransport(AsgiApplication(application_of(client), 0.3))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def comparable(response: httpx.Response) -> tuple[Any, ...]:
    headers = {(k, v) for k, v in response.headers.items() if k not in MOVING}
    return response.status_code, headers, response.content


@pytest.mark.parametrize(
    ("target", "content"),
    [
        ("/predict", "red"),
        ("/predict?top_k=2", "red"),
        ("/predict?topk=2", "red"),
        ("/predict?model=none", "red"),
        ("/predict", b"no picture"),
        ("/predict", b"\x89PNG\r\n\x1a\n broken"),
        ("/predict", b""),
        ("/predict", bytes(40_000)),
        ("/detect", "red"),
    ],
)
async def test_answers_are_those_of_the_application(
    connect: Connect, picture: Picture, target: str, content: str | bytes
) -> None:
    body = picture(content) if isinstance(content, str) else content
    headers = {**PNG, "X-Request-ID": "same"}
    async with connect() as client, whole(client) as behind:
        expected = await client.post(target, content=body, headers=headers)
        found = await behind.post(target, content=body, headers=headers)
    assert comparable(found) == comparable(expected)
    assert "x-request-id" not in found.headers


async def test_small_prediction_does_not_meet_the_framework(
    connect: Connect, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect() as client, whole(client) as behind:
        monkeypatch.delattr(application_of(client), "_handle")
        assert (await behind.post("/predict", content=picture("red"))).status_code == 200
        with pytest.raises(AttributeError):
            await behind.get("/models")


async def test_body_in_pieces_is_answered(connect: Connect, picture: Picture) -> None:
    body = picture("red")

    async def pieces() -> AsyncIterator[bytes]:
        yield body[:20]
        yield body[20:]

    headers = {**PNG, "Content-Length": str(len(body))}
    async with connect() as client, whole(client) as behind:
        response = await behind.post("/predict", content=pieces(), headers=headers)
    assert response.json()["predictions"][0]["label"] == "red"


SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/predict",
    "raw_path": b"/predict",
    "query_string": b"",
    "headers": [(b"content-type", b"image/png"), (b"content-length", b"100")],
    "client": None,
}


async def answer_to(client: httpx.AsyncClient, *messages: Message) -> list[Message]:
    """Return what is sent to a client that sends these messages, and then nothing."""
    sent: list[Message] = []
    waiting = iter(messages)

    async def receive() -> Message:
        for message in waiting:
            return message
        return await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(10):
        await AsgiApplication(application_of(client), 0.3)(dict(SCOPE), receive, send)
    return sent


async def test_body_of_a_client_that_leaves_is_not_taken_for_whole(
    connect: Connect, picture: Picture
) -> None:
    part = {"type": "http.request", "body": picture("red"), "more_body": True}
    async with connect() as client:
        await answer_to(client, part, {"type": "http.disconnect"})
        lines = (await client.get("/metrics")).text
    assert f'route="/predict",status="{CLIENT_GONE}"' in lines
    assert 'route="/predict",status="200"' not in lines


async def test_body_that_does_not_arrive_in_time_is_refused(connect: Connect) -> None:
    async with connect() as client:
        sent = await answer_to(client)
    assert sent[0]["status"] == 408
    assert b"body did not arrive within the limit of 0.3 seconds" in sent[1]["body"]


async def test_client_that_has_gone_is_not_answered(connect: Connect, picture: Picture) -> None:
    backend = HeldBackend()
    async with connect(backend) as client, whole(client) as behind:
        request = asyncio.create_task(behind.post("/predict", content=picture("red")))
        await asyncio.to_thread(backend.entered.wait, 10)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        backend.release.set()
        lines, since = "", time.monotonic()
        while f'status="{CLIENT_GONE}"' not in lines and time.monotonic() < since + 5:
            lines = (await client.get("/metrics")).text
            await asyncio.sleep(0.05)
    assert f'route="/predict",status="{CLIENT_GONE}"' in lines
