"""The memory that the bodies of all requests hold together."""

import asyncio
import time
from collections import OrderedDict
from types import TracebackType
from typing import Self

from app.errors import QueueFull

SLOW_SECONDS = 1.0
"""A body that has been arriving for longer than this can be given up to make room for others."""


class Bodies:
    """The memory that the bodies of all requests in flight hold together, and its limit.

    When a body does not fit, the one that has been arriving for the longest time is given up: a
    client that sends slowly must not keep the memory that others need.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._peak = 0
        self._arriving: OrderedDict[Hold, None] = OrderedDict()

    def hold(self) -> "Hold":
        """Return one request's share, a context manager for as long as its body is needed."""
        return Hold(self)

    def add(self, size: int) -> None:
        """Count bytes that are held from now on, or given back if `size` is negative."""
        self.held += size
        self._peak = max(self._peak, self.held)

    def take_peak(self) -> int:
        """Return the most bytes that were held at one time since the last call."""
        peak, self._peak = self._peak, self.held
        return peak

    def make_room(self, size: int, wanted_by: "Hold") -> None:
        """Give up the slowest bodies until `size` more bytes fit.

        Raises:
            QueueFull: they do not fit, and no other body is slow.
        """
        while self.held + size > self.limit:
            slowest = next((hold for hold in self._arriving if hold.size), wanted_by)
            if slowest is wanted_by or time.monotonic() - slowest.since < SLOW_SECONDS:
                raise QueueFull(
                    f"bodies of {self.held} bytes are held and {size} more do not fit; "
                    f"the limit is {self.limit} bytes"
                )
            slowest.give_up()

    def begin(self, hold: "Hold") -> None:
        """Note that a body begins to arrive."""
        self._arriving[hold] = None

    def end(self, hold: "Hold") -> None:
        """Note that a body has arrived, or will not."""
        self._arriving.pop(hold, None)


class Hold:
    """One request's share of the memory; given back when the block ends.

    Attributes:
        since: when the body began to arrive, in `time.monotonic()`.
        size: the bytes of the body that are held.
    """

    def __init__(self, bodies: Bodies) -> None:
        self.since = time.monotonic()
        self.size = 0
        self._bodies = bodies
        self._given_up = False

    def __enter__(self) -> Self:
        self._bodies.begin(self)
        self._task = asyncio.current_task()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        self._bodies.end(self)
        self._bodies.add(-self.size)
        if self._given_up and self._task is not None and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise QueueFull(
                f"the body was still arriving after {time.monotonic() - self.since:.0f} s, and "
                f"other requests needed the {self._bodies.limit} bytes that all bodies may hold"
            ) from exc

    def grow(self, size: int) -> None:
        """Hold a body that has `size` bytes by now.

        Raises:
            QueueFull: all bodies together would hold too much.
        """
        if self._bodies.held - self.size + size > self._bodies.limit:
            self._bodies.make_room(size - self.size, self)
        self._bodies.add(size - self.size)
        self.size = size

    def complete(self) -> None:
        """Note that the body has arrived; it is no longer given up for others."""
        self._bodies.end(self)

    def give_up(self) -> None:
        """End the request with QueueFull, to make room."""
        self._bodies.end(self)
        self._bodies.add(-self.size)
        self.size = 0
        self._given_up = True
        if self._task is not None:
            self._task.cancel()
