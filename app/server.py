"""One worker: an event loop, an application and a listening socket, from start to last answer."""

import asyncio
import functools
import resource
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from app.connections import Connections
from app.metrics import Metrics
from app.protocol import HttpProtocol
from app.settings import Settings

_SPARE_DESCRIPTORS = 64
_LINGER_SECONDS = 1.0
"""How long a connection without a request stays open after SIGTERM.

A request may be on its way; closing at once would lose it.
"""


class Server(uvicorn.Server):
    """uvicorn's server, with our protocol and a shutdown that loses no request."""

    def __init__(
        self, app: FastAPI, settings: Settings, metrics: Metrics, beat: Callable[[], None]
    ) -> None:
        """Prepare.

        Args:
            app: the application.
            settings: its settings.
            metrics: its metrics.
            beat: is called when requests are answered, and every second from then on.
        """
        limit = min(settings.max_connections, _raise_descriptor_limit() - _SPARE_DESCRIPTORS)
        self._connections = Connections(settings, metrics, limit)
        self._metrics = metrics
        self._beat = beat
        super().__init__(
            uvicorn.Config(
                app,
                http=functools.partial(HttpProtocol, self._connections),  # type: ignore[arg-type]
                ws="none",
                lifespan="on",
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=settings.shutdown_seconds,
            )
        )

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second, first when it listens."""
        if counter % 10 == 0:
            self._connections.sweep()
            self._metrics.connections.set(len(self.server_state.connections))
            self._metrics.workers.set(1)
            self._beat()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what has been sent or is on its way, take no more, and stop."""
        self._connections.closing = True
        for connection in list(self.server_state.connections):
            connection.shutdown()
        listeners = [listener.dup() for listener in sockets or ()]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for client in _accept_last(listeners):
            await loop.connect_accepted_socket(self._protocol, client)
        loop.call_later(_LINGER_SECONDS, self._connections.close_idle)
        await super().shutdown(sockets)

    def _protocol(self) -> HttpProtocol:
        return HttpProtocol(
            self._connections,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )


def _accept_last(listeners: list[socket.socket]) -> list[socket.socket]:
    """Accept who has connected already, and close: the kernel resets who still waits then."""
    clients = []
    for listener in listeners:
        listener.setblocking(False)
        with listener, suppress(BlockingIOError):
            while True:
                client, _ = listener.accept()
                client.setblocking(False)
                clients.append(client)
    return clients


def _raise_descriptor_limit() -> int:
    """Raise the number of files that may be open to what the system allows; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
