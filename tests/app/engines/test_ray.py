"""`convscope serve --engine ray` answers as `convscope serve` does.

Needs the extra `ray`. Three servers start once for all tests: a minute on two slow processors.
"""

import base64
import json
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.harness.requests import end_of_form, form_type, message, part
from bench.serving.ray import node_variables
from tests.conftest import Picture
from tests.support.servers import CONVSCOPE, Server, client, failed, get, started

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
]

LIMITS = {
    "CONVSCOPE_MAX_BODY_BYTES": "100000",
    "CONVSCOPE_MAX_IMAGES": "3",
    "CONVSCOPE_QUEUE_CAPACITY": "3",
    "CONVSCOPE_MAX_PIXELS": "4096",
    "CONVSCOPE_MAX_PIXELS_WHOLE": "4096",
}

SERVERS_OWN = {"date", "server", "connection"}
"""Headers that say nothing about the answer: those of Ray's server are uvicorn's."""


@dataclass(frozen=True)
class Case:
    method: str
    target: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def own(inside_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("own") / "log"
    command = [*CONVSCOPE, "serve", "--workers", "1"]
    with started(command, inside_store, log, **LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def rays(inside_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("ray") / "log"
    command = [*CONVSCOPE, "serve", "--engine", "ray", "--workers", "1"]
    with started(command, inside_store, log, **LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def haproxy(inside_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("haproxy") / "log"
    command = [*CONVSCOPE, "serve", "--engine", "ray", "--workers", "1"]
    with started(command, inside_store, log, **LIMITS, **node_variables()) as server:
        yield server


def cases(picture: Picture) -> dict[str, Case]:
    red, blue = picture("red"), picture("blue", "JPEG", (40, 48))
    encoded = base64.b64encode(red).decode()
    files = [part(f'name="file"; filename="{name}.png"', red) for name in "abcd"]
    form = {"Content-Type": form_type()}
    as_json = {"Content-Type": "application/json"}
    as_png = {"Content-Type": "image/png"}
    return {
        "body": Case("POST", "/predict", red, as_png),
        "jpeg without a type": Case("POST", "/predict?top_k=2", blue),
        "two files": Case("POST", "/predict", b"".join(files[:2]) + end_of_form(), form),
        "too many files": Case("POST", "/predict", b"".join(files) + end_of_form(), form),
        "no end of form": Case("POST", "/predict", files[0], form),
        "json": Case("POST", "/predict", json.dumps({"images": [encoded]}).encode(), as_json),
        "bad json": Case("POST", "/predict", b'{"images": [', as_json),
        "wrong base64": Case("POST", "/predict", b'{"images": ["?!"]}', as_json),
        "wrong type": Case("POST", "/predict", b"hello", {"Content-Type": "text/plain"}),
        "no image": Case("POST", "/predict", b"hello", as_png),
        "empty": Case("POST", "/predict", b"", as_png),
        "cut off": Case("POST", "/predict", red[:60], as_png),
        "too large": Case("POST", "/predict", red + bytes(200_000), as_png),
        "too many pixels": Case("POST", "/predict", picture("red", size=(80, 80)), as_png),
        "unknown model": Case("POST", "/predict?model=none", red, as_png),
        "unknown parameter": Case("POST", "/predict?topk=2", red, as_png),
        "other model": Case("POST", "/predict?model=averaging", red, as_png),
        "wrong task": Case("POST", "/detect", red, as_png),
        "no time": Case("POST", "/predict", red, {**as_png, "X-Request-Timeout-Ms": "0"}),
        "wrong method": Case("PUT", "/predict", red, as_png),
        "explanation": Case("POST", "/explain?model=averaging&format=png", red, as_png),
        "filters": Case("GET", "/filters?model=averaging&format=png"),
        "matrix": Case("GET", "/confusion-matrix?model=averaging&format=png"),
        "models": Case("GET", "/models"),
        "page": Case("GET", "/"),
        "page's head": Case("HEAD", "/"),
        "compressed": Case("GET", "/main.js", headers={"Accept-Encoding": "gzip"}),
        "nothing there": Case("GET", "/no/such%20path"),
        "not utf-8": Case("GET", "/%ff"),
        "openapi": Case("GET", "/openapi.json"),
        "live": Case("GET", "/health/live"),
    }


def answer(server: Server, case: Case) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body without times; the id is given."""
    with client() as session:
        headers = {"Accept-Encoding": "identity", "X-Request-ID": "same", **case.headers}
        request = session.build_request(
            case.method, server.url + case.target, content=case.body or None, headers=headers
        )
        response = session.send(request, stream=True)
        body = b"".join(response.iter_raw())
    found = [(name, value) for name, value in response.headers.multi_items()]
    assert len([name for name, _ in found if name == "x-request-id"]) == 1
    kept = sorted(
        (name, "" if name == "server-timing" else value)
        for name, value in found
        if name not in SERVERS_OWN
    )
    return response.status_code, kept, body


def test_answers_are_those_of_our_own_server(
    own: Server, rays: Server, haproxy: Server, picture: Picture
) -> None:
    given = cases(picture)
    ours = {name: answer(own, case) for name, case in given.items()}
    assert {status for status, *_ in ours.values()} >= {200, 400, 404, 405, 413, 415, 422}
    for server in (rays, haproxy):
        for name, case in given.items():
            assert (name, answer(server, case)) == (name, ours[name])
        assert counted(server) == counted(own)


def counted(server: Server) -> dict[tuple[str, ...], float]:
    """All series but for times: counters with their values, the names of all others."""
    found = {}
    for family in text_string_to_metric_families(get(f"{server.url}/metrics").text):
        for sample in family.samples:
            labels = {**sample.labels}
            labels.pop("replica", None)
            labels.pop("le", None)
            if labels.get("route") in ("/health/ready", "/metrics"):
                continue  # how often the fixture has asked
            if "_created" in sample.name or family.name == "convscope_worker_restarts":
                continue  # files have none of the first; the second is the supervisor's
            exact = family.type == "counter" or sample.name.endswith("_count")
            key = (sample.name, *(f"{name}={labels[name]}" for name in sorted(labels)))
            found[key] = sample.value if exact and "batch" not in family.name else -1
    return found


def test_pages_are_not_sent_again_to_those_who_have_them(own: Server, rays: Server) -> None:
    for server in (own, rays):
        tag = get(server.url).headers["etag"]
        again = get(server.url, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")


def test_request_keeps_its_own_id(rays: Server) -> None:
    response = get(f"{rays.url}/nowhere", headers={"X-Request-ID": "mine.1"})
    assert response.headers.get_list("x-request-id") == ["mine.1"]
    assert response.json()["request_id"] == "mine.1"


def test_metrics_name_the_replica(rays: Server) -> None:
    lines = get(f"{rays.url}/metrics").text.splitlines()
    [workers] = [line for line in lines if line.startswith("convscope_workers{")]
    assert re.fullmatch(r'convscope_workers\{replica="\w+"\} 1\.0', workers)


def test_address_in_use_is_one_line(rays: Server, inside_store: Path) -> None:
    done = failed([*CONVSCOPE, "serve", "--engine", "ray"], inside_store, rays.port)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"cannot listen on 127.0.0.1:{rays.port}" in done.stderr


@pytest.mark.parametrize("engine", ["rays", "haproxy"])
def test_sigterm_ends_ray_and_answers_what_was_begun(
    engine: str, request: pytest.FixtureRequest, picture: Picture
) -> None:
    server: Server = request.getfixturevalue(engine)
    image = picture("red")
    whole = message("POST /predict", image, "Content-Type: image/png", "Connection: close")
    with server.connect() as connection:
        connection.sendall(whole[:-10])
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        connection.sendall(whole[-10:])
        answered = connection.makefile("rb").read()
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert server.process.wait() == 0
    with pytest.raises(httpx.ConnectError):
        get(server.url)
