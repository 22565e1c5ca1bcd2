"""The state of a running process: settings, models, queues, threads and metrics.

`main` opens it for the application's lifetime, and the routes use it. It knows no request.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from app.api.gate import Gate
from app.api.uploads.memory import Bodies
from app.api.uploads.upload import UploadLimits
from app.artifact.directory import Artifact
from app.artifact.store import Store
from app.errors import DeadlineExceeded
from app.explore.layers import Inside, Insides
from app.inference.backends import Backend, batch_limit, is_quick
from app.inference.backlog import Backlog, enforce
from app.inference.batcher import Batcher
from app.machine import trim_heap
from app.settings import Settings
from app.telemetry import logs
from app.telemetry.exposition import Exposition
from app.telemetry.metrics import Metrics, ModelMetrics

MAX_WAITING_DRAWINGS = 64
"""How many requests may wait for a drawing, or for a look inside a model."""

MAX_WAITING_EXPLANATIONS = 8
"""How many explanations of one model may wait; each costs as much as 81 predictions."""

FLUSH_SECONDS = 0.1
"""How long log lines and what metrics count may wait in memory."""

TRIM_SECONDS = 3.0
"""How often to look whether bodies hold less memory than before."""
TRIM_BYTES = 32 << 20
"""When it is less by so much, free memory goes back to the system."""

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """Everything that the routes need.

    Attributes:
        exposition: of the metrics.
        batchers: the queue of each model, by `Artifact.ref` like the other mappings.
        model_metrics: where each model is counted.
        explain_gates: the order of each model's explanations.
        explore_gate: the order of `explore`.
        decode_threads: for `decode`.
        explore_thread: for `explore`.
        bodies: the memory of all bodies.
        insides: the models that can be looked into, opened when they are first asked for.
        stopping: is set when the process is about to stop.
    """

    settings: Settings
    store: Store
    metrics: Metrics
    exposition: Exposition
    batchers: Mapping[str, Batcher]
    model_metrics: Mapping[str, ModelMetrics]
    explain_gates: Mapping[str, Gate]
    explore_gate: Gate
    decode_threads: "DecodeThreads"
    explore_thread: ThreadPoolExecutor
    upload_limits: UploadLimits
    bodies: Bodies
    insides: Insides
    stopping: asyncio.Event

    @property
    def broken(self) -> list[str]:
        """The models that take no work or are stuck, as `name/version`."""
        return [
            ref
            for ref, batcher in self.batchers.items()
            if not batcher.alive or batcher.busy_seconds > self.settings.stall_seconds
        ]

    @property
    def stuck_seconds(self) -> float:
        """How long the slowest batch has been computed; infinity if a model takes no work."""
        return max(
            batcher.busy_seconds if batcher.alive else math.inf
            for batcher in self.batchers.values()
        )

    async def decode(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that decodes a large image or makes its masks, in one of a few threads.

        Their number limits the memory too: an image that waits for a thread is not decoded yet.
        """
        return await self.decode_threads.run(lambda: function(*args, **kwargs))

    async def explore(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that draws or looks inside a model, in a thread of its own.

        One runs at a time, and no prediction waits for it.

        Raises:
            QueueFull: too many wait already.
            DeadlineExceeded: its turn did not come in time.
        """
        loop, timeout = asyncio.get_running_loop(), self.settings.request_timeout_seconds
        try:
            async with asyncio.timeout(timeout), self.explore_gate.enter():
                return await loop.run_in_executor(
                    self.explore_thread, lambda: function(*args, **kwargs)
                )
        except TimeoutError as exc:
            raise DeadlineExceeded(f"no answer within {timeout:g} s") from exc

    async def look_inside(self, artifact: Artifact) -> Inside:
        """Return a model's layers; opened, the first time, in a thread that blocks no image.

        Raises:
            NothingToSee: the model was exported without them.
            ArtifactError: the model's files are damaged.
        """
        return await asyncio.to_thread(self.insides.open, artifact)


class DecodeThreads(ThreadPoolExecutor):
    """A few threads, and a bound on the wait for them."""

    def __init__(self, number: int, max_wait: float) -> None:
        super().__init__(number, "decode")
        self._number = number
        self._backlog = Backlog(max_wait, at_least=2 * number)
        self._unfinished = 0

    @property
    def _waiting(self) -> int:
        return self._unfinished - self._number

    def check_wait(self) -> None:
        """Raise QueueFull if one image more may not wait now."""
        enforce(self._backlog.refusal(self._waiting))

    async def run(self, function: Callable[[], T]) -> T:
        """Return the function's result, however long it waits."""
        # A caller that has gone leaves its work behind, which still takes a thread.
        self._unfinished += 1
        work = self.submit(_timed, function)
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda ended: loop.call_soon_threadsafe(self._ended, ended))
        return (await asyncio.wrap_future(work))[1]

    def _ended(self, work: Future[tuple[float, Any]]) -> None:
        self._unfinished -= 1
        if not work.cancelled() and work.exception() is None:
            self._backlog.served(self._number, work.result()[0])


