"""A gate before slow work: one request is inside, a few wait in order, the rest are refused.

Without it, requests that share a processor would all progress at the same rate and all be late.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter

from app.errors import QueueFull


class Gate:
    """Admits one at a time, in the order of arrival."""

    def __init__(self, kind: str, max_waiting: int) -> None:
        """Open it.

        Args:
            kind: of the work, in the plural; stands in the error.
            max_waiting: how many may wait.
        """
        self._kind = kind
        self._max_waiting = max_waiting
        self._limiter = CapacityLimiter(1)

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return self._limiter.statistics().tasks_waiting

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Wait for admission, and hold it for the block.

        Raises:
            QueueFull: too many wait already.
        """
        if self.waiting >= self._max_waiting:
            raise QueueFull(f"{self.waiting} {self._kind} wait; that is the limit")
        async with self._limiter:
            yield
