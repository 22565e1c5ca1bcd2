"""Behind a proxy, at a path prefix."""

import asyncio
import re

import httpx
import pytest

from app.errors import SettingsError
from app.problems import Problem
from app.settings import read_settings
from bench.harness.requests import head, message
from tests.conftest import Connect, Picture
from tests.support.answers import read_answer
from tests.support.applications import application_of
from tests.support.fakes import FailingBackend, HeldBackend, black
from tests.support.pictures import as_png
from tests.support.servers import sockets

pytestmark = pytest.mark.anyio

FORWARDED = "X-Forwarded-Prefix"


async def docs_prefix(client: httpx.AsyncClient, **headers: str) -> str:
    """Return the prefix of the addresses in the documentation."""
    page = await client.get(
        "/docs", headers={name.replace("_", "-"): v for name, v in headers.items()}
    )
    (prefix,) = set(re.findall(r'(?:src|href)="(.*?)/static-offline-docs/', page.text))
    return str(prefix)


@pytest.mark.parametrize("path", ["", "/vision"], ids=["stripped", "left"])
async def test_everything_is_found_below_the_prefix(connect: Connect, path: str) -> None:
    async with connect(root_path="/vision") as client:
        assert await docs_prefix(client) == "/vision"
        schema = (await client.get(f"{path}/openapi.json")).json()
        assert schema["servers"] == [{"url": "/vision"}]
        for file in ("/", "/web/main.js", "/static-offline-docs/swagger-ui.css", "/models"):
            assert (await client.get(path + file)).status_code == 200
        missing = await client.get(f"{path}/web/nothing")
        assert missing.status_code == 404
        assert missing.json()["instance"] == "/vision/web/nothing"


async def test_slash_that_a_proxy_doubles_is_passed_over(
    connect: Connect, picture: Picture
) -> None:
    async with connect(root_path="/vision") as client:
        address = str(client.base_url).rstrip("/") + "/"  # and the path's own
        for file in ("/", "/docs", "/web/main.js", "/static-offline-docs/swagger-ui.css"):
            assert (await client.get(address + file)).status_code == 200
        predicted = await client.post(f"{address}/predict", content=picture("red"))
        assert predicted.status_code == 200
        missing = await client.get(f"{address}/nothing")
        assert missing.json()["instance"] == "/vision/nothing"
    async with connect() as client:
        assert (await client.get(f"{address}/docs")).status_code == 404


async def test_prefix_alone_leads_to_the_page(connect: Connect) -> None:
    async with connect(root_path="/vision/") as client:
        answer = await client.get("/vision?a=%2F")
        assert answer.status_code == 307
        assert answer.headers["location"] == "/vision/?a=%2F"
        assert (await client.get("/visionary")).status_code == 404


@pytest.mark.parametrize(
    ("trusted", "peer", "found"),
    [
        (None, "127.0.0.1", "/vision"),
        (None, "10.0.0.7", ""),
        ("10.0.0.0/8", "10.0.0.7", "/vision"),
        ("10.0.0.0/8", "127.0.0.1", ""),
        (None, "::ffff:127.0.0.1", "/vision"),
        ("10.0.0.0/8", "::ffff:10.0.0.7", "/vision"),
        ("::ffff:10.0.0.7", "::ffff:10.0.0.7", "/vision"),
        ("10.0.0.0/8", "::ffff:127.0.0.1", ""),
        (None, "::1", ""),
        ("10.0.0.1,10.0.0.7", "10.0.0.7", "/vision"),
        ("*", "192.0.2.1", "/vision"),
    ],
)
async def test_header_of_a_trusted_proxy_counts(
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    trusted: str | None,
    peer: str,
    found: str,
) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if trusted is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    async with connect() as client:
        transport = httpx.ASGITransport(application_of(client), client=(peer, 5000))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as proxy:
            assert await docs_prefix(proxy, **{FORWARDED: "/vision"}) == found
            assert await docs_prefix(proxy) == ""