def _timed(function: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


@asynccontextmanager
async def run_service(
    settings: Settings,
    store: Store,
    backends: Mapping[str, Backend],
    metrics: Metrics,
    exposition: Exposition,
) -> AsyncIterator[Service]:
    """Start a queue before each backend; at the end, finish and count the waiting work."""
    for artifact in store:
        metrics.describe_model(
            artifact.manifest.name,
            artifact.manifest.version,
            artifact.manifest.architecture,
            settings.backend,
            settings.precision,
            str(artifact in store.defaults.values()).lower(),
        )
    model_metrics = {
        artifact.ref: ModelMetrics(
            metrics,
            artifact.manifest.name,
            artifact.manifest.version,
            metrics.predictions if artifact.manifest.task == "classification" else metrics.objects,
        )
        for artifact in store
    }
    batchers = {
        artifact.ref: _batcher(
            settings, artifact, backends[artifact.ref], model_metrics[artifact.ref]
        )
        for artifact in store
    }
    bodies = Bodies(settings.max_held_bytes)
    with (
        DecodeThreads(settings.decode_threads, settings.max_wait_ms / 1000) as decode_threads,
        ThreadPoolExecutor(1, "explore") as explore_thread,
    ):
        for batcher in batchers.values():
            batcher.start()
        flushing = asyncio.create_task(_flush_regularly(metrics))
        trimming = asyncio.create_task(_trim_regularly(bodies))
        try:
            yield Service(
                settings=settings,
                store=store,
                metrics=metrics,
                exposition=exposition,
                batchers=batchers,
                model_metrics=model_metrics,
                explain_gates={
                    ref: Gate("explanations", MAX_WAITING_EXPLANATIONS) for ref in batchers
                },
                explore_gate=Gate("drawings", MAX_WAITING_DRAWINGS),
                decode_threads=decode_threads,
                explore_thread=explore_thread,
                upload_limits=UploadLimits(
                    max_body_bytes=settings.max_body_bytes, max_images=settings.max_images
                ),
                bodies=bodies,
                insides=Insides(),
                stopping=asyncio.Event(),
            )
        finally:
            await asyncio.gather(*(batcher.stop() for batcher in batchers.values()))
            flushing.cancel()
            trimming.cancel()
            _flush(metrics)


def _batcher(
    settings: Settings, artifact: Artifact, backend: Backend, observer: ModelMetrics
) -> Batcher:
    most = batch_limit(artifact, settings.backend, settings.max_batch)
    in_loop = settings.inference == "loop"
    if settings.inference == "auto" and settings.backend == "onnx-cpu":
        in_loop = is_quick(artifact, backend, most)
    _log.info("%s is computed in %s", artifact.ref, "the event loop" if in_loop else "a thread")
    return Batcher(
        backend,
        max_batch=most,
        capacity=settings.queue_capacity,
        backlog=Backlog(settings.max_wait_ms / 1000, at_least=2 * most),
        observer=observer,
        in_loop=in_loop,
    )


async def _flush_regularly(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        try:
            _flush(metrics)
        except Exception:  # noqa: BLE001 - the next time may go well
            _log.exception("metrics could not be written")


def _flush(metrics: Metrics) -> None:
    metrics.flush()
    logs.flush()


async def _trim_regularly(bodies: Bodies) -> None:
    """Return the memory of bodies to the system, within `2 * TRIM_SECONDS` of their end.

    By itself, glibc keeps all free memory below the last object in use, however small that is.
    """
    most = 0
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        peak = bodies.take_peak()
        most = max(most, peak)
        if most - peak >= TRIM_BYTES:
            trim_heap()  # in a thread, its lock would stop the event loop for as long
            most = peak
