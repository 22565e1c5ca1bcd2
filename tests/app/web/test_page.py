import builtins
import io
import json
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.api.routes import page
from app.explore.palette import COLOURS
from bench import ROOT
from tests.conftest import Connect
from tests.support.problems import check

pytestmark = pytest.mark.anyio

FILES = sorted(path for path in page.WEB.rglob("*") if path.is_file())
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
NAMESPACES = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml")
"""Names that look like addresses; nobody asks for them."""

everything = pytest.mark.parametrize(
    "path", ["/", *(f"/web/{path.relative_to(page.WEB).as_posix()}" for path in FILES)]
)


@pytest.fixture
async def elsewhere(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[httpx.AsyncClient, Path]]:
    """A service whose page lies in a folder of the test's own."""
    web = tmp_path / "web"
    web.mkdir()
    monkeypatch.setattr(page, "WEB", web)
    async with connect() as client:
        yield client, web


def _texts() -> dict[Path, str]:
    return {path: path.read_text() for path in FILES if path.suffix not in {".jpg", ".png"}}


async def test_the_address_without_a_path_shows_the_page(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.status_code == 200
    assert response.content == (page.WEB / "index.html").read_bytes()
    assert response.headers["content-type"] == TYPES[".html"]


@everything
async def test_every_file_is_served_as_what_it_is(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 200
    suffix = Path(path).suffix or ".html"
    assert response.headers["content-type"] == TYPES[suffix]
    assert response.headers["x-content-type-options"] == "nosniff"
    file = page.WEB / (path.removeprefix("/web/") if path != "/" else "index.html")
    assert response.content == file.read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/web/main.js",
        "/web/style.css",
        "/web/vendor/htm-preact-3.1.1.js",
        "/static-offline-docs/swagger-ui-bundle.js",
        "/static-offline-docs/swagger-ui.css",
    ],
)
async def test_text_is_compressed_for_clients_that_take_it(
    client: httpx.AsyncClient, path: str
) -> None:
    plain = await client.get(path, headers={"Accept-Encoding": "identity"})
    packed = await client.get(path, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < 0.55 * len(plain.content)
    assert packed.content == plain.content
    etag = plain.headers["etag"]
    assert etag.startswith("W/")
    known = await client.get(path, headers={"Accept-Encoding": "gzip", "If-None-Match": etag})
    assert known.status_code == 304
    for answer in (plain, packed, known):
        assert answer.headers["vary"] == "Accept-Encoding"
        assert answer.headers["etag"] == etag
    changed = {name for name, _ in {*plain.headers.items()} ^ {*packed.headers.items()}}
    assert changed == {"content-encoding", "content-length", "x-request-id"}


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip;q=0", False),
        ("br, gzip ; Q=0.000 , identity", False),
        ("br;q=0, gzip;q=0.001", True),
        ("gzip;q=0.5", True),
        ("gzip, deflate;q=0", True),
    ],
)
async def test_text_is_not_compressed_for_clients_that_refuse_it(
    client: httpx.AsyncClient, accepted: str, packed: bool
) -> None:
    answer = await client.get("/web/main.js", headers={"Accept-Encoding": accepted})
    assert ("content-encoding" in answer.headers) is packed
    assert answer.headers["vary"] == "Accept-Encoding"


SAMPLES = page.WEB / "samples"


def _samples_of(suffix: str) -> list[str]:
    """Return the names that picture.js lists beside a suffix, in their order."""
    script = (page.WEB / "picture.js").read_text()
    (listed,) = re.findall(rf'suffix: "{suffix}",\s*names: \[(.*?)\]', script, re.DOTALL)
    return re.findall(r'"([\w-]+)"', listed)


def test_the_sheet_shows_the_samples_in_their_order() -> None:
    parts = [np.asarray(Image.open(SAMPLES / f"{name}.png")) for name in _samples_of("png")]
    assert np.array_equal(np.asarray(Image.open(SAMPLES / "all.png")), np.hstack(parts))


def test_samples_are_those_that_are_listed_and_small() -> None:
    listed = {f"{name}.{suffix}" for suffix in ("png", "jpg") for name in _samples_of(suffix)}
    assert {path.name for path in SAMPLES.iterdir()} == {*listed, "all.png"}
    assert max((SAMPLES / name).stat().st_size for name in listed) <= 20_000


def test_classes_have_the_colours_of_the_services_drawings() -> None:
    script = (page.WEB / "colours.js").read_text()
    (listed,) = re.findall(r"OF_CLASSES = \[(.*?)\n\]", script, re.DOTALL)
    colours = re.findall(r"\[(\d+), (\d+), (\d+)\]", listed)
    assert [tuple(map(int, colour)) for colour in colours] == list(COLOURS)


def test_every_kind_of_layer_in_the_store_is_explained() -> None:
    script = (page.WEB / "filters.js").read_text()
    (meanings,) = re.findall(r"MEANINGS = \{(.*?)\n\}", script, re.DOTALL)
    explained = set(re.findall(r"^  (\w+):", meanings, re.MULTILINE))
    kinds = {
        layer["kind"].split()[0]
        for path in (ROOT / "models_store").glob("*/*/manifest.json")
        for layer in json.loads(path.read_text())["layers"]
    }
    assert kinds == explained