@pytest.mark.parametrize(
    "hostile",
    ["//evil.example", "https://evil.example", "/..", "/a/../b", "/a//b", '/"onerror="x', "/<b>",
     "/a\\b", "/%2e%2e", "vision", "/a,/b", "/" + 256 * "a", "/ä", ""],
)  # fmt: skip
async def test_header_that_may_lead_elsewhere_is_ignored(
    client: httpx.AsyncClient, hostile: str
) -> None:
    page = await client.get("/docs", headers={FORWARDED.encode(): hostile.encode("latin-1")})
    assert page.status_code == 200
    assert 'href="/static-offline-docs/' in page.text


async def test_header_given_twice_is_ignored(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs", headers=[(FORWARDED, "/a"), (FORWARDED, "/b")])
    assert 'href="/static-offline-docs/' in page.text


async def test_setting_counts_more_than_the_header(connect: Connect) -> None:
    async with connect(root_path="/vision") as client:
        assert await docs_prefix(client, **{FORWARDED: "/other"}) == "/vision"


async def refused(port: int, request: bytes) -> str:
    """Return the path that a refusal of a request names."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await read_answer(reader)
    writer.close()
    return Problem.model_validate_json(answer.body).instance


PROXIES = pytest.mark.parametrize(
    ("settings", "headers", "instance"),
    [
        ({}, [], "/predict"),
        ({"root_path": "/vision"}, [], "/vision/predict"),
        ({}, ["x-forwarded-PREFIX:\t/vision"], "/vision/predict"),
        ({}, [f"{FORWARDED}: //evil.example"], "/predict"),
        ({}, [f"{FORWARDED}: /a", f"{FORWARDED}: /b"], "/predict"),
    ],
)


@PROXIES
async def test_refusals_of_a_full_worker_name_the_path_below_the_prefix(
    connect: Connect,
    picture: Picture,
    settings: dict[str, str],
    headers: list[str],
    instance: str,
) -> None:
    backend = HeldBackend()
    unparsed = message("POST /predict", picture("red"), *headers)
    parsed = message("POST /predict", picture("red"), *headers, "Connection: close")
    async with (
        connect(backend, max_requests=1, **settings) as client,
        sockets(client) as (port, connections),
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(unparsed)
        assert await asyncio.to_thread(backend.entered.wait, 10)
        assert connections.working == 1
        assert [await refused(port, request) for request in (unparsed, parsed)] == [instance] * 2
        backend.release.set()
        writer.close()


@PROXIES
async def test_refusals_of_the_fast_path_name_the_path_below_the_prefix(
    connect: Connect, settings: dict[str, str], headers: list[str], instance: str
) -> None:
    image = as_png(black()[0])
    by_route = message("POST /predict?model=colour&top_k=99", image, *headers)
    async with connect(FailingBackend(), **settings) as client, sockets(client) as (port, _):
        assert await refused(port, message("POST /predict", image, *headers)) == instance
        assert await refused(port, by_route) == instance


@pytest.mark.parametrize(
    ("target", "instance"),
    [("/predict", "/vision/predict"), ("/vision/predict", "/vision/predict"), ("*", "*")],
)
async def test_refusals_of_a_head_name_the_path_below_the_prefix(
    connect: Connect, target: str, instance: str
) -> None:
    async with connect(root_path="/vision") as client, sockets(client) as (port, _):
        assert await refused(port, head(f"POST {target}", f"X: {40_000 * 'x'}")) == instance


@pytest.mark.parametrize("value", ["vision", "//host", "/a b", "/../x"])
def test_wrong_prefix_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CONVSCOPE_ROOT_PATH", value)
    with pytest.raises(
        SettingsError, match=f"CONVSCOPE_ROOT_PATH={re.escape(value)}: a path prefix"
    ):
        read_settings()


def test_option_counts_more_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSCOPE_ROOT_PATH", "/environment")
    assert read_settings(root_path="/option").root_path == "/option"
    assert read_settings(root_path=None).root_path == "/environment"
