"""What a running process has: settings, models, queues, threads and metrics.

`main` opens it for the application's lifetime; the routes use it. It knows no request.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from app.api.gate import Gate
from app.api.uploads import Bodies, UploadLimits
from app.artifact.directory import Artifact
from app.artifact.store import Store
from app.errors import DeadlineExceeded
from app.explore.layers import Inside, Insides
from app.inference.backends import Backend, batch_limit
from app.inference.batcher import Batcher
from app.settings import Settings
from app.telemetry.metrics import Metrics, ModelMetrics

MOST_DRAWINGS = 64
MOST_EXPLANATIONS = 8
"""That wait. Those of a model share its queue, and each asks it as often as 81 predictions do."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """Everything that the routes need. The models' parts are found by `Artifact.ref`."""

    settings: Settings
    store: Store
    metrics: Metrics
    batchers: Mapping[str, Batcher]
    model_metrics: Mapping[str, ModelMetrics]
    threads: ThreadPoolExecutor
    drawing_thread: ThreadPoolExecutor
    drawings: Gate
    explanations: Mapping[str, Gate]
    upload_limits: UploadLimits
    bodies: Bodies
    insides: Insides

    @property
    def broken(self) -> list[str]:
        """The models that take no work, or get none done, as `name/version`."""
        patience = self.settings.stall_seconds
        return [
            ref
            for ref, batcher in self.batchers.items()
            if not batcher.alive or batcher.busy_seconds > patience
        ]

    @property
    def stuck_seconds(self) -> float:
        """For how long the longest of the batches under way has been computed.

        Infinity if a model takes no work: no batch of it will ever end.
        """
        return max(
            batcher.busy_seconds if batcher.alive else math.inf
            for batcher in self.batchers.values()
        )

    async def decode(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Decode a large image in one of a few threads.

        They bound the memory too: what waits for a thread has not been decoded yet.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, lambda: function(*args, **kwargs))

    async def draw(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what looks inside or draws, one after the other, where no prediction waits for it.

        Raises:
            QueueFull: too much of it waits already.
            DeadlineExceeded: its turn did not come in time.
        """
        loop, patience = asyncio.get_running_loop(), self.settings.request_timeout_seconds
        try:
            async with asyncio.timeout(patience), self.drawings.enter():
                return await loop.run_in_executor(
                    self.drawing_thread, lambda: function(*args, **kwargs)
                )
        except TimeoutError as exc:
            raise DeadlineExceeded(f"no answer within {patience:g} s") from exc

    async def look_inside(self, artifact: Artifact) -> Inside:
        """Return a model's layers, opened in a thread that no image waits for.

        Raises:
            NothingToSee: the model was exported without them.
            ArtifactError: its files are damaged.
        """
        return await asyncio.to_thread(self.insides.open, artifact)


@asynccontextmanager
async def run_service(
    settings: Settings, store: Store, backends: Mapping[str, Backend], metrics: Metrics
) -> AsyncIterator[Service]:
    """Start a queue before each backend; finish what waits in them at the end."""
    for artifact in store:
        metrics.describe_model(
            artifact.manifest.name,
            artifact.manifest.version,
            artifact.manifest.architecture,
            settings.backend,
            settings.precision,
            str(artifact is store.default).lower(),
        )
    model_metrics = {
        artifact.ref: ModelMetrics(metrics, artifact.manifest.name, artifact.manifest.version)
        for artifact in store
    }
    batchers = {
        artifact.ref: Batcher(
            backends[artifact.ref],
            max_batch=batch_limit(artifact, settings.backend, settings.max_batch),
            capacity=settings.queue_capacity,
            observer=model_metrics[artifact.ref],
        )
        for artifact in store
    }
    with (
        ThreadPoolExecutor(settings.decode_threads, "decode") as threads,
        ThreadPoolExecutor(1, "draw") as drawing_thread,
    ):
        for batcher in batchers.values():
            batcher.start()
        try:
            yield Service(
                settings,
                store,
                metrics,
                batchers,
                model_metrics,
                threads,
                drawing_thread,
                Gate("drawings", MOST_DRAWINGS),
                {ref: Gate("explanations", MOST_EXPLANATIONS) for ref in batchers},
                UploadLimits(
                    max_body_bytes=settings.max_body_bytes,
                    max_images=settings.max_images,
                ),
                Bodies(settings.max_held_bytes),
                Insides(),
            )
        finally:
            await asyncio.gather(*(batcher.stop() for batcher in batchers.values()))
