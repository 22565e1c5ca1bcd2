"""The service at /vision/ of a real nginx."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from bench import ROOT
from bench.harness.processes import free_port
from tests.conftest import Picture
from tests.support.nginx import configured, needs_nginx, nginx
from tests.support.servers import CONVSCOPE, HOST, Server, client, get, started

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


@pytest.fixture(scope="module")
def served(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(SERVE, store_path, tmp_path_factory.mktemp("served") / "log") as server:
        yield server


def documented(server: Server, port: int) -> str:
    """Return the configuration of the document, for this service and this port."""
    text = (ROOT / "docs" / "deployment.md").read_text()
    found = re.search(r"^```nginx\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    example = found[1].replace("http://127.0.0.1:8000/", f"{server.url}/")
    return example.replace("listen 80;", f"listen {HOST}:{port};")


def uncommented(example: str, *names: str) -> str:
    lines = rf"^( *)# ((?:{'|'.join(names)}) .*;.*)$"
    changed, count = re.subn(lines, r"\1\2", example, flags=re.MULTILINE)
    assert count == len(names)
    return changed


def test_documented_configuration_publishes_all_but_the_metrics(
    served: Server, tmp_path: Path, picture: Picture
) -> None:
    port = free_port()
    address = f"http://{HOST}:{port}"
    with configured(tmp_path, documented(served, port), port), client() as session:
        check(address, picture("red"))
        for path in ("metrics", "vision/metrics", "./metrics", "%6detrics", "metrics?a=/b"):
            assert session.get(f"{address}/vision/{path}").status_code == 404
        large = session.post(f"{address}/vision/predict", content=bytes((32 << 20) + 1))
        assert large.status_code == 413
        assert large.headers["content-type"] == "text/html"
    assert "convscope_workers" in get(f"{served.url}/metrics").text


def test_documented_configuration_can_keep_the_description_from_others(
    served: Server, tmp_path: Path
) -> None:
    port = free_port()
    closed = uncommented(documented(served, port), r"location ~ /\(docs\|openapi\\.json\)\$")
    with configured(tmp_path, closed, port), client() as session:
        for path, status in (("docs", 404), ("vision/docs", 404), ("openapi.json", 404), ("", 200)):
            assert session.get(f"http://{HOST}:{port}/vision/{path}").status_code == status


def test_documented_configuration_limits_the_requests_of_one_address(
    served: Server, tmp_path: Path
) -> None:
    port = free_port()
    example = documented(served, port)
    tight = example.replace("rate=50r/s", "rate=1r/m").replace("burst=200", "burst=2")
    assert len(tight) < len(example)
    with configured(tmp_path, tight, port), client() as session:
        answers = [session.get(f"http://{HOST}:{port}/vision/models") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_documented_configuration_speaks_tls(
    served: Server, tmp_path: Path, picture: Picture
) -> None:
    port, key, certificate = free_port(), tmp_path / "key", tmp_path / "pem"
    kind = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=convscope"
    command = ["openssl", "req", *kind.split(), "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    example = documented(served, 80).replace(f"    listen {HOST}:80;\n", "")
    example = uncommented(example, "listen", "ssl_certificate", "ssl_certificate_key")
    example = example.replace("listen 443", f"listen {HOST}:{port}")
    example = example.replace("/etc/nginx/convscope.pem", str(certificate))
    example = example.replace("/etc/nginx/convscope.key", str(key))
    with (
        configured(tmp_path, example, port),
        httpx.Client(verify=False, trust_env=False) as session,
    ):
        url = f"https://{HOST}:{port}/vision/predict"
        answer = session.post(url, content=picture("red"), headers={"Content-Type": "image/png"})
        assert answer.json()["predictions"][0]["label"] == "red"
