"""Errors as HTTP answers: one table, one handler, one shape.

Every error is `application/problem+json` (RFC 9457). What is not in the table is a 500 that says
nothing of the inside; its traceback goes to the log.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from app import errors
from app.api.schemas import Problem
from app.errors import ConvscopeError

PROBLEM_JSON = "application/problem+json"
_log = structlog.get_logger(__name__)

_MAX_PATH = 256  # of what is said back

INTERNAL = "the service failed; its log has more under this request_id"

STATUSES: Mapping[type[ConvscopeError], tuple[int, str]] = {
    errors.ConvscopeError: (500, "Internal error"),
    errors.ArtifactError: (500, "A model's files are damaged"),
    errors.SettingsError: (500, "Settings are wrong"),
    errors.RequestError: (400, "The request cannot be taken"),
    errors.MalformedRequest: (400, "Malformed request"),
    errors.HeadTooLarge: (431, "Request head too large"),
    errors.HeadTimeout: (408, "Request head took too long"),
    errors.TooManyConnections: (503, "Too many connections"),
    errors.UploadError: (400, "The body cannot be taken"),
    errors.EmptyUpload: (400, "Empty upload"),
    errors.UploadTooLarge: (413, "Upload too large"),
    errors.UploadTimeout: (408, "Upload took too long"),
    errors.TooManyImages: (413, "Too many images"),
    errors.UnsupportedMediaType: (415, "Unsupported media type"),
    errors.MalformedUpload: (400, "Malformed upload"),
    errors.ImageError: (422, "The image cannot be classified"),
    # RFC 9110, 15.5.16: also "as a result of inspecting the data directly".
    errors.NotAnImage: (415, "Not an image"),
    errors.DamagedImage: (422, "Damaged image"),
    errors.UnsupportedImage: (415, "Unsupported kind of image"),
    errors.TooManyPixels: (413, "Too many pixels"),
    errors.NotFound: (404, "Not found"),
    errors.UnknownModel: (404, "Unknown model"),
    errors.UnknownLayer: (404, "Unknown layer"),
    errors.UnknownFilter: (404, "Unknown filter"),
    errors.UnknownClass: (404, "Unknown class"),
    errors.NothingToSee: (404, "Nothing to see"),
    errors.InvalidParameter: (422, "Invalid parameter"),
    errors.NotAcceptable: (406, "Not acceptable"),
    errors.NotReady: (503, "Not ready"),
    errors.PredictionError: (500, "Prediction failed"),
    errors.QueueFull: (503, "Too busy"),
    errors.DeadlineExceeded: (504, "Took too long"),
    errors.ShuttingDown: (503, "Shutting down"),
    errors.BackendFailed: (500, "Prediction failed"),
}

_HEADERS: Mapping[int, Mapping[str, str]] = {
    406: {"vary": "Accept"},
    408: {"connection": "close"},
    503: {"retry-after": "1"},
}


async def respond(request: Request, exc: Exception) -> Response:
    """Answer any exception; the one handler."""
    if isinstance(exc, RequestValidationError):
        exc = errors.InvalidParameter("; ".join(_invalid(error) for error in exc.errors()))
    if isinstance(exc, HTTPException):
        return _respond_to_framework(request, exc)
    if isinstance(exc, ConvscopeError):
        request.state.reason = reason(type(exc))
    status, headers, content = render(exc, request.url.path, request.state.request_id)
    return Response(content, status, headers)


def render(exc: Exception, path: str, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """Return any exception's status, headers and body; what is our own fault goes to the log."""
    kind = type(exc) if isinstance(exc, ConvscopeError) else ConvscopeError
    status, title = STATUSES[kind]
    uri, detail = problem_type(kind), str(exc)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("request failed", exc_info=exc)
        uri, title, detail = "about:blank", HTTPStatus(status).phrase, INTERNAL
    problem = Problem(
        type=uri,
        title=title,
        status=status,
        detail=detail,
        instance=path[:_MAX_PATH],
        request_id=request_id,
    )
    headers = {"content-type": PROBLEM_JSON, **_HEADERS.get(status, {})}
    return status, headers, problem.model_dump_json().encode()


def reason(error: type[Exception]) -> str:
    """Return the error's name as it stands in metrics and at the end of its URI: `queue-full`."""
    words = "".join(f"-{char.lower()}" if char.isupper() else char for char in error.__name__)
    return words.removeprefix("-")


def problem_type(error: type[Exception]) -> str:
    """Return the URI that tells a program which error it is: `urn:convscope:problem:queue-full`."""
    return f"urn:convscope:problem:{reason(error)}"


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these error statuses."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM_JSON: {"schema": schema}},
        }
        for status in statuses
    }


def _respond_to_framework(request: Request, exc: HTTPException) -> Response:
    """Say what starlette's own errors leave out."""
    headers = dict(exc.headers or {})
    detail = exc.detail
    if exc.status_code == HTTPStatus.NOT_FOUND:
        detail = f"there is nothing at {request.url.path[:_MAX_PATH]}"
    if exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        if "GET" in headers["Allow"]:
            headers["Allow"] = "GET, HEAD"  # the middleware answers HEAD wherever there is GET
        detail = f"{request.scope['method']} is not allowed here; there is: {headers['Allow']}"
    problem = Problem(
        type="about:blank",
        title=HTTPStatus(exc.status_code).phrase,
        status=exc.status_code,
        detail=detail,
        instance=request.url.path[:_MAX_PATH],
        request_id=request.state.request_id,
    )
    return Response(problem.model_dump_json(), exc.status_code, headers, PROBLEM_JSON)


def _invalid(error: Mapping[str, Any]) -> str:
    """Say in words what pydantic found wrong with one parameter."""
    message = str(error["msg"]).removeprefix("Value error, ")
    _, *names = error["loc"]
    if not names:
        return message
    return f"{'.'.join(map(str, names))}={str(error['input'])[:64]}: {message}"
