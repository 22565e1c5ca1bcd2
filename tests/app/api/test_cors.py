"""Pages of other origins: none may read answers, unless the settings name their origin."""

import asyncio
import re

import httpx
import pytest

from app.errors import SettingsError
from app.problems import Problem
from app.settings import read_settings
from bench.harness.requests import message
from tests.conftest import Connect, Picture
from tests.support.answers import Answer, read_answer
from tests.support.applications import application_of
from tests.support.fakes import FailingBackend, HeldBackend, black
from tests.support.pictures import as_file
from tests.support.servers import sockets

pytestmark = pytest.mark.anyio

PAGE, OTHER = "https://page.example", "https://other.example"
PNG = {"Content-Type": "image/png"}
ALLOWED = "access-control-allow-origin"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,x-request-timeout-ms,x-request-id",
}


def cors_headers(headers: httpx.Headers | dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


async def ask(port: int, request: bytes) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await read_answer(reader)
    writer.close()
    return answer


async def test_by_default_no_other_origin_is_allowed(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    assert application_of(client).cors is None
    answers = [
        await client.options("/predict", headers=PREFLIGHT),
        await client.get("/models", headers={"Origin": PAGE}),
        await client.post("/predict", content=picture("red"), headers=PNG | {"Origin": PAGE}),
    ]
    assert [answer.status_code for answer in answers] == [405, 200, 200]
    assert [cors_headers(answer.headers) for answer in answers] == [{}, {}, {}]
    assert "vary" not in answers[2].headers


@pytest.mark.parametrize("origins", [f"{OTHER},{PAGE}", "*"])
async def test_allowed_origin_may_ask_and_read(
    connect: Connect, picture: Picture, origins: str
) -> None:
    async with connect(cors_origins=origins) as client:
        allowed = "*" if origins == "*" else PAGE
        preflight = await client.options("/predict", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers[ALLOWED] == allowed
        assert "X-Request-Timeout-Ms" in preflight.headers["access-control-allow-headers"]
        assert preflight.headers["x-request-id"]
        headers = PNG | {"Origin": PAGE}
        answers = [
            await client.get("/models", headers=headers),
            await client.get("/nothing", headers=headers),
            await client.get("/filters?model=nobody", headers=headers),
            await client.post("/predict", content=picture("red"), headers=headers),
            await client.post("/predict", content=b"x", headers=headers),
        ]
        assert [answer.status_code for answer in answers] == [200, 404, 404, 200, 415]
        for answer in answers:
            assert answer.headers[ALLOWED] == allowed
            assert "X-Request-ID" in answer.headers["access-control-expose-headers"]


async def test_failure_can_be_read_too(connect: Connect) -> None:
    async with connect(FailingBackend(), cors_origins=PAGE) as client:
        answer = await client.post(
            "/predict", content=as_file(black()[0], "PNG"), headers=PNG | {"Origin": PAGE}
        )
        assert answer.status_code == 500
        assert answer.headers[ALLOWED] == PAGE


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"Origin": OTHER}, f"Disallowed CORS origin; the request has Origin {OTHER!r}, "),
        ({"Access-Control-Request-Method": "DELETE"}, " Access-Control-Request-Method 'DELETE', "),
        ({"Access-Control-Request-Headers": "x-secret"}, "-Request-Headers 'x-secret'; allowed"),
        ({"Access-Control-Request-Method": "X" * 9999}, " Access-Control-Request-Method 'XXX"),
    ],
)
async def test_preflight_that_asks_for_more_is_refused_with_a_problem(
    connect: Connect, changed: dict[str, str], named: str
) -> None:
    async with connect(cors_origins=PAGE) as client:
        answer = await client.options("/predict", headers=PREFLIGHT | changed)
        assert answer.status_code == 403
        problem = Problem.model_validate_json(answer.content)
        assert problem.type == "urn:convscope:problem:cross-origin-refused"
        assert problem.detail.endswith(
            f"allowed are the origins {PAGE}, the methods GET, HEAD, POST and the headers "
            "Content-Type, If-None-Match, X-Request-ID, X-Request-Timeout-Ms"
        )
        assert named in problem.detail
        assert len(problem.detail) < 600
        assert ALLOWED not in answer.headers


