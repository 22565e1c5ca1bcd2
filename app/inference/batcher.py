"""Many requests, one backend call at a time.

The batch is whatever waits when the backend comes free, up to a limit. There is no timer: an idle
server adds no delay, and a busy one fills its batches by being busy. This module knows only the
`Backend` protocol: nothing of HTTP, of files or of which model it serves.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from app.artifact.tensors import Images, Outputs
from app.errors import BackendFailed, DeadlineExceeded, PredictionError, QueueFull, ShuttingDown
from app.inference.backends import Backend

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What the model gave for a request's images, and the seconds spent waiting and computing."""

    outputs: Outputs
    queue_seconds: float
    inference_seconds: float


class Observer(Protocol):
    """Is told of what the batcher does, for metrics."""

    def waiting(self, images: int) -> None:
        """The queue now holds so many images."""

    def computed(self, images: int, seconds: float) -> None:
        """A batch of so many images took the backend so many seconds."""


@dataclass(slots=True, eq=False)
class _Item:
    """Part of a request, no larger than a batch. `arrived` is `perf_counter`'s time.

    `deadline` is in the event loop's time, which uvloop tells in whole milliseconds.
    """

    images: Images
    deadline: float
    patience: float
    arrived: float
    answer: asyncio.Future[Answer]


@dataclass(slots=True, eq=False)
class _Batch:
    """What the backend is given at a time, and what became of it."""

    items: Sequence[_Item]
    images: Images
    started: float
    outputs: Outputs | None = None
    error: BaseException | None = None


