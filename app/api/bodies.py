"""How much memory the bodies of all requests may take, and whose makes room when it is too much.

Who sends a body slowly holds what others need: where there is no room left, the body that has been
coming for the longest time goes.
"""

import asyncio
import time
from collections import OrderedDict
from types import TracebackType
from typing import Self

from app.errors import QueueFull

SLOW_SECONDS = 1.0
"""How long a body may be on its way before it can be made to go."""


class Bodies:
    """The bytes that the requests in flight hold, of how many they may."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._coming: OrderedDict[Hold, None] = OrderedDict()

    def hold(self) -> "Hold":
        """Return one request's part, to be entered while the request lasts."""
        return Hold(self)

    def make_room(self, size: int, wanted_by: "Hold") -> None:
        """Give up the slowest bodies until so many bytes more fit.

        Raises:
            QueueFull: they do not fit, and no other body is slow.
        """
        while self.held + size > self.limit:
            slowest = next((hold for hold in self._coming if hold.size), wanted_by)
            if slowest is wanted_by or time.monotonic() - slowest.since < SLOW_SECONDS:
                raise QueueFull(
                    f"bodies of {self.held} bytes are held and {size} more do not fit; "
                    f"the limit is {self.limit} bytes"
                )
            slowest.give_up()

    def coming(self, hold: "Hold", *, still: bool) -> None:
        """Note whether a body is on its way."""
        if still:
            self._coming[hold] = None
        else:
            self._coming.pop(hold, None)


class Hold:
    """The bytes of one request's body, which count as held until the block ends."""

    def __init__(self, bodies: Bodies) -> None:
        self.since = time.monotonic()
        self._bodies = bodies
        self.size = 0
        self._given_up = False

    def __enter__(self) -> Self:
        self._bodies.coming(self, still=True)
        self._task = asyncio.current_task()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        self._bodies.coming(self, still=False)
        self._bodies.held -= self.size
        if self._given_up and self._task is not None and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise QueueFull(
                f"the body was still coming after {time.monotonic() - self.since:.0f} s, and the "
                f"{self._bodies.limit} bytes that all bodies may hold were needed for others"
            ) from exc

    def __call__(self, size: int) -> None:
        """Take the size that the body has so far.

        Raises:
            QueueFull: together with the others that is too much.
        """
        if self._bodies.held - self.size + size > self._bodies.limit:
            self._bodies.make_room(size - self.size, self)
        self._bodies.held += size - self.size
        self.size = size

    def complete(self) -> None:
        """Note that the body has come; from now on it does not make room."""
        self._bodies.coming(self, still=False)

    def give_up(self) -> None:
        """Make room, by ending the request with QueueFull."""
        self._bodies.coming(self, still=False)
        self._bodies.held -= self.size
        self.size = 0
        self._given_up = True
        if self._task is not None:
            self._task.cancel()
