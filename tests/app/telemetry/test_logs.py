import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog

from app.telemetry import logs
from app.telemetry.requests import RequestState
from tests.conftest import Connect, Picture

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    logs.configure("auto", "info")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def _logged(
    connect: Connect, method: str, path: str, log_format: logs.LogFormat = "json", **options: Any
) -> tuple[httpx.Response, str]:
    stream = io.StringIO()
    async with connect() as client:
        logs.configure(log_format, "info", stream)
        response = await client.request(method, path, **options)
    return response, stream.getvalue()  # the application has ended, and written what waited


async def test_request_is_one_line_with_id_method_path_status_duration_and_model(
    connect: Connect, picture: Picture
) -> None:
    response, text = await _logged(
        connect,
        "POST",
        "/predict?model=flat&top_k=2",
        content=picture("red"),
        headers={"Content-Type": "image/png", "X-Request-ID": "mine"},
    )
    assert response.status_code == 200
    (line,) = [json.loads(line) for line in text.splitlines()]
    assert line.pop("duration_ms") > 0
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request",
        "level": "info",
        "request_id": "mine",
        "method": "POST",
        "path": "/predict",
        "status": 200,
        "model": "flat/1",
    }


async def test_probes_are_not_logged_at_info(connect: Connect) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert (await _logged(connect, "GET", path))[1] == ""


async def test_query_and_image_never_reach_the_log(connect: Connect, picture: Picture) -> None:
    body = picture("red")
    headers = {"Content-Type": "image/png", "Authorization": "Bearer secret"}
    _, text = await _logged(connect, "POST", "/predict?token=secret", content=body, headers=headers)
    assert "secret" not in text
    assert "IDAT" not in text


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_lines_cannot_be_forged(connect: Connect, log_format: logs.LogFormat) -> None:
    headers = {"X-Request-ID": "a b level=critical"}
    path = "/x%0Aforged%0D%1b[31m" + "y" * 1000
    _, text = await _logged(connect, "GET", path, log_format, headers=headers)
    assert len(text.splitlines()) == 1
    assert "forged" in text
    assert "%0Aforged%0D%1b" in text
    assert "\x1b" not in text
    assert "critical" not in text
    assert len(text) < 700


@pytest.mark.parametrize(
    ("log_format", "stream", "as_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("text", io.StringIO, False),
    ],
)
def test_format_is_text_on_a_terminal_and_json_otherwise(
    log_format: logs.LogFormat, stream: type[io.StringIO], *, as_json: bool
) -> None:
    output = stream()
    logs.configure(log_format, "info", output)
    structlog.get_logger("app.test").info("hello", number=1)
    assert output.getvalue().startswith("{") == as_json
    assert "hello" in output.getvalue()


def test_loggers_of_uvicorn_go_the_same_way() -> None:
    stream = io.StringIO()
    logging.getLogger("uvicorn.error").addHandler(logging.NullHandler())
    logs.configure("json", "info", stream)
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("httpx").info("chatter")
    logging.getLogger("PIL").warning("a stranger's image is odd")
    logging.getLogger("other").warning("odd")
    assert [line["event"] for line in _lines(stream)] == ["Started server process [7]", "odd"]


def test_level_is_kept() -> None:
    stream = io.StringIO()
    logs.configure("json", "warning", stream)
    structlog.get_logger("app.test").info("quiet")
    structlog.get_logger("app.test").warning("loud")
    assert [line["event"] for line in _lines(stream)] == ["loud"]


def test_second_setup_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure("json", "info", first)
    logs.configure("json", "info", second)
    structlog.get_logger("app.test").info("hello")
    assert first.getvalue() == ""
    assert len(_lines(second)) == 1


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_traceback_shows_no_value_of_a_variable(log_format: logs.LogFormat) -> None:
    stream = io.StringIO()
    logs.configure(log_format, "info", stream)
    image = bytes(7) + "an image's bytes".encode("ascii")
    try:
        int(image[:7])
    except ValueError as exc:
        structlog.get_logger("app.test").error("failed", exc_info=exc)
    assert "Traceback (most recent call last)" in stream.getvalue()
    assert "ValueError: invalid literal" in stream.getvalue()
    assert "an image's" not in stream.getvalue()


def test_traceback_is_one_line_of_json() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    try:
        int("broken")
    except ValueError as exc:
        structlog.get_logger("app.test").error("failed", exc_info=exc)
    (line,) = _lines(stream)
    assert "ValueError: invalid literal" in line["exception"]


async def test_lines_of_requests_wait_for_a_moment_or_for_another_line(connect: Connect) -> None:
    stream = io.StringIO()
    async with connect() as client:
        logs.configure("json", "info", stream)
        await client.get("/models")
        assert stream.getvalue() == ""
        async with asyncio.timeout(30):
            while not stream.getvalue():
                await asyncio.sleep(0.01)
        await client.get("/models/colour")
        logging.getLogger("app.test").error("between")
        await client.get("/models/flat")
    paths = [line.get("path", line["event"]) for line in _lines(stream)]
    assert paths == ["/models", "/models/colour", "between", "/models/flat"]


async def test_many_lines_do_not_wait(connect: Connect) -> None:
    stream = io.StringIO()
    async with connect():
        logs.configure("json", "info", stream)
        state = RequestState("GET", "/models")
        for _ in range(1000):  # without a turn of the event loop
            logs.write_request(state, 200, 0.001)
        assert len(_lines(stream)) > 800
    assert len(_lines(stream)) == 1000


async def test_lines_that_wait_are_written_where_they_were_meant_for(connect: Connect) -> None:
    first, second = io.StringIO(), io.StringIO()
    async with connect() as client:
        logs.configure("json", "info", first)
        await client.get("/models")
        logs.configure("json", "info", second)
        await client.get("/models")
    assert len(_lines(first)) == len(_lines(second)) == 1
