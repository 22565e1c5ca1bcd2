import re
from collections.abc import Iterator

import httpx
import pytest
from pydantic import BaseModel

from app import problems
from app.errors import ConvscopeError
from app.main import create_app
from tests.conftest import MakeSettings
from tests.support.problems import check

pytestmark = pytest.mark.anyio


def _tree(error: type[ConvscopeError]) -> Iterator[type[ConvscopeError]]:
    yield error
    for child in error.__subclasses__():
        yield from _tree(child)


def test_every_error_has_a_status_and_a_type_of_its_own() -> None:
    errors = list(_tree(ConvscopeError))
    assert set(errors) == set(problems.STATUSES)
    assert len({problems.problem_type(error) for error in errors}) == len(errors)


def test_every_status_in_the_table_is_an_error() -> None:
    assert all(400 <= status < 600 for status, _ in problems.STATUSES.values())


async def _raise(make_settings: MakeSettings, error: Exception) -> httpx.Response:
    app = create_app(make_settings())

    @app.framework.get("/raise")
    async def fail() -> BaseModel:
        raise error

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://convscope") as client:
        return await client.get("/raise")


@pytest.mark.parametrize("error", [*_tree(ConvscopeError)], ids=lambda error: str(error.__name__))
async def test_every_error_is_answered_as_a_problem(
    make_settings: MakeSettings, error: type[ConvscopeError]
) -> None:
    status, title = problems.STATUSES[error]
    response = await _raise(make_settings, error("scale is 99; the limit is 64"))
    problem = check(response, status)
    assert ("Retry-After" in response.headers) == (status == 503)
    if status == 500:
        assert "scale" not in response.text
    else:
        assert (problem.title, problem.detail) == (title, "scale is 99; the limit is 64")
        assert problem.type == problems.problem_type(error)


@pytest.mark.parametrize("error", [ValueError("inside"), KeyError("inside"), MemoryError("inside")])
async def test_unforeseen_error_is_a_500_that_says_nothing_and_a_traceback_in_the_log(
    make_settings: MakeSettings, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    response = await _raise(make_settings, error)
    problem = check(response, 500)
    assert "inside" not in response.text
    log = capsys.readouterr().err
    assert "Traceback" in log
    assert f"{type(error).__name__}" in log
    assert log.count("Traceback") == 1
    assert problem.request_id in log


async def test_unknown_path_is_a_problem(client: httpx.AsyncClient) -> None:
    assert check(await client.get("/cats"), 404).detail == "there is nothing at /cats"
    check(await client.get("/static-offline-docs/nothing.js"), 404)
    check(await client.get("/models/"), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict", "POST"),
        ("HEAD", "/predict", "POST"),
        ("PUT", "/filters", "GET, HEAD"),
        ("OPTIONS", "/models", "GET, HEAD"),
        ("DELETE", "/models/colour/versions/1", "GET, HEAD"),
        ("POST", "/health/live", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
    ],
)
async def test_wrong_method_is_a_problem_that_names_the_right_ones(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    response = await client.request(method, path)
    assert response.headers["allow"] == allowed
    if method != "HEAD":
        assert allowed in check(response, 405).detail


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("/filters?scale=0", "scale=0: Input should be greater than or equal to 1"),
        ("/filters?scale=65", "scale=65: Input should be less than or equal to 64"),
        ("/filters?scale=x", "scale=x: Input should be a valid integer"),
        ("/filters?colums=3", "unknown query parameter 'colums'; there are: model, version"),
        ("/filters/x", "index=x: Input should be a valid integer"),
        ("/filters/-1", "index=-1: Input should be greater than or equal to 0"),
        ("/filters?format=gif", "format=gif: Input should be 'png' or 'json'"),
        ("/confusion-matrix?normalize=yes", "normalize=yes: Input should be 'true', 'pred' or 'a"),
        ("/confusion-matrix?scale=1&model=a&", "unknown query parameter 'scale'"),
        ("/models?limit=1", "unknown query parameter 'limit'; there are: none"),
        ("/filters?scale=0&columns=0", "scale=0: .*; columns=0: "),
    ],
)
async def test_wrong_query_value_is_named_with_its_limit(
    client: httpx.AsyncClient, query: str, detail: str
) -> None:
    assert re.match(detail, check(await client.get(query), 422).detail)


async def test_request_id_of_the_client_is_kept_if_it_is_sane(client: httpx.AsyncClient) -> None:
    for given in ("abc-1.2_3", "a" * 64):
        response = await client.get("/health/live", headers={"X-Request-ID": given})
        assert response.headers["x-request-id"] == given
    for given in ("", "a" * 65, "a b", "<script>", "a\tb", 'x"y'):
        response = await client.get("/cats", headers={"X-Request-ID": given})
        assert re.fullmatch("[0-9a-f]{32}", check(response, 404).request_id)


async def test_every_request_has_an_id_of_its_own(client: httpx.AsyncClient) -> None:
    ids = {(await client.get("/health/live")).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


async def test_documentation_describes_errors_as_problems(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in paths.values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], operation
