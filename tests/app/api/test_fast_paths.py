"""A fast path answers as FastAPI does."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.api.fast_paths import ENDPOINTS
from app.api.middleware import RequestMiddleware
from tests.conftest import Picture
from tests.support.applications import application_of

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}


@pytest.fixture
async def slow_path(client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """The same service, without the fast paths."""
    application = application_of(client)
    app = RequestMiddleware(application.framework, application.metrics)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://convscope") as slow:
        yield slow


def _comparable(response: httpx.Response) -> tuple[Any, ...]:
    content = response.json()
    content.pop("request_id", None)
    ours = {"x-request-id", "server-timing", "content-length"}
    return (
        response.status_code,
        content,
        {*response.headers.items()}
        - {(name, value) for name, value in response.headers.items() if name in ours},
    )


@pytest.mark.parametrize(
    ("query", "headers", "body"),
    [
        ("", PNG, "red"),
        ("?top_k=2&model=colour&version=1", {}, "green"),
        ("?model=&version=", PNG, "red"),
        ("?top_k=0", PNG, "red"),
        ("?top_k=99", PNG, "red"),
        ("?top_k=x&coverage=7", PNG, "red"),
        ("?top_k=1&top_k=2", PNG, "red"),
        ("?topk=1", PNG, "red"),
        ("?coverage=0.9", PNG, "red"),
        ("?sets=best", PNG, "red"),
        ("?model=cats", PNG, "red"),
        ("", PNG, ""),
        ("", PNG, "no image"),
        ("", {"Content-Type": "text/plain"}, "red"),
        ("", {**PNG, "X-Request-Timeout-Ms": "soon"}, "red"),
    ],
)
async def test_prediction_is_answered_as_by_fastapi(
    client: httpx.AsyncClient,
    slow_path: httpx.AsyncClient,
    picture: Picture,
    query: str,
    headers: dict[str, str],
    body: str,
) -> None:
    content = picture(body) if body in {"red", "green"} else body.encode()
    fast, slow = [
        await asked.post(f"/predict{query}", content=content, headers=headers)
        for asked in (client, slow_path)
    ]
    assert _comparable(fast) == _comparable(slow)


async def test_requests_are_counted_by_the_same_route(
    client: httpx.AsyncClient, slow_path: httpx.AsyncClient, picture: Picture
) -> None:
    for asked in (client, slow_path):
        await asked.post("/predict", content=picture("red"))
    metrics = (await client.get("/metrics")).text
    labels = '{method="POST",route="/predict",status="200"}'
    assert f"convscope_http_requests_total{labels} 2.0" in metrics


async def test_every_fast_path_is_documented(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert all(method.lower() in paths[path] for method, path in ENDPOINTS)
