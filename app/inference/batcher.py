"""The images of many requests, computed by one backend in batches.

A batch is all that waits when the backend becomes free, up to a limit. There is no timer: an idle
service adds no delay, and under load batches fill by themselves. A backend is called in a thread,
or in the event loop if that takes less time than the hand-over to a thread costs under load. This
module knows the `Backend` protocol, and nothing of HTTP, files or models.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from app.artifact.tensors import Images, Outputs
from app.errors import BackendFailed, DeadlineExceeded, PredictionError, QueueFull, ShuttingDown
from app.inference.backends import Backend
from app.inference.backlog import Backlog, enforce

LOAD_SECONDS = 0.005
"""How long a batch's images are loaded in one turn of the event loop, but for the last of them."""

OTHER_TURNS, OTHER_SECONDS = 8, 0.01
"""Turns of the event loop between two batches while images wait, and the processor time in them
after which the next batch waits for no more of them. To accept a connection and answer a request by
ASGI takes about five turns, which would otherwise be as many batches."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """The outputs for a request's images.

    Attributes:
        parts: of each batch that some of the images were in, in their order.
        load_seconds: the time to load the images.
        queue_seconds: the rest of the time that they waited.
        inference_seconds: of the batches.
    """

    parts: Sequence[Outputs]
    load_seconds: float
    queue_seconds: float
    inference_seconds: float

    @property
    def outputs(self) -> Outputs:
        """The outputs for all images, copied if they are of several batches."""
        return self.parts[0] if len(self.parts) == 1 else Outputs.join(self.parts)

    def outputs_of(self, index: int) -> Outputs:
        """Return the outputs for one image, not copied."""
        for part in self.parts:
            if index < len(part):
                return part.part(index, 1)
            index -= len(part)
        raise IndexError(f"no image {index} more")


class Observer(Protocol):
    """Receives the batcher's events, for metrics."""

    def waiting(self, change: int) -> None:
        """Record that so many images more, or fewer, wait in the queue."""

    def computed(self, images: int, seconds: float) -> None:
        """Record a batch's size and the seconds that it took the backend."""


@dataclass(slots=True, eq=False)
class _Item:
    """A part of a request, no larger than a batch.

    `read` returns its `size` images, and is called when its turn comes. `arrived` is
    `perf_counter`'s time. `deadline` is the event loop's time, which uvloop rounds to
    milliseconds. `patience` is the time in seconds between the two.
    """

    read: Callable[[], Images]
    size: int
    deadline: float
    patience: float
    arrived: float
    answer: asyncio.Future[Answer]
    images: Images | None = None
    load_seconds: float = 0.0

    def load(self) -> Images:
        """Return the images; they are read the first time."""
        if self.images is None:
            started = time.perf_counter()
            self.images = self.read()
            self.load_seconds = time.perf_counter() - started
        return self.images


@dataclass(slots=True, eq=False)
class _Batch:
    """One call of the backend, and its result.

    `fed` is the time before its images were loaded, `started` the time after that.
    """

    items: Sequence[_Item]
    images: Images
    fed: float
    started: float
    outputs: Outputs | None = None
    error: BaseException | None = None