@pytest.mark.parametrize("origins", [PAGE, "*"])
@pytest.mark.parametrize("origin", [PAGE, OTHER, "", None])
async def test_fast_path_answers_with_the_same_headers(
    connect: Connect, picture: Picture, origins: str, origin: str | None
) -> None:
    asked = {} if origin is None else {"Origin": origin}
    async with connect(cors_origins=origins) as client, sockets(client) as (port, _):
        routed = await client.post("/predict", content=picture("red"), headers=PNG | asked)
        lines = [f"{name}: {value}" for name, value in asked.items()]
        answer = await ask(port, message("POST /predict", picture("red"), *lines))
        assert answer.status == routed.status_code == 200
        assert "server-timing" in answer.headers
        assert cors_headers(answer.headers) == cors_headers(routed.headers)
        assert answer.headers["vary"] == routed.headers["vary"] == "Origin"


@pytest.mark.parametrize("origins", [PAGE, "*"])
async def test_refusals_of_a_full_worker_can_be_read(
    connect: Connect, picture: Picture, origins: str
) -> None:
    backend = HeldBackend()
    settings = {"max_requests": 1, "cors_origins": origins}
    plain = message("POST /predict", picture("red"))
    allowed = message("POST /predict", picture("red"), f"oRIGIN: {PAGE}")
    other = message("POST /predict", picture("red"), f"Origin: {OTHER}")
    async with connect(backend, **settings) as client, sockets(client) as (port, connections):
        first = asyncio.create_task(ask(port, plain))
        assert await asyncio.to_thread(backend.entered.wait, 10)
        assert connections.working == 1
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        found = []
        for request in (allowed, plain, other, allowed):
            writer.write(request)
            answer = await read_answer(reader)
            assert answer.status == 503
            found.append(answer.headers.get(ALLOWED))
            assert answer.headers["vary"] == "Origin"
        writer.close()
        backend.release.set()
        assert (await first).status == 200
    shown = "*" if origins == "*" else PAGE
    assert found == [shown, None, "*" if origins == "*" else None, shown]


async def test_refusals_of_a_head_can_be_read(connect: Connect) -> None:
    async with connect(cors_origins=PAGE) as client, sockets(client) as (port, _):
        long = f"POST /predict HTTP/1.1\r\nHost: x\r\nOrigin: {PAGE}\r\nX: {40_000 * 'x'}\r\n\r\n"
        answer = await ask(port, long.encode())
        assert answer.status == 431
        assert answer.headers[ALLOWED] == PAGE


@pytest.mark.parametrize(
    "value",
    [
        "page.example",
        "https://page.example/path",
        "https://a b",
        "null",
        "http://a:b",
        "http://a:65536",
        "http://::1",
    ],
)
def test_value_that_is_no_origin_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CONVSCOPE_CORS_ORIGINS", f"https://sound.example,{value}")
    with pytest.raises(SettingsError, match=f"{re.escape(value)}.* is neither an origin"):
        read_settings()


def test_origins_are_compared_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSCOPE_CORS_ORIGINS", " HTTPS://Page.Example , http://[::1]:3000")
    assert read_settings().cors_origins == (PAGE, "http://[::1]:3000")


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("https://page.example:443", PAGE),
        ("http://[::1]:80", "http://[::1]"),
        ("http://page.example:8080", "http://page.example:8080"),
        ("http://page.example:443", "http://page.example:443"),
        ("https://page.example:4430", "https://page.example:4430"),
        ("http://my_page:3000", "http://my_page:3000"),
    ],
)
def test_origin_is_as_browsers_send_it(
    monkeypatch: pytest.MonkeyPatch, value: str, sent: str
) -> None:
    monkeypatch.setenv("CONVSCOPE_CORS_ORIGINS", value)
    assert read_settings().cors_origins == (sent,)
