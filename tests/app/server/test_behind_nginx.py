"""The service at /vision/ of a real nginx."""

import re
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.conftest import Picture
from tests.support.nginx import needs_nginx, nginx
from tests.support.servers import CONVSCOPE, client, started

pytestmark = needs_nginx

PREFIX_HEADER = "proxy_set_header X-Forwarded-Prefix /vision;"
SERVE = [*CONVSCOPE, "serve", "--workers", "1"]


def links(page: httpx.Response) -> list[str]:
    """Return the addresses that a page loads, as a browser resolves them."""
    found = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    found += re.findall(r"""\burl: ["']([^"']+)""", page.text)  # Swagger UI's: of OpenAPI
    assert len(found) >= 3
    return [urljoin(str(page.url), link) for link in found]


def check(address: str, picture: bytes) -> None:
    """Use the service at /vision/ as people and programs do."""
    with client() as session:
        for path in ("/vision/", "/vision/docs"):
            page = session.get(address + path)
            assert page.status_code == 200
            for link in links(page):
                assert link.startswith(f"{address}/vision/"), link
                assert session.get(link).status_code == 200, link
        assert session.get(f"{address}/vision").headers["location"].endswith("/vision/")
        schema = session.get(f"{address}/vision/openapi.json").json()
        (server,) = schema["servers"]
        for _ in range(3):
            answer = session.post(
                f"{address}{server['url']}/predict",
                content=picture,
                headers={"Content-Type": "image/png"},
            )
            assert answer.json()["predictions"][0]["label"] == "red"


@pytest.mark.parametrize("strip", ["/", ""], ids=["stripped", "left"])
def test_service_that_knows_its_prefix(
    store_path: Path, tmp_path: Path, picture: Picture, strip: str
) -> None:
    command = [*SERVE, "--root-path", "/vision"]
    location = "/vision/" if strip else "/vision"
    with (
        started(command, store_path, tmp_path / "log") as server,
        nginx(tmp_path, server, location=location, strip=strip) as address,
    ):
        check(address, picture("red"))


def test_service_that_is_told_its_prefix_by_nginx(
    store_path: Path, tmp_path: Path, picture: Picture
) -> None:
    with (
        started(SERVE, store_path, tmp_path / "log") as server,
        nginx(tmp_path, server, strip="/", header=PREFIX_HEADER) as address,
    ):
        check(address, picture("red"))


def test_nginx_that_is_not_trusted_tells_nothing(store_path: Path, tmp_path: Path) -> None:
    trusted = {"FORWARDED_ALLOW_IPS": "192.0.2.1"}
    with (
        started(SERVE, store_path, tmp_path / "log", **trusted) as server,
        nginx(tmp_path, server, strip="/", header=PREFIX_HEADER) as address,
        client() as session,
    ):
        page = session.get(f"{address}/vision/docs")
        assert 'href="/static-offline-docs/' in page.text
