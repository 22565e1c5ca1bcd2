"""Applications as tests need them."""

from collections.abc import Collection
from typing import cast

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from app.main import Application
from app.telemetry.metrics import Metrics


def application_of(client: httpx.AsyncClient) -> Application:
    """Return the application behind a client that calls it in this process."""
    return cast(Application, cast(httpx.ASGITransport, client._transport).app)


class AsgiOnly:
    """An application that takes no request whole."""

    fast_paths: Collection[str] = ()
    most_bytes = 0
    stuck_seconds = 0.0
    cors = None

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.metrics = Metrics()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def handler(self, *_: object) -> None:
        raise AssertionError("no path is fast")

    def refusal(self, _: object) -> None:
        return None

    def published(self, path: str, *_: object) -> str:
        return path

    def stop_being_ready(self) -> None:
        pass
