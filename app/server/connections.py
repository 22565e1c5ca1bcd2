"""A worker's connections and its work: they decide which client is served and which one goes.

This module touches no socket; `protocol` does.
"""

import asyncio
import logging
import mmap
import time
from collections import OrderedDict
from collections.abc import Collection
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from app.errors import ConvscopeError, QueueFull, TooManyConnections
from app.problems import STATUSES, reason
from app.settings import Settings
from app.telemetry import logs
from app.telemetry.metrics import OTHER, Metrics
from app.telemetry.requests import RequestState

_SHED = reason(QueueFull)
_WARN_SECONDS = 5.0

BLOCKED_SECONDS = 10.0
"""How long a client may leave an answer unread."""

_log = logging.getLogger(__name__)


class Connection(Protocol):
    """One client's connection."""

    def check(self, now: float) -> None:
        """Close if the client has taken longer than it may; `now` is `time.monotonic()`."""

    def close_if_idle(self) -> None:
        """Close if no request is under way."""

    def give_up(self) -> None:
        """Refuse the request under way, because the server stops; else close at once."""

    def abort(self) -> None:
        """Close at once, to make room."""


class Shares:
    """The number of connections of each worker, in memory that all of them share.

    A worker with more than another leaves it the next connections for a moment. Their numbers stay
    about equal, which matters because a client keeps its connection, and so its worker, for long.
    """

    def __init__(self, workers: int) -> None:
        self.counts = memoryview(mmap.mmap(-1, 8 * workers)).cast("q")


class Share:
    """One worker's part of the shares."""

    def __init__(self, shares: Shares, place: int) -> None:
        self._counts = shares.counts
        self._place = place

    def set(self, connections: int) -> None:
        """Publish the number of this worker's connections."""
        self._counts[self._place] = connections

    @property
    def is_fair(self) -> bool:
        """Whether no worker has fewer connections than this one, less an eighth."""
        ours = self._counts[self._place]
        return ours - ours // 8 <= min(self._counts)


class Connections:
    """All connections of a worker: those that wait for their clients, and the requests at work.

    Attributes:
        settings: the limits.
        metrics: count refusals.
        share: is told the number of connections.
        closing: whether the worker stops, and every answer is its connection's last.
        working: POSTs that have arrived whole and are being answered.
        blocked: connections with unread answers, and since when they are unread.
        tasks: of the application, one for each request that it answers by ASGI.
        date_header: the line of the header `date`, as bytes.
        full: the error of a POST that is one too many.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        limit: int,
        share: Share,
        paths: Collection[str],
    ) -> None:
        """Prepare.

        Args:
            settings: the limits.
            metrics: count refusals.
            limit: the most connections that may be open.
            share: is told the number of connections.
            paths: those that the metrics name when the server answers by itself.
        """
        self.share = share
        self.settings = settings
        self.metrics = metrics
        self.closing = False
        self.working = 0
        self.blocked: dict[Connection, float] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.date_header = _date_header()
        self.full = QueueFull(
            f"the worker has {settings.max_requests} requests to answer; that is the limit"
        )
        self._paths = paths
        self._limit = limit
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        self._all: set[Connection] = set()
        self._shed_since = 0
        self._warn_at = 0.0

    @property
    def count(self) -> int:
        """The number of open connections."""
        return len(self._all)

    @property
    def refusal(self) -> QueueFull | None:
        """The error of a further POST, if the worker has enough to do."""
        return self.full if self.working >= self.settings.max_requests else None

    def sweep(self) -> None:
        """Close connections that have waited too long for their clients; call it every second."""
        self.date_header = _date_header()
        now = time.monotonic()
        for connection in list(self._waiting):
            try:
                connection.check(now)
            except Exception:  # noqa: BLE001 - one connection must not end the worker
                _log.exception("a connection could not be checked")
                connection.abort()
        for connection, since in list(self.blocked.items()):
            if now - since > BLOCKED_SECONDS:
                connection.abort()
        if self._shed_since and now >= self._warn_at:
            _log.warning("%d requests were refused: the worker was full", self._shed_since)
            self._shed_since, self._warn_at = 0, now + _WARN_SECONDS

    def add(self, connection: Connection) -> bool:
        """Take a new connection; at the limit, the one that has waited longest for its client goes.

        Returns:
            False if the limit is reached and no connection waits for its client.
        """
        if len(self._all) >= self._limit:
            if not self._waiting:
                return False
            next(iter(self._waiting)).abort()
            self.metrics.count_rejection("connection-evicted")
        self._all.add(connection)
        self.share.set(len(self._all))
        return True

    def remove(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self._all.discard(connection)
        self.share.set(len(self._all))
        self._waiting.pop(connection, None)
        self.blocked.pop(connection, None)

    def wait(self, connection: Connection) -> None:
        """Note that a connection waits for its client, from now on."""
        self._waiting[connection] = None
        self._waiting.move_to_end(connection)

    def work(self, connection: Connection, counts: bool) -> None:
        """Note that a connection's request has arrived whole, and whether it counts as work."""
        self._waiting.pop(connection, None)
        self.working += counts

    def close_idle(self) -> None:
        """Close the connections that have no request under way."""
        for connection in list(self._waiting):
            connection.close_if_idle()

    def give_up(self) -> None:
        """Refuse all requests under way, because the worker stops."""
        for connection in list(self._all):
            connection.give_up()

    def count_refusal(self, error: ConvscopeError, request: RequestState, seconds: float) -> None:
        """Count and log a request that was refused before the application saw it."""
        status, _ = STATUSES[type(error)]
        self.metrics.count_rejection(reason(type(error)))
        self.metrics.count_refused(request.method, OTHER, status)
        if not isinstance(error, TooManyConnections):  # of which there may be thousands
            logs.write_request(request, status, seconds)

    def count_given_up(self, request: RequestState, status: int, seconds: float) -> None:
        """Count and log a request to a path of the application that ended before it was offered."""
        self.metrics.begin_request()
        self.metrics.end_request(request.method, self._route(request.path), status, seconds)
        logs.write_request(request, status, seconds)

    def count_shed(self, path: str) -> None:
        """Count a POST that was refused by a full worker."""
        self.metrics.count_refused("POST", self._route(path), HTTPStatus.SERVICE_UNAVAILABLE)
        self.metrics.count_rejection(_SHED)
        self._shed_since += 1

    def _route(self, path: str) -> str:
        return path if path in self._paths else OTHER


def _date_header() -> bytes:
    return f"date: {formatdate(usegmt=True)}\r\n".encode()
