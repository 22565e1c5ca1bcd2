"""One worker: an event loop, an application and a listening socket, from start to last answer."""

import asyncio
import logging
import resource
import socket
from collections.abc import Callable
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from app.server.connections import Connections, Share
from app.server.protocol import HttpProtocol
from app.settings import Settings
from app.telemetry.metrics import Metrics

_SPARE_DESCRIPTORS = 64
_LINGER_SECONDS = 1.0
"""How long a connection without a request stays open after SIGTERM.

A request may be on its way; closing at once would lose it.
"""

_MOST_ACCEPTED = 64  # in one turn of the event loop

_log = logging.getLogger(__name__)


class Application(Protocol):
    """What a worker serves: an application whose models are open."""

    @property
    def asgi(self) -> ASGIApp:
        """The application."""

    @property
    def metrics(self) -> Metrics:
        """Where it counts."""

    @property
    def stuck_seconds(self) -> float:
        """How long its slowest computation has been under way; known once it serves."""


class Server(uvicorn.Server):
    """uvicorn's server, with our protocol, and a shutdown that loses no request."""

    def __init__(
        self,
        application: Application,
        listener: socket.socket,
        settings: Settings,
        share: Share,
        beat: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            application: is served.
            listener: a listening socket, closed at the end.
            settings: the application's.
            share: this worker's part of all connections.
            beat: is called when requests are answered, and every second from then on.
        """
        limit = min(settings.max_connections, _raise_descriptor_limit() - _SPARE_DESCRIPTORS)
        self._metrics = application.metrics
        self._connections = Connections(settings, self._metrics, limit, share)
        self._listener = listener
        self._share = share
        self._accepting: set[asyncio.Task[None]] = set()
        self._beat = beat
        super().__init__(
            uvicorn.Config(
                application.asgi,
                http=HttpProtocol,
                ws="none",
                lifespan="on",
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=settings.shutdown_seconds,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Start the application, then listen."""
        await super().startup(sockets=[])
        if self.started:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second, first when it listens."""
        self._connections.flush()
        if counter % 10 == 0:
            self._connections.sweep()
            self._metrics.connections.set(len(self.server_state.connections))
            self._metrics.workers.set(1)
            self._beat()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Answer what has been sent or is on its way, take no more, and stop."""
        self._connections.closing = True
        for connection in list(self.server_state.connections):
            connection.shutdown()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        # The kernel resets who still waits to be accepted when the socket closes.
        while self._accept_one():
            pass
        self._listener.close()
        minding = asyncio.create_task(self._mind())
        await super().shutdown()
        minding.cancel()
        self._connections.flush()

    async def _mind(self) -> None:
        """Hold the clients to their limits while the last requests are answered."""
        while True:
            await asyncio.sleep(_LINGER_SECONDS)
            self._connections.sweep()
            self._connections.close_idle()
            self._connections.flush()

    def _accept(self) -> None:
        """Accept one, and as many more as leave this worker no more than the others have.

        The event loop's own server takes one a turn, and the turns of a busy worker are long.
        """
        for _ in range(_MOST_ACCEPTED):
            if not self._accept_one() or not self._share.is_fair:
                break

    def _accept_one(self) -> bool:
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as exc:  # the client has gone already, or no descriptor is left
            _log.warning("a connection could not be accepted: %s", exc)
            return False
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.create_task(self._serve_client(client))
        self._accepting.add(task)
        self._share.set(self._connections.count + len(self._accepting))
        task.add_done_callback(self._accepting.discard)
        return True

    async def _serve_client(self, client: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, client)

    def _protocol(self) -> HttpProtocol:
        return HttpProtocol(
            self._connections,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )


def _raise_descriptor_limit() -> int:
    """Raise the number of files that may be open to what the system allows; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