def test_what_the_first_view_imports_is_fetched_at_once() -> None:
    html = (page.WEB / "index.html").read_text()
    needed, new = set[Path](), {page.WEB / "main.js"}
    while new:
        needed |= new
        new = {
            (path.parent / name).resolve()
            for path in new
            for name in re.findall(r'(?m)^(?:import|\}) .*from "(\.[^"]+)"', path.read_text())
        } - needed
    named = re.findall(r'(?:modulepreload" href|src)="(web/[^"]+)"', html)
    assert {page.WEB.parent / name for name in named} == needed


@everything
async def test_nothing_is_loaded_run_or_framed_that_is_not_the_services_own(
    client: httpx.AsyncClient, path: str
) -> None:
    headers = (await client.get(path)).headers
    policy = dict(
        directive.strip().split(" ", 1)
        for directive in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    allowed = {word for value in policy.values() for word in value.split()}
    assert allowed <= {"'none'", "'self'", "blob:", "data:"}
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["permissions-policy"] == "camera=(self), microphone=(), geolocation=()"


@everything
async def test_client_that_has_it_gets_304(client: httpx.AsyncClient, path: str) -> None:
    first = await client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = await client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    changed = await client.get(path, headers={"If-None-Match": '"another"'})
    assert (changed.status_code, changed.content) == (200, first.content)


async def test_head_is_get_without_the_body(client: httpx.AsyncClient) -> None:
    for path in ("/", "/web/main.js"):
        head, get = await client.head(path), await client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("etag", "content-type", "content-length", "content-security-policy"):
            assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize("part", ["bytes=0-9", "items=0-1", "bytes=a-b", "bytes=99999-"])
async def test_who_asks_for_a_part_of_a_file_gets_all_of_it(
    client: httpx.AsyncClient, part: str
) -> None:
    for path in ("/", "/web/main.js", "/static-offline-docs/swagger-ui.css"):
        response = await client.get(path, headers={"Range": part})
        assert (response.status_code, "accept-ranges" in response.headers) == (200, False)
        assert response.content == (await client.get(path)).content


async def test_files_are_read_outside_the_event_loop(
    elsewhere: tuple[httpx.AsyncClient, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, web = elsewhere
    (web / "index.html").write_text("<p>")
    (web / "new.js").write_text("new")
    threads: list[int] = []
    open_file = builtins.open

    def spy(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.get_ident())
        return open_file(*args, **kwargs)

    monkeypatch.setattr(builtins, "open", spy)
    monkeypatch.setattr(io, "open", spy)
    docs = "/static-offline-docs/swagger-ui.css"
    for path, encoding in (("/", "identity"), (docs, "identity"), ("/web/new.js", "gzip")):
        threads.clear()
        answer = await client.get(path, headers={"Accept-Encoding": encoding})
        assert answer.status_code == 200
        assert threads
        assert threading.get_ident() not in threads


@pytest.mark.parametrize(
    "path",
    [
        "/web",
        "/web/",
        "/web/samples",
        "/web/samples/",
        "/web/nothing.js",
        "/web/..%2fmain.py",
        "/web/%2e%2e/main.py",
        "/web/samples/..%2f..%2f..%2fpyproject.toml",
        "/web/%2fetc%2fpasswd",
        "/web//etc/passwd",
        "/web/..%5cmain.py",
        "/web/main.js%00.png",
        "/web/" + "x" * 3000,
        "/index.html",
    ],
)
async def test_nothing_but_the_pages_files_is_there(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) < 1000


async def test_link_that_leads_out_of_the_pages_files_is_not_followed(
    elsewhere: tuple[httpx.AsyncClient, Path],
) -> None:
    client, web = elsewhere
    (web.parent / "secret.txt").write_text("secret")
    (web / "way.txt").symlink_to(web.parent / "secret.txt")
    (web / "own.txt").write_text("own")
    assert (await client.get("/web/own.txt")).text == "own"
    check(await client.get("/web/way.txt"), 404)


@pytest.mark.parametrize("path", ["/", "/web/main.js"])
async def test_page_is_only_to_be_read(client: httpx.AsyncClient, path: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        response = await client.request(method, path)
        assert "there is: GET, HEAD" in check(response, 405).detail


def test_page_runs_nothing_that_stands_in_its_html() -> None:
    html = (page.WEB / "index.html").read_text()
    assert re.findall(r"<script\b[^>]*>(.*?)</script>", html, re.DOTALL) == [""]
    assert not re.search(r"<style\b|\sstyle=|\son\w+=|javascript:", html)


def test_no_file_names_another_host() -> None:
    for path, text in _texts().items():
        for namespace in NAMESPACES:
            text = text.replace(namespace, "")
        assert not re.search(r"\b(?:https?|wss?|ftp)://", text, re.IGNORECASE), path
        assert not re.search(r"""["'(`]//[\w-]+\.\w""", text), path


def test_every_file_that_is_named_is_there() -> None:
    html = (page.WEB / "index.html").read_text()
    named = {page.WEB.parent / link for link in re.findall(r'(?:href|src)="(web/[^"]+)"', html)}
    for path, text in _texts().items():
        imports = re.findall(r'(?:from|import)\s*\(?\s*"(\.[^"]+)"', text)
        named |= {(path.parent / name).resolve() for name in imports}
    assert named <= set(FILES)
    assert {path for path in FILES if path.suffix in {".js", ".css", ".svg"}} <= named


def test_all_files_but_samples_are_light_together() -> None:
    own = [path for path in FILES if path.parent != SAMPLES]
    assert sum(path.stat().st_size for path in own) < 130_000


async def test_page_is_no_part_of_the_documented_interface(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/web")]
