"""The paths that go round FastAPI, because it would cost more than the rest of their work.

The saving: with FastAPI's middleware, routing, dependencies and query parsing, a prediction takes
1.6 times the processor time (one CIFAR-10 image, `simple-cnn`, called in process). The cost: these
handlers get their query parameters from `read_query` instead, and middleware or dependencies that
are added to FastAPI do not apply to them. FastAPI has the same routes: OpenAPI is generated from
them, and a test compares the answers.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import TypeVar, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from app.api.dependencies import refuse_repeated
from app.api.queries import PredictQuery, Query
from app.api.routes import predict
from app.telemetry.requests import state_of

Endpoint = Callable[[Request], Awaitable[Response]]
Q = TypeVar("Q", bound=Query)


async def _predict(request: Request) -> Response:
    return await predict.predict(request, read_query(request, PredictQuery))


ENDPOINTS: Mapping[tuple[str, str], Endpoint] = {("POST", predict.PATH): _predict}
"""Handlers by method and path."""


class FastPaths:
    """An ASGI application: `ENDPOINTS`, and FastAPI for everything else."""

    def __init__(self, framework: FastAPI) -> None:
        self._framework = framework

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or the lifespan."""
        endpoint = None
        if scope["type"] == "http":
            endpoint = ENDPOINTS.get((scope["method"], scope["path"]))
        if endpoint is None:
            await self._framework(scope, receive, send)
            return
        scope["app"] = self._framework
        state_of(scope).route = scope["path"]
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def read_query(request: Request, kind: type[Q]) -> Q:
    """Return the query parameters, with the checks that FastAPI makes for other routes.

    Raises:
        RequestValidationError: a value is not allowed.
        InvalidParameter: a parameter is given twice.
    """
    if not request.scope["query_string"]:
        return cast(Q, _defaults(kind))
    refuse_repeated(request)
    try:
        return kind.model_validate(dict(request.query_params))
    except ValidationError as exc:
        errors = [{**error, "loc": ("query", *error["loc"])} for error in exc.errors()]
        raise RequestValidationError(errors) from exc


@cache
def _defaults(kind: type[Query]) -> Query:
    return kind()
