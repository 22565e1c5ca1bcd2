"""What happens around every request: its id, its log line, its metrics, and the last resort.

Pure ASGI: the body of an answer passes through untouched. HEAD is answered here, for every
resource that has GET. This module does not know what a request is about.
"""

import re
import secrets
import sys
import time
from typing import Any

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import http_errors
from app.errors import ConvscopeError
from app.metrics import OTHER, Metrics

REQUEST_ID = "X-Request-ID"
CLIENT_GONE = 499
"""nginx's status for a client that closed the connection before the answer; never sent."""

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_LOGGED_PATH = 256
_PROBES = frozenset({"/health/live", "/health/ready", "/metrics"})

_log = structlog.get_logger("convscope.access")


class RequestMiddleware:
    """Wraps the application; knows the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the lifespan."""
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, _in_one_line(send))
        else:
            await self._app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        # A copy, so that the server still sees that no body may follow a HEAD.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        request_id = _request_id(scope)
        inner.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id, head=scope["method"] == "HEAD")
        with (
            structlog.contextvars.bound_contextvars(request_id=request_id),
            self._metrics.in_flight.track_inprogress(),
        ):
            try:
                await self._guard(inner, receive, answer)
            finally:
                seconds = time.perf_counter() - started
                route = getattr(inner.get("route"), "path_format", OTHER)
                method = scope["method"]
                self._metrics.observe_request(method, route, answer.status, seconds)
                _write_line(scope, inner, answer.status, seconds)

    async def _guard(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        """Run the application; what nothing else has caught becomes a 500 here."""
        try:
            await self._app(scope, receive, answer.send)
        except ClientDisconnect:
            answer.status = CLIENT_GONE
        except Exception as exc:
            if answer.started:
                raise  # too late for another answer: the server logs it and cuts the connection
            response = await http_errors.respond(Request(scope), exc)
            await response(scope, receive, answer.send)


class _Answer:
    """Adds the request id to the answer, remembers its status and leaves out a HEAD's body."""

    def __init__(self, send: Send, request_id: str, *, head: bool) -> None:
        self._send = send
        self._request_id = request_id
        self._head = head
        self.started = False
        self.status = http_errors.STATUSES[ConvscopeError][0]

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            MutableHeaders(scope=message)[REQUEST_ID] = self._request_id
        elif self._head:
            message = {**message, "body": b""}
        await self._send(message)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if _SANE_ID.fullmatch(given) else secrets.token_hex(16)


def _write_line(scope: Scope, inner: Scope, status: int, seconds: float) -> None:
    raw_path = scope.get("raw_path") or scope["path"].encode()
    path = raw_path.partition(b"?")[0].decode("ascii", "backslashreplace")[:_MAX_LOGGED_PATH]
    fields: dict[str, Any] = {
        "method": scope["method"],
        "path": path,
        "status": status,
        "duration_ms": round(seconds * 1000, 2),
    }
    if "model" in inner["state"]:
        fields["model"] = inner["state"]["model"]
    # Probes come every few seconds for ever.
    (_log.debug if path in _PROBES else _log.info)("request", **fields)


def _in_one_line(send: Send) -> Send:
    """Replace the traceback of a start-up that failed for a known reason by that reason."""

    async def forward(message: Message) -> None:
        error = sys.exc_info()[1]
        if message["type"] == "lifespan.startup.failed" and isinstance(error, ConvscopeError):
            message = {**message, "message": str(error)}
        await send(message)

    return forward
