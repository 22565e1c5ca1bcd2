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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import ParamSpec, Protocol, TypeVar

import numpy as np

from app.backends import Backend
from app.contract import Images, Probabilities
from app.errors import (
    BackendFailed,
    DeadlineExceeded,
    PredictionError,
    QueueFull,
    ShuttingDown,
)

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """Probabilities `[N,classes]` and the seconds that were spent waiting and computing."""

    probabilities: Probabilities
    queue_seconds: float
    inference_seconds: float


class Observer(Protocol):
    """Is told of what the batcher does, for metrics."""

    def waiting(self, images: int) -> None:
        """The queue now holds so many images."""

    def computed(self, images: int, seconds: float) -> None:
        """A batch of so many images took the backend so many seconds."""


@dataclass(frozen=True, eq=False)
class _Item:
    """Part of a request, no larger than a batch.

    `deadline` is in the event loop's time, which uvloop tells in whole milliseconds; `arrived` is
    `perf_counter`'s.
    """

    images: Images
    deadline: float
    patience: float
    arrived: float
    answer: asyncio.Future[Answer]


class Batcher:
    """A queue before one backend, and the task that empties it."""

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
        self._wake = asyncio.Event()
        self._stopping = False
        self._thread = _DaemonThread()
        self._worker: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether the worker runs and new work is taken."""
        return self._worker is not None and not self._worker.done() and not self._stopping

    def start(self) -> None:
        """Start the worker in the running event loop."""
        self._worker = asyncio.create_task(self._work(), name="batcher")

    async def stop(self, patience: float = 5.0) -> None:
        """Refuse new work, finish what waits, then stop.

        Args:
            patience: seconds after which what is not finished is given up: a runtime that hangs
                must not keep the process. The server has let the requests finish before, so that
                nobody waits for more than a last batch.
        """
        self._stopping = True
        self._wake.set()
        if self._worker is not None:
            await asyncio.wait([self._worker], timeout=patience)
            self._worker.cancel()  # without effect on one that is done
            # What killed a dead worker has been logged.
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def submit(self, images: Images, deadline: float) -> Answer:
        """Wait for the probabilities of one request's images.

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
        try:
            async with asyncio.timeout_at(deadline):
                answers = await asyncio.gather(*(item.answer for item in items))
        except BaseException as exc:
            self._forget(items)
            if isinstance(exc, TimeoutError):
                raise DeadlineExceeded(_too_late(items[0])) from exc
            raise
        return _join(answers)

    def _enqueue(self, images: Images, deadline: float) -> list[_Item]:
        if self._stopping:
            raise ShuttingDown("the service is about to stop")
        if not self.alive:
            raise BackendFailed("the worker of this model is dead")
        if self._waiting + len(images) > self._capacity:
            raise QueueFull(
                f"{self._waiting} images wait and {len(images)} more do not fit; "
                f"the limit is {self._capacity}"
            )
        loop = asyncio.get_running_loop()
        times = deadline, deadline - loop.time(), time.perf_counter()
        items = [
            _Item(images[at : at + self._max_batch], *times, loop.create_future())
            for at in range(0, len(images), self._max_batch)
        ]
        self._queue.extend(items)
        self._count(len(images))
        self._wake.set()
        return items

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

    async def _work(self) -> None:
        try:
            while not (self._stopping and not self._queue):
                batch = self._take()
                if batch:
                    await self._compute(batch)
                else:
                    self._wake.clear()
                    if not self._stopping:
                        await self._wake.wait()
        except asyncio.CancelledError:
            _fail(self._queue, ShuttingDown, "the service stopped before the model answered")
            _log.error("the work of a model was given up before it was finished")
            raise
        except BaseException as exc:
            # Whoever still waits when the worker dies would wait until the deadline.
            _fail(self._queue, BackendFailed, "the worker of this model died", exc)
            _log.critical("the worker of a model died", exc_info=exc)
            raise

    def _take(self) -> list[_Item]:
        """Take what waits, up to a batch, leaving out what nobody waits for or is too late."""
        batch: list[_Item] = []
        room = self._max_batch
        now = asyncio.get_running_loop().time()
        while self._queue and len(self._queue[0].images) <= room:
            item = self._queue.popleft()
            self._count(-len(item.images))
            if item.answer.done():
                continue
            if item.deadline <= now:
                _fail([item], DeadlineExceeded, _too_late(item))
                continue
            batch.append(item)
            room -= len(item.images)
        return batch

    async def _compute(self, batch: Sequence[_Item]) -> None:
        try:
            await self._answer(batch)
        except asyncio.CancelledError:
            _fail(batch, ShuttingDown, "the service stopped before the model answered")
            raise
        except BaseException as exc:
            _fail(batch, BackendFailed, str(exc), exc)
            if not isinstance(exc, Exception):
                raise

    async def _answer(self, batch: Sequence[_Item]) -> None:
        loop = asyncio.get_running_loop()
        images = batch[0].images
        if len(batch) > 1:
            images = np.concatenate([item.images for item in batch])
        started = time.perf_counter()
        rows = await loop.run_in_executor(self._thread, self._predict, images)
        seconds = time.perf_counter() - started
        self._observer.computed(len(images), seconds)
        at = 0
        for item in batch:
            part = rows[at : at + len(item.images)]
            at += len(item.images)
            if not item.answer.done():
                item.answer.set_result(Answer(part, started - item.arrived, seconds))

    def _predict(self, images: Images) -> Probabilities:
        rows = self._backend.predict(images)
        if len(rows) != len(images):
            raise BackendFailed(f"{len(rows)} answers for {len(images)} images")
        return rows


class _DaemonThread(Executor):
    """One thread that makes one call after the other.

    A process that ends waits for `ThreadPoolExecutor`'s threads, and so for ever for a call that
    hangs. It does not wait for this one.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args, **kwargs))
                except BaseException as exc:  # noqa: BLE001 - the caller raises it
                    future.set_exception(exc)

        self._calls.put(call)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
            self._thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # and the batch that it holds


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
    if len(answers) == 1:
        return answers[0]
    return Answer(
        np.concatenate([answer.probabilities for answer in answers]),
        max(answer.queue_seconds for answer in answers),
        sum(answer.inference_seconds for answer in answers),
    )
