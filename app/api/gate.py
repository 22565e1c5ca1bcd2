"""A gate before what takes long: few are inside at a time, some wait, and the rest is refused.

Without one, requests that share a processor all make the same progress, and all are too late.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.errors import QueueFull


class Gate:
    """Lets those who wait in one by one, in the order in which they came.

    Attributes:
        waiting: how many wait now.
    """

    def __init__(self, what: str, waiting: int) -> None:
        """Open it.

        Args:
            what: waits here, in the plural.
            waiting: the most that may wait.
        """
        self.waiting = 0
        self._what = what
        self._most = waiting
        self._one_inside = asyncio.Lock()

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Be inside; who is cancelled waits no more.

        Raises:
            QueueFull: too many wait already.
        """
        if self.waiting >= self._most:
            raise QueueFull(f"{self.waiting} {self._what} wait; that is the limit")
        self.waiting += 1
        try:
            await self._one_inside.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._one_inside.release()