class Batcher:
    """A queue before one backend, and the thread that empties it.

    Everything but the backend's call happens in the event loop; the thread takes a batch from one
    side and hands it back on the other.
    """

    def __init__(
        self, backend: Backend, *, max_batch: int, capacity: int, observer: Observer
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            backend: is called from one thread, one batch at a time.
            max_batch: the most images in a batch.
            capacity: the most images that may wait.
            observer: is told of queue lengths and batches.
        """
        self._backend = backend
        self._max_batch = max_batch
        self._capacity = capacity
        self._observer = observer
        self._queue: deque[_Item] = deque()
        self._waiting = 0
        self._batch: _Batch | None = None
        self._batches: SimpleQueue[_Batch | None] = SimpleQueue()
        self._running = self._stopping = self._scheduled = False
        self._idle = asyncio.Event()

    @property
    def alive(self) -> bool:
        """Whether the worker runs and new work is taken."""
        return self._running and not self._stopping

    @property
    def busy_seconds(self) -> float:
        """For how long the backend has been computing the batch at hand; 0 if there is none."""
        return time.perf_counter() - self._batch.started if self._batch else 0.0

    def start(self) -> None:
        """Start the worker for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._running = True
        self._idle.set()
        # A process does not wait for a daemon thread, and so not for a call that hangs.
        threading.Thread(target=self._work, name="inference", daemon=True).start()

    async def stop(self, patience: float = 5.0) -> None:
        """Refuse new work, finish what waits, then stop.

        Args:
            patience: seconds after which what is not finished is given up: a runtime that hangs
                must not keep the process. The server has let the requests finish before, so that
                nobody waits for more than a last batch.
        """
        self._stopping = True
        try:
            async with asyncio.timeout(patience):
                await self._idle.wait()
        except TimeoutError:
            _log.error("the work of a model was given up before it was finished")
            self._fail_everything(ShuttingDown, "the service stopped before the model answered")
        self._running = False
        self._batches.put(None)

    async def submit(self, images: Images, deadline: float) -> Answer:
        """Wait for what the model makes of one request's images.

        Args:
            images: uint8 `[N,H,W,3]`; more than a batch are computed in several.
            deadline: when to give up, in the event loop's time.

        Raises:
            QueueFull: so many images do not fit in the queue.
            DeadlineExceeded: the answer was not there in time.
            ShuttingDown: the process is about to stop.
            BackendFailed: the backend raised, or the worker is dead.
        """
        items = self._enqueue(images, deadline)
        expiry = self._loop.call_at(deadline, self._expire, items)
        try:
            if len(items) == 1:
                return await items[0].answer
            return _join(await asyncio.gather(*(item.answer for item in items)))
        except BaseException:
            self._forget(items)
            raise
        finally:
            expiry.cancel()

    def _enqueue(self, images: Images, deadline: float) -> list[_Item]:
        if self._stopping:
            raise ShuttingDown("the service is about to stop")
        if not self._running:
            raise BackendFailed("the worker of this model is dead")
        if self._waiting + len(images) > self._capacity:
            raise QueueFull(
                f"{self._waiting} images wait and {len(images)} more do not fit; "
                f"the limit is {self._capacity}"
            )
        times = deadline, deadline - self._loop.time(), time.perf_counter()
        items = [
            _Item(images[at : at + self._max_batch], *times, self._loop.create_future())
            for at in range(0, len(images), self._max_batch)
        ]
        self._queue.extend(items)
        self._count(len(images))
        self._idle.clear()
        # Not at once: what else arrives in this turn of the event loop joins the batch.
        if self._batch is None and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._feed)
        return items

    def _expire(self, items: Sequence[_Item]) -> None:
        _fail(items, DeadlineExceeded, _too_late(items[0]))

    def _forget(self, items: Sequence[_Item]) -> None:
        """Take back what its caller waits for no more: cancelled, late, or failed in part."""
        for item in items:
            item.answer.cancel()
            if item in self._queue:
                self._queue.remove(item)
                self._count(-len(item.images))

    def _count(self, change: int) -> None:
        self._waiting += change
        self._observer.waiting(self._waiting)

    def _feed(self) -> None:
        """Give the thread its next batch, if there is one."""
        self._scheduled = False
        while self._queue and self._batch is None and self._running:
            items = self._take()
            if items:
                try:
                    self._batch = _gather(items)
                except ValueError as exc:
                    _fail(items, BackendFailed, str(exc), exc)
                else:
                    self._batches.put(self._batch)
        if self._batch is None:
            self._idle.set()

    def _take(self) -> list[_Item]:
        """Take what waits, up to a batch, leaving out what nobody waits for or is too late."""
        items: list[_Item] = []
        room = self._max_batch
        now = self._loop.time()
        while self._queue and len(self._queue[0].images) <= room:
            item = self._queue.popleft()
            self._count(-len(item.images))
            if item.answer.done():
                continue
            if item.deadline <= now:
                self._expire([item])
                continue
            items.append(item)
            room -= len(item.images)
        return items

    def _work(self) -> None:
        """Compute one batch after the other, in the thread."""
        while (batch := self._batches.get()) is not None:
            try:
                batch.outputs = self._backend.predict(batch.images)
            except BaseException as exc:  # noqa: BLE001 - the callers raise it
                batch.error = exc
            try:
                self._loop.call_soon_threadsafe(self._finish, batch, time.perf_counter())
            except RuntimeError:  # the event loop is closed: nobody waits any more
                return
            del batch  # and the images that it holds

    def _finish(self, batch: _Batch, now: float) -> None:
        """Hand out a batch's rows in the event loop, and go on with the next."""
        self._batch = None
        try:
            self._answer(batch, now)
        except BaseException as exc:  # noqa: BLE001 - the callers raise it
            _fail(batch.items, BackendFailed, str(exc), exc)
            if not isinstance(exc, Exception):
                self._die(exc)
        self._feed()

    def _answer(self, batch: _Batch, now: float) -> None:
        if batch.error is not None:
            raise batch.error
        outputs, images = batch.outputs, batch.images
        found = 0 if outputs is None else len(outputs.probabilities)
        if outputs is None or found != len(images):
            raise BackendFailed(f"{found} answers for {len(images)} images")
        if not np.isfinite(outputs.probabilities).all():
            raise BackendFailed("probabilities that are no numbers")
        seconds = now - batch.started
        self._observer.computed(len(images), seconds)
        at = 0
        for item in batch.items:
            part = outputs.part(at, len(item.images))
            at += len(item.images)
            if not item.answer.done():
                item.answer.set_result(Answer(part, batch.started - item.arrived, seconds))

    def _die(self, exc: BaseException) -> None:
        """Stop taking work: whoever still waits would wait until the deadline."""
        self._running = False
        self._batches.put(None)
        self._fail_everything(BackendFailed, "the worker of this model died", exc)
        _log.critical("the worker of a model died", exc_info=exc)

    def _fail_everything(
        self, error: type[PredictionError], message: str, cause: BaseException | None = None
    ) -> None:
        if self._batch is not None:
            _fail(self._batch.items, error, message, cause)
        _fail(self._queue, error, message, cause)


def _gather(items: Sequence[_Item]) -> _Batch:
    images = items[0].images
    if len(items) > 1:
        images = np.concatenate([item.images for item in items])
    return _Batch(items, images, time.perf_counter())


def _fail(
    items: Iterable[_Item],
    error: type[PredictionError],
    message: str,
    cause: BaseException | None = None,
) -> None:
    for item in items:
        if not item.answer.done():
            # An exception of its own for each: they are raised in different requests.
            failure = error(message)
            failure.__cause__ = cause
            item.answer.set_exception(failure)


def _too_late(item: _Item) -> str:
    return f"no answer within {item.patience:.2g} s"


def _join(answers: Sequence[Answer]) -> Answer:
    return Answer(
        Outputs.join([answer.outputs for answer in answers]),
        max(answer.queue_seconds for answer in answers),
        sum(answer.inference_seconds for answer in answers),
    )
