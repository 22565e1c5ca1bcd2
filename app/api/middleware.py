"""The outermost layer around every request: request id, log line, metrics, last error handler.

It is pure ASGI, so an answer's body passes through untouched. It answers HEAD for every resource
that has GET. It does not know the resources.
"""

import asyncio
import sys
import time

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import problems
from app.api import handlers
from app.errors import ConvscopeError
from app.telemetry import logs, requests
from app.telemetry.metrics import OTHER, Metrics
from app.telemetry.requests import (
    REQUEST_ID,
    SCOPE_KEY,
    STARTED_KEY,
    RequestState,
    request_id_of,
    state_of,
)


def end_request(metrics: Metrics, state: RequestState, status: int, seconds: float) -> None:
    """Count and log a request that has been answered or given up."""
    metrics.end_request(state.method, state.route or OTHER, status, seconds)
    if state.rejection is not None:
        metrics.count_rejection(state.rejection)
    logs.write_request(state, status, seconds)


class RequestMiddleware:
    """Surrounds each request of an application."""

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
        started = scope.get(STARTED_KEY, time.perf_counter())
        state = scope[SCOPE_KEY] = _state(scope)
        # A copy: the server must still see that no body may follow a HEAD.
        inner = {**scope, "method": "GET"} if state.method == "HEAD" else scope
        answer = _Answer(send, state.request_id, head=state.method == "HEAD")
        token = requests.current.set(state)
        self._metrics.begin_request()
        try:
            await self._guard(inner, receive, answer)
        finally:
            state.route = state.route or getattr(inner.get("route"), "path_format", None)
            end_request(self._metrics, state, answer.status, time.perf_counter() - started)
            requests.current.reset(token)

    async def _guard(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        """Run the application, and answer an error that nothing inside it has answered."""
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            ended_with = state_of(scope).ended_with
            if ended_with is None:
                raise
            if not answer.started:
                answer.status = ended_with
        except Exception as exc:
            if answer.complete:
                return  # Starlette has answered it with our handler, and raises it again
            if answer.started:
                raise  # too late to answer: the server logs it and closes the connection
            response = await handlers.respond(Request(scope), exc)
            await response(scope, receive, answer.send)


class _Answer:
    """Adds the request id to an answer, records its status and drops the body for HEAD.

    The start waits for the first part of the body, so an application that fails between the two
    can still be answered for.

    Attributes:
        started: whether a part of the answer has been sent.
        complete: whether all of it has.
        status: of the answer.
    """

    def __init__(self, send: Send, request_id: str, *, head: bool) -> None:
        self._send = send
        self._request_id = request_id
        self._head = head
        self.started = self.complete = False
        self.status = problems.STATUSES[ConvscopeError][0]
        self._start: Message | None = None  # until it is sent

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            request_id = (REQUEST_ID, self._request_id.encode())
            self._start = {**message, "headers": [*message["headers"], request_id]}
            return
        if self._start is not None:
            start, self._start = self._start, None
            await self._send(start)
        self.started = True
        self.complete = not message.get("more_body", False)
        if self._head:
            message = {**message, "body": b""}
        await self._send(message)


def _state(scope: Scope) -> RequestState:
    raw_path = scope.get("raw_path") or scope["path"].encode()
    path = raw_path.partition(b"?")[0].decode("ascii", "backslashreplace")
    return RequestState(scope["method"], path, request_id_of(scope["headers"]))


def _in_one_line(send: Send) -> Send:
    """Replace the traceback of a failed start by the error's message, if the error is ours."""

    async def forward(message: Message) -> None:
        error = sys.exc_info()[1]
        if message["type"] == "lifespan.startup.failed" and isinstance(error, ConvscopeError):
            message = {**message, "message": str(error)}
        await send(message)

    return forward
