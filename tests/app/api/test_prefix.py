"""Behind a proxy, at a path prefix."""

import re

import httpx
import pytest

from app.errors import SettingsError
from app.settings import read_settings
from tests.conftest import Connect
from tests.support.applications import application_of

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