class Batcher:
    """A queue in front of one backend, and the thread that calls the backend if there is one.

    The thread only takes a batch, calls the backend and hands the result back. All other work
    happens in the event loop. Without a thread, the loop computes a batch every few turns.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_batch: int,
        capacity: int,
        backlog: Backlog,
        observer: Observer,
        in_loop: bool = False,
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            backend: called with one batch at a time.
            max_batch: the most images in a batch.
            capacity: the most images that may wait.
            backlog: bounds the wait; it is told how the queue moves.
            observer: receives queue lengths and batches.
            in_loop: whether the event loop calls the backend.
        """
        self._backend = backend
        self._max_batch = max_batch
        self._capacity = capacity
        self._backlog = backlog
        self._last: _Batch | None = None  # until it is known how long the queue took for it
        self._no_room = QueueFull(f"{capacity} images wait; that is the limit")
        self._observer = observer
        self._in_loop = in_loop
        self._queue: deque[_Item] = deque()
        self._waiting = 0
        self._batch: _Batch | None = None
        self._batches: SimpleQueue[_Batch | None] = SimpleQueue()
        self._running = self._stopping = self._scheduled = False
        self._idle = asyncio.Event()

    @property
    def alive(self) -> bool:
        """Whether new work is accepted."""
        return self._running and not self._stopping

    @property
    def refusal(self) -> QueueFull | None:
        """The error of one image more, if it may not wait now."""
        if self._waiting >= self._capacity:
            return self._no_room
        return self._backlog.refusal(self._waiting)

    @property
    def busy_seconds(self) -> float:
        """The seconds since the current batch was started; 0 if there is none."""
        return time.perf_counter() - self._batch.started if self._batch else 0.0

    def start(self) -> None:
        """Start the thread, for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._running = True
        self._idle.set()
        if self._in_loop:
            return
        # A process does not wait for a daemon thread, so a call that hangs cannot keep it alive.
        threading.Thread(target=self._work, name="inference", daemon=True).start()

    async def stop(self, patience: float = 5.0) -> None:
        """Refuse new work, finish the queue, then stop.

        Args:
            patience: seconds after which unfinished work is given up, so that a runtime that hangs
                does not keep the process. The server has waited for its requests before, so at
                most a last batch is left.
        """
        self._stopping = True
        try:
            async with asyncio.timeout(patience):
                await self._idle.wait()
        except TimeoutError:
            _log.error("a model's unfinished work was given up")
            self._fail_everything(ShuttingDown, "the service stopped before the model answered")
        self._running = False
        self._batches.put(None)

    async def submit(self, images: Images, deadline: float) -> Answer:
        """Return the model's outputs for one request's images, however long they wait.

        Args:
            images: uint8 `[N,H,W,3]`; more than a batch are computed in several batches.
            deadline: when to give up, in the event loop's time.

        Raises:
            QueueFull: the queue has no room for the images.
            DeadlineExceeded: there was no answer by the deadline.
            ShuttingDown: the process is about to stop.
            BackendFailed: the backend raised, now or in such a way before that it is given up.
        """
        parts = [images[at : at + self._max_batch] for at in range(0, len(images), self._max_batch)]
        self._check_room(len(images))
        items = [self._item(partial(_given, part), len(part), deadline) for part in parts]
        self._enqueue(items)
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

    def begin(self, read: Callable[[], Images], timeout: float) -> "asyncio.Future[Answer]":
        """As `submit`, for one image that may wait by `refusal`; cancel the future to take it back.

        In the event loop a batch waits for little else, so the deadline is looked at when its turn
        comes.

        Args:
            read: returns the image, uint8 `[1,H,W,3]`. It is called when the image's turn comes,
                and its error is the future's; for a thread it is called at once.
            timeout: seconds after which to give up.

        Raises:
            PredictionError: as `submit` does.
        """
        self._check_room(1)
        item = self._item(read, 1, self._loop.time() + timeout)
        if not self._in_loop:
            item.load()  # meanwhile the thread computes
            expiry = self._loop.call_at(item.deadline, self._expire, [item])

            def forget(_: object) -> None:
                expiry.cancel()
                self._forget([item])

            item.answer.add_done_callback(forget)
        self._enqueue([item])
        return item.answer

    def check_wait(self) -> None:
        """Raise QueueFull if one image more may not wait now."""
        enforce(self.refusal)

    def _check_room(self, images: int) -> None:
        """Raise PredictionError if the queue does not take so many images."""
        if self._stopping:
            raise ShuttingDown("the service is about to stop")
        if not self._running:
            raise BackendFailed("this model has been given up")
        if self._waiting + images > self._capacity:
            raise QueueFull(
                f"{self._waiting} images wait and {images} more do not fit; "
                f"the limit is {self._capacity}"
            )

    def _item(self, read: Callable[[], Images], size: int, deadline: float) -> _Item:
        patience = deadline - self._loop.time()
        answer = self._loop.create_future()
        return _Item(read, size, deadline, patience, time.perf_counter(), answer)

    def _enqueue(self, items: Sequence[_Item]) -> None:
        """Put the parts of a request into the queue."""
        self._queue.extend(items)
        self._count(sum(item.size for item in items))
        self._idle.clear()
        self._feed_soon()

    def _feed_soon(self) -> None:
        """Feed later in this turn of the event loop, so that other requests can join the batch."""
        if self._batch is None and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._feed)

    def _feed_after_others(self) -> None:
        """Feed in a few turns of the event loop."""
        self._scheduled = True
        self._let_others(OTHER_TURNS, time.thread_time() + OTHER_SECONDS)

    def _let_others(self, turns: int, until: float) -> None:
        if turns and time.thread_time() < until:
            self._loop.call_soon(self._let_others, turns - 1, until)
        else:
            self._feed()

    def _expire(self, items: Sequence[_Item]) -> None:
        _fail(items, DeadlineExceeded, _too_late(items[0]))

    def _forget(self, items: Sequence[_Item]) -> None:
        """Remove the items of a request that was cancelled, late, or failed in part."""
        for item in items:
            item.answer.cancel()
            if item in self._queue:
                self._queue.remove(item)
                self._count(-item.size)

    def _count(self, change: int) -> None:
        self._waiting += change
        self._observer.waiting(change)

    def _feed(self) -> None:
        """Compute the next batch or hand it to the thread, if images wait."""
        self._scheduled = False
        if self._batch is not None:
            return
        if self._last is not None:  # images waited behind it
            self._backlog.served(len(self._last.images), time.perf_counter() - self._last.fed)
            self._last = None
        self._batch = batch = self._next_batch() if self._running else None
        if batch is None:
            if self._queue:
                self._feed_after_others()
            else:
                self._idle.set()
        elif self._in_loop:
            self._compute(batch)
            self._finish(batch, time.perf_counter())
        else:
            self._batches.put(batch)

    def _next_batch(self) -> _Batch | None:
        """Return a batch, or None if nothing waits or nothing of it could be loaded."""
        fed = time.perf_counter()
        items, images = self._take(fed + LOAD_SECONDS)
        if not items:
            return None
        try:
            return _gather(items, images, fed)
        except ValueError as exc:
            _fail(items, BackendFailed, str(exc), exc)
            return None

    def _take(self, until: float) -> tuple[list[_Item], list[Images]]:
        """Take items from the queue up to a batch, and load their images.

        Those that are cancelled, too late or cannot be loaded are dropped.
        """
        items: list[_Item] = []
        loaded: list[Images] = []
        room = self._max_batch
        now = self._loop.time()
        while self._queue and self._queue[0].size <= room and time.perf_counter() < until:
            item = self._queue.popleft()
            self._count(-item.size)
            if item.answer.done():
                continue
            if item.deadline <= now:
                self._expire([item])
                continue
            room -= item.size
            try:
                loaded.append(item.load())
            except Exception as exc:  # noqa: BLE001 - the caller raises it
                item.answer.set_exception(exc)
            else:
                items.append(item)
        return items, loaded

    def _work(self) -> None:
        """Compute one batch after another; the thread's main function."""
        while (batch := self._batches.get()) is not None:
            self._compute(batch)
            try:
                self._loop.call_soon_threadsafe(self._finish, batch, time.perf_counter())
            except RuntimeError:  # the event loop is closed, and with it every request
                return
            del batch  # frees the images while the thread waits

    def _compute(self, batch: _Batch) -> None:
        try:
            batch.outputs = self._backend.predict(batch.images)
        except BaseException as exc:  # noqa: BLE001 - the callers raise it
            batch.error = exc

    def _finish(self, batch: _Batch, now: float) -> None:
        """Answer a batch's requests and start the next batch, in the event loop."""
        self._batch = None
        if self._queue:
            self._last = batch
        else:
            self._backlog.served(len(batch.images), now - batch.fed)
        try:
            self._answer(batch, now)
        except BaseException as exc:  # noqa: BLE001 - the callers raise it
            _fail(batch.items, BackendFailed, str(exc), exc)
            if not isinstance(exc, Exception):
                self._die(exc)
        if self._in_loop and self._queue:
            self._feed_after_others()
        else:
            self._feed()

    def _answer(self, batch: _Batch, now: float) -> None:
        if batch.error is not None:
            raise batch.error
        outputs, images = batch.outputs, batch.images
        found = 0 if outputs is None else len(outputs)
        if outputs is None or found != len(images):
            raise BackendFailed(f"{found} answers for {len(images)} images")
        if not outputs.are_finite:
            raise BackendFailed("the backend gave answers that are no numbers")
        seconds = now - batch.started
        self._observer.computed(len(images), seconds)
        at = 0
        for item in batch.items:
            part = outputs.part(at, item.size)
            at += item.size
            if not item.answer.done():
                waited = batch.started - item.arrived - item.load_seconds
                item.answer.set_result(Answer((part,), item.load_seconds, waited, seconds))

    def _die(self, exc: BaseException) -> None:
        """Refuse new work, and fail what would otherwise wait until its deadline."""
        self._running = False
        self._batches.put(None)
        self._fail_everything(BackendFailed, "this model was given up", exc)
        _log.critical("a model was given up", exc_info=exc)

    def _fail_everything(
        self, error: type[PredictionError], message: str, cause: BaseException | None = None
    ) -> None:
        if self._batch is not None:
            _fail(self._batch.items, error, message, cause)
        _fail(self._queue, error, message, cause)
        self._queue.clear()
        self._count(-self._waiting)


def _gather(items: Sequence[_Item], images: Sequence[Images], fed: float) -> _Batch:
    together = images[0] if len(images) == 1 else np.concatenate(images)
    return _Batch(items, together, fed, time.perf_counter())


def _given(images: Images) -> Images:
    return images


def _fail(
    items: Iterable[_Item],
    error: type[PredictionError],
    message: str,
    cause: BaseException | None = None,
) -> None:
    for item in items:
        if not item.answer.done():
            # One exception each, because they are raised in different requests.
            failure = error(message)
            failure.__cause__ = cause
            item.answer.set_exception(failure)


def _too_late(item: _Item) -> str:
    return f"no answer within {item.patience:.2g} s"


def _join(answers: Sequence[Answer]) -> Answer:
    return Answer(
        [part for answer in answers for part in answer.parts],
        sum(answer.load_seconds for answer in answers),
        max(answer.queue_seconds for answer in answers),
        sum(answer.inference_seconds for answer in answers),
    )
