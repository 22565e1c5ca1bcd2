"""A bound on the wait in a queue, from the speed at which it is served.

A number of requests would fit one machine and one model. The age of the oldest would be known too
late: a queue that is closed when its oldest is too old holds as much again behind it.
"""

from collections import deque
from statistics import median

from app.errors import QueueFull

_REMEMBERED = 5
"""Batches whose median is the speed. An average would take one that was held up (by the processor's
other work, or a page of memory) for the speed of those to come, and refuse images for nothing."""


class Backlog:
    """The bound of one queue. It learns how fast images are served."""

    def __init__(self, max_wait: float, at_least: int) -> None:
        """Prepare; until the speed is known, the wait has no bound.

        Args:
            max_wait: seconds for which an image may be expected to wait.
            at_least: images that may wait in any case.
        """
        self._max_wait = max_wait
        self._at_least = at_least
        self._last: deque[float] = deque(maxlen=_REMEMBERED)  # seconds an image
        self._seconds = 0.0  # their median
        self._refusal = QueueFull(
            f"an image would wait for longer than {max_wait * 1000:g} ms; that is the limit"
        )

    def served(self, images: int, seconds: float) -> None:
        """Learn the time of so many images, with all that was done in between if others waited."""
        self._last.append(seconds / images)
        self._seconds = median(self._last)

    def refusal(self, waiting: int) -> QueueFull | None:
        """Return the error of an image that comes while so many wait, if it may not wait too."""
        if waiting >= self._at_least and waiting * self._seconds >= self._max_wait:
            return self._refusal
        return None


def enforce(refusal: QueueFull | None) -> None:
    """Raise a refusal, if there is one, as an exception of its own: others are refused by it too.

    Raises:
        QueueFull: with the refusal's words.
    """
    if refusal is not None:
        raise QueueFull(*refusal.args)
