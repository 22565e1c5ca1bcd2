"""The HTTP resources, one module each."""

from functools import cache
from typing import TypeVar, cast

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from app.api.queries import ModelQuery, Query
from app.api.state import Service
from app.artifact.directory import Artifact
from app.errors import InvalidParameter
from app.telemetry.requests import state_of

Q = TypeVar("Q", bound=Query)


def service_of(request: Request) -> Service:
    """Return what the process has."""
    return cast(Service, request.app.state.service)


def artifact_of(request: Request, query: ModelQuery) -> Artifact:
    """Return the model that the query means, and note it for the log line.

    Raises:
        UnknownModel: there is none.
    """
    artifact = service_of(request).store.find(query.model, query.version)
    state_of(request.scope).model = artifact.ref
    return artifact


def read_query(request: Request, kind: type[Q]) -> Q:
    """Return the query parameters, as FastAPI reads them for the other routes.

    Raises:
        RequestValidationError: a value that is not allowed.
        InvalidParameter: a parameter stands twice.
    """
    if not request.scope["query_string"]:
        return cast(Q, _without(kind))
    refuse_repeated(request)
    try:
        return kind.model_validate(dict(request.query_params))
    except ValidationError as exc:
        errors = [{**error, "loc": ("query", *error["loc"])} for error in exc.errors()]
        raise RequestValidationError(errors) from exc


def refuse_repeated(request: Request) -> None:
    """Raise InvalidParameter if a query parameter stands twice: either could be meant."""
    given = request.query_params.multi_items()
    names = [name for name, _ in given]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidParameter(f"query parameter {twice[:64]!r} stands more than once")


@cache
def _without(kind: type[Query]) -> Query:
    return kind()
