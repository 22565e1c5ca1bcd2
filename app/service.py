"""What a running process has: settings, models, queues, threads and metrics.

`main` opens it for the application's lifetime; the routes use it. It knows no request.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from app.backends import Backend
from app.batcher import Batcher
from app.metrics import Metrics, ModelMetrics
from app.settings import Settings
from app.store import Key, Store

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Bodies:
    """How many bytes of bodies the requests in flight hold, of how many they may."""

    limit: int
    held: int = 0


@dataclass(frozen=True)
class Service:
    """Everything that the routes need."""

    settings: Settings
    store: Store
    metrics: Metrics
    batchers: Mapping[Key, Batcher]
    model_metrics: Mapping[Key, ModelMetrics]
    threads: ThreadPoolExecutor
    bodies: Bodies

    @property
    def dead(self) -> list[str]:
        """The models that take no work, as `name/version`."""
        return ["/".join(key) for key, batcher in self.batchers.items() if not batcher.alive]

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what would hold up the event loop, in one of a few threads.

        They bound the memory too: what waits for a thread has not been decoded yet.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, lambda: function(*args, **kwargs))


@asynccontextmanager
async def run_service(
    settings: Settings, store: Store, backends: Mapping[Key, Backend], metrics: Metrics
) -> AsyncIterator[Service]:
    """Start a queue before each backend; finish what waits in them at the end."""
    model_metrics = {key: ModelMetrics(metrics, *key) for key in backends}
    batchers = {
        key: Batcher(
            backend,
            max_batch=settings.max_batch,
            capacity=settings.queue_capacity,
            observer=model_metrics[key],
        )
        for key, backend in backends.items()
    }
    with ThreadPoolExecutor(settings.decode_threads, "decode") as threads:
        for batcher in batchers.values():
            batcher.start()
        try:
            bodies = Bodies(settings.max_held_bytes)
            yield Service(settings, store, metrics, batchers, model_metrics, threads, bodies)
        finally:
            await asyncio.gather(*(batcher.stop() for batcher in batchers.values()))
