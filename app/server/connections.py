"""The connections of a worker, and how much it has to do: what decides who is served and who goes.

Nothing here reads or writes a socket; that is `protocol`.
"""

import logging
import mmap
import time
from collections import Counter, OrderedDict
from http import HTTPStatus
from typing import Protocol

from app.errors import QueueFull
from app.problems import reason
from app.settings import Settings
from app.telemetry.metrics import OTHER, Metrics

_ROUTES = frozenset({"/predict"})  # whose paths may stand in metrics
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
        """Close if nothing is under way."""

    def abort(self) -> None:
        """Close at once, to make room."""


class Shares:
    """How many connections each worker has, in memory that all of them share.

    Who has more than another leaves the next one to that, so that all have about as many: a client
    keeps its connection, and so its worker, for long.
    """

    def __init__(self, workers: int) -> None:
        self.counts = memoryview(mmap.mmap(-1, 8 * workers)).cast("q")


class Share:
    """One worker's part of the shares."""

    def __init__(self, shares: Shares, place: int) -> None:
        self._counts = shares.counts
        self._place = place

    def set(self, connections: int) -> None:
        """Say how many connections this worker has."""
        self._counts[self._place] = connections

    @property
    def is_fair(self) -> bool:
        """Whether no worker has fewer connections than this one."""
        return self._counts[self._place] <= min(self._counts)


class Connections:
    """All connections of a worker: which wait for their clients since when, and what is at work."""

    def __init__(self, settings: Settings, metrics: Metrics, limit: int, share: Share) -> None:
        """Prepare.

        Args:
            settings: the limits.
            metrics: count what is refused here.
            limit: how many connections there may be.
            share: is told how many there are.
        """
        self.share = share
        self.settings = settings
        self.metrics = metrics
        self.closing = False
        self.working = 0
        """POSTs that have come whole and are being answered."""
        self.blocked: dict[Connection, float] = {}
        """Connections whose clients do not read, and since when."""
        self._limit = limit
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        self._all: set[Connection] = set()
        self._shed: Counter[str] = Counter()
        self._shed_since = 0
        self._warn_at = 0.0

    @property
    def count(self) -> int:
        """How many connections are open."""
        return len(self._all)

    @property
    def full(self) -> bool:
        """Whether the worker has as much to do as it takes on."""
        return self.working >= self.settings.max_requests

    def sweep(self) -> None:
        """Close what has waited too long for its client; to be called every second."""
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
            _log.warning("%d requests were refused: too much to do", self._shed_since)
            self._shed_since, self._warn_at = 0, now + _WARN_SECONDS

    def add(self, connection: Connection) -> bool:
        """Take a new connection, at the cost of the one that has waited longest for its client."""
        if len(self._all) >= self._limit:
            if not self._waiting:
                return False
            next(iter(self._waiting)).abort()
            self.metrics.count_rejection("connection-evicted")
        self._all.add(connection)
        self.share.set(len(self._all))
        return True

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._all.discard(connection)
        self.share.set(len(self._all))
        self._waiting.pop(connection, None)
        self.blocked.pop(connection, None)

    def wait(self, connection: Connection) -> None:
        """Note that a connection waits for its client, from now on."""
        self._waiting[connection] = None
        self._waiting.move_to_end(connection)

    def work(self, connection: Connection, counts: bool) -> None:
        """Note that a connection's request has come whole, and whether it counts as work."""
        self._waiting.pop(connection, None)
        self.working += counts

    def close_idle(self) -> None:
        """Close the connections that have no request under way."""
        for connection in list(self._waiting):
            connection.close_if_idle()

    def count_shed(self, path: str) -> None:
        """Count a POST that was refused because there is enough to do, until `flush`."""
        self._shed[path if path in _ROUTES else OTHER] += 1

    def flush(self) -> None:
        """Tell the metrics what was refused; to be called several times a second."""
        for route, count in self._shed.items():
            self.metrics.count_refused("POST", route, HTTPStatus.SERVICE_UNAVAILABLE, count)
            self.metrics.count_rejection(_SHED, count)
            self._shed_since += count
        self._shed.clear()
