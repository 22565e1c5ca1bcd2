"""The application for a server that knows ASGI alone, with what our own server does beyond ASGI."""

import asyncio
import time
from collections import deque

from starlette.types import Message, Receive, Scope, Send

from app import problems
from app.errors import UploadTimeout
from app.server.application import Application, Handler
from app.telemetry.requests import REQUEST_ID, ClientAddress

_AT_ONCE_SECONDS = 0.1
"""A body that takes longer goes the long way."""


class AsgiApplication:
    """The application, which answers small predictions the short way and bounds slow bodies.

    `x-request-id` is left out of the answers: the server adds the same one.

    Args:
        application: answers.
        body_seconds: the longest time in which a body may arrive.
    """

    def __init__(self, application: Application, body_seconds: float) -> None:
        self._app = application
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, send = _Body(receive, self._body_seconds), _without_request_id(send)
        handler = self._handler(scope)
        if handler is not None:
            reply = await self._at_once(handler, scope, body)
            if reply is not None:
                for message in reply:
                    await send(message)
                return
        await self._app(scope, body.receive, send)

    def _handler(self, scope: Scope) -> Handler | None:
        """Return what may answer the request if it arrives whole."""
        if scope["method"] != "POST" or scope["path"] not in self._app.fast_paths:
            return None
        headers = scope["headers"]
        length = next((value for name, value in headers if name == b"content-length"), b"")
        if not length.isdigit() or int(length) > self._app.most_bytes:
            return None
        return self._app.handler(scope["path"].encode() + b"?" + scope["query_string"], headers)

    async def _at_once(
        self, handler: Handler, scope: Scope, body: "_Body"
    ) -> "tuple[Message, Message] | None":
        """Return the messages of an answer, or None if the request has to go the long way."""
        started = time.perf_counter()
        content = await body.at_once()
        if content is None or handler.refusal is not None:
            return None
        client = _Client(scope)
        pending = handler.begin(content, started, client)
        if pending is None:
            return None
        try:
            return await client.reply_or_none
        except asyncio.CancelledError:
            pending.state.ended_with = problems.CLIENT_GONE
            pending.end()
            raise


class _Body:
    """Receives a body in time; what was received ahead is given again."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive = receive
        self._seconds = seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._ahead = deque[Message]()
        self._whole = False

    async def at_once(self) -> bytes | None:
        """Return all of the body if it is there in a moment, and the client too."""
        try:
            async with asyncio.timeout(_AT_ONCE_SECONDS):
                while not self._whole:
                    self._ahead.append(await self._next())
        except TimeoutError:
            return None
        if self._ahead[-1]["type"] == "http.disconnect":
            return None
        return b"".join(message.get("body", b"") for message in self._ahead)

    async def receive(self) -> Message:
        """As ASGI's.

        Raises:
            UploadTimeout: the body did not arrive in time.
        """
        if self._ahead:
            return self._ahead.popleft()
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._next()
        except TimeoutError as exc:
            limit = f"{self._seconds:g} seconds"
            raise UploadTimeout(f"body did not arrive within the limit of {limit}") from exc

    async def _next(self) -> Message:
        message = await self._receive()
        self._whole = not message.get("more_body", False)
        return message


class _Client:
    """Waits for the answer to a whole request.

    Attributes:
        reply_or_none: the messages of the answer; None if the request goes the long way after all.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.reply_or_none: asyncio.Future[tuple[Message, Message] | None] = (
            asyncio.get_running_loop().create_future()
        )

    @property
    def address(self) -> ClientAddress:
        client = self._scope["client"]
        return None if client is None else (client[0], client[1])

    def decline(self, body: bytes) -> None:  # noqa: ARG002 -- it is still in `_Body`
        if not self.reply_or_none.done():
            self.reply_or_none.set_result(None)

    def reply(self, status: int, lines: bytes, body: bytes) -> bool:
        if self.reply_or_none.done():
            return False
        pairs = (line.partition(b": ") for line in lines.splitlines())
        headers = [(name, value) for name, _, value in pairs]
        headers.append((b"content-length", b"%d" % len(body)))
        start = {"type": "http.response.start", "status": status, "headers": headers}
        self.reply_or_none.set_result((start, {"type": "http.response.body", "body": body}))
        return True


def _without_request_id(send: Send) -> Send:
    async def forward(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [header for header in message["headers"] if header[0] != REQUEST_ID]
            message = {**message, "headers": headers}
        await send(message)

    return forward
