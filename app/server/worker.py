"""One worker: an event loop, an application and a listening socket, from start to last answer."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn

from app.machine import can_fork, raise_descriptor_limit
from app.server.application import Application
from app.server.connections import Connections, Share, Shares
from app.server.protocol import HttpProtocol
from app.settings import Settings

_SPARE_DESCRIPTORS = 64
_LINGER_SECONDS = 1.0
"""A connection without a request stays open for so long after SIGTERM.

A request may be on its way; closing at once would lose it.
"""

_MOST_ACCEPTED = 64  # in one turn of the event loop
_LEAVE_SECONDS = 0.001

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn's server, for lifespan, signals and ticks, with our own sockets and protocol.

    Its shutdown loses no request.
    """

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
            settings: the limits.
            share: this worker's part of all connections.
            beat: is called once the worker serves, and every second from then on.
        """
        # Windows cannot fork, and its usual loop does not watch a listening socket.
        loop = "auto" if can_fork() else "asyncio:SelectorEventLoop"
        config = uvicorn.Config(application, loop=loop, lifespan="on", ws="none", log_config=None)
        super().__init__(config)
        files = raise_descriptor_limit(settings.max_connections + _SPARE_DESCRIPTORS)
        limit = min(settings.max_connections, files - _SPARE_DESCRIPTORS)
        self._app = application
        self._metrics = application.metrics
        self._connections = Connections(
            settings, self._metrics, limit, share, application.fast_paths
        )
        self._settings = settings
        self._listener = listener
        self._share = share
        self._accepting: set[asyncio.Task[None]] = set()
        self._beat = beat

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Start the application, then listen."""
        await super().startup(sockets=[])
        if self.started:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second, first when it listens."""
        if counter % 10 == 0:
            self._mind()
            self._metrics.workers.set(1)
        return await super().on_tick(counter)

    def _mind(self) -> None:
        """Hold the clients to their limits, and tell of life; to be called every second."""
        self._beat()
        self._connections.sweep()
        self._metrics.connections.set(self._connections.count)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Answer the requests that have been sent or are on their way, take no more, and stop."""
        self._app.stop_being_ready()
        await self._wait_for_balancers()
        self._connections.closing = True
        asyncio.get_running_loop().remove_reader(self._listener)
        # The kernel resets clients that still wait to be accepted when the socket closes.
        while self._accept_one():
            pass
        self._listener.close()
        if not await self._finish():
            _log.error("requests were not answered in %d s", self._settings.shutdown_seconds)
            self._connections.give_up()
        await super().shutdown()

    async def _wait_for_balancers(self) -> None:
        """Serve as before while load balancers notice that the service is no longer ready."""
        for counter in range(round(10 * self._settings.drain_delay)):
            if self.force_exit:
                return
            if counter % 10 == 0:
                self._mind()
            await asyncio.sleep(0.1)

    async def _finish(self) -> bool:
        """Wait until all connections are closed and all tasks have ended; return whether so."""
        ticks = 10 * self._settings.shutdown_seconds
        for counter in range(1, ticks):
            if not (self._accepting or self._connections.count or self._connections.tasks):
                return True
            if self.force_exit:
                break
            await asyncio.sleep(0.1)
            if counter % 10 == 0:
                self._mind()
            if counter >= 10 * _LINGER_SECONDS:
                self._connections.close_idle()
        return False

    def _accept(self) -> None:
        """Accept clients, as long as this worker has no more than its share.

        The event loop's own server accepts one a turn, and the turns of a busy worker are long.
        """
        for _ in range(_MOST_ACCEPTED):
            if not self._share.is_fair:
                self._leave_to_others()
                break
            if not self._accept_one():
                break

    def _leave_to_others(self) -> None:
        """Accept no client for a moment, and then one that nobody else has taken."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)

        def again() -> None:
            if not self._connections.closing:
                self._accept_one()
                loop.add_reader(self._listener, self._accept)

        loop.call_later(_LEAVE_SECONDS, again)

    def _accept_one(self) -> bool:
        try:
            client, _ = self._listener.accept()
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # macOS: if it is there
        except BlockingIOError:
            return False
        except OSError as exc:  # the client has gone already, or no descriptor is left
            _log.warning("a connection could not be accepted: %s", exc)
            return False
        task = asyncio.create_task(self._serve_client(client))
        self._accepting.add(task)
        self._share.set(self._connections.count + len(self._accepting))
        task.add_done_callback(self._accepting.discard)
        return True

    async def _serve_client(self, client: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, client)

    def _protocol(self) -> HttpProtocol:
        return HttpProtocol(self._app, self._connections, self.lifespan.state)


def open_in_process(open_application: Callable[[], Application]) -> Application:
    """Open an application in the process that will serve it."""
    # The model's thread waits no longer than this for the interpreter. The default, 5 ms, is
    # longer than most requests take.
    sys.setswitchinterval(0.001)
    application = open_application()
    gc.collect()
    gc.freeze()  # the models stay, so no collection needs to examine them
    return application


def serve_alone(
    settings: Settings,
    listener: socket.socket,
    open_application: Callable[[], Application],
    on_ready: Callable[[], None],
) -> None:
    """Serve in this process until SIGTERM or SIGINT; nothing replaces it if it dies or hangs.

    Args:
        settings: the limits.
        listener: a listening socket.
        open_application: is called once, before the event loop starts.
        on_ready: is called once, when the process serves.

    Raises:
        ArtifactError: the models could not be opened.
    """
    _log.warning("this platform cannot fork: one process serves, and nothing replaces it")
    end_quietly(signal.SIGTERM, signal.SIGINT)
    served = False

    def beat() -> None:
        nonlocal served
        if not served:
            served = True
            on_ready()

    share = Share(Shares(1), 0)
    Server(open_in_process(open_application), listener, settings, share, beat).run()


def end_quietly(*signals: signal.Signals) -> None:
    """Exit with status 0 when uvicorn raises these signals again, after its shutdown.

    By default they would kill the process.
    """
    for number in signals:
        signal.signal(number, lambda *_: sys.exit(0))
