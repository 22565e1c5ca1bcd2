"""FastAPI's exception handler: any exception becomes a problem."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app import problems
from app.errors import ConvscopeError, InvalidParameter
from app.telemetry.requests import state_of


async def respond(request: Request, exc: Exception) -> Response:
    """Answer any exception; the one handler."""
    if isinstance(exc, ClientDisconnect):
        return Response(status_code=problems.CLIENT_GONE)  # for the log and the metrics alone
    if isinstance(exc, RequestValidationError):
        exc = InvalidParameter("; ".join(_invalid(error) for error in exc.errors()))
    if isinstance(exc, HTTPException):
        return _respond_to_framework(request, exc)
    if isinstance(exc, ConvscopeError):
        state_of(request.scope).rejection = problems.reason(type(exc))
    request_id = state_of(request.scope).request_id
    status, headers, content = problems.render(exc, request.url.path, request_id)
    return Response(content, status, headers)


def _respond_to_framework(request: Request, exc: HTTPException) -> Response:
    """Answer Starlette's own errors, with the detail that they leave out."""
    path, given = request.url.path, dict(exc.headers or {})
    detail = exc.detail
    if exc.status_code == HTTPStatus.NOT_FOUND:
        detail = f"there is nothing at {problems.shorten(path)}"
    if exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        if "GET" in given["Allow"]:
            given["Allow"] = "GET, HEAD"  # the middleware answers HEAD wherever there is GET
        detail = f"{request.scope['method']} is not allowed here; there is: {given['Allow']}"
    status, headers, content = problems.render_status(
        exc.status_code, detail, path, state_of(request.scope).request_id
    )
    return Response(content, status, headers | given)


def _invalid(error: Mapping[str, Any]) -> str:
    """Describe one error of pydantic's in a parameter."""
    message = str(error["msg"]).removeprefix("Value error, ")
    _, *names = error["loc"]
    if not names:
        return message
    return f"{'.'.join(map(str, names))}={str(error['input'])[:64]}: {message}"
