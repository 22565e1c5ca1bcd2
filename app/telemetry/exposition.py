"""All metrics as text, of all processes, for those who scrape them.

If `PROMETHEUS_MULTIPROC_DIR` is set, each process keeps its values in files there, and any process
renders the values of all.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from app.machine import can_fork
from app.telemetry import METRICS_DIRECTORY_VARIABLE
from app.telemetry.metrics import Metrics

MAX_SHARE = 0.1
"""Of the time, for rendering, however many ask. The next rendering serves all who ask meanwhile."""

LOOP_SECONDS = 0.01
"""Processor time of a rendering above which the next one has a thread. There, it fights the event
loop for the interpreter's lock and takes several times as long under load."""


class Exposition:
    """Renders the metrics of all processes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._turn = asyncio.Lock()
        self._rendered: dict[str, tuple[float, bytes]] = {}  # by content type, with its beginning
        self._seconds = 0.0  # of processor time, for the last one
        self._not_before = 0.0

    async def text(self, accept: str) -> tuple[bytes, str]:
        """Return all values at this time or a little later, and their content type.

        Args:
            accept: the header; it chooses the content type.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # Accept holds a version that is not a number
            encode, content_type = choose_encoder("")
        asked = time.perf_counter()
        async with self._turn:
            begun, text = self._rendered.get(content_type, (0.0, b""))
            if begun <= asked:
                if (too_soon := self._not_before - time.perf_counter()) > 0:
                    await asyncio.sleep(too_soon)
                self._metrics.flush()
                begun = time.perf_counter()
                if self._seconds > LOOP_SECONDS:
                    text = await asyncio.to_thread(self._render, encode)
                else:
                    text = self._render(encode)
                self._not_before = begun + self._seconds / MAX_SHARE
                self._rendered[content_type] = begun, text
        return text, content_type

    def _render(self, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
        started = time.thread_time()
        text = encode(self._collected())
        self._seconds = time.thread_time() - started
        return text

    def _collected(self) -> CollectorRegistry:
        directory = os.environ.get(METRICS_DIRECTORY_VARIABLE)
        if not directory:
            return self._metrics.registry
        if can_fork():  # otherwise there is one process, and Windows' `os.kill` would end it
            _forget_dead_processes(Path(directory))
        registry = CollectorRegistry()
        registry.register(_Files(Path(directory)))
        return registry


class _Files(Collector):
    """The values of all processes, out of their files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        # A process that starts makes its file before it gives it a size; the library expects one.
        files = [str(path) for path in self._directory.glob("*.db") if path.stat().st_size]
        merged: Iterable[Metric] = MultiProcessCollector.merge(files, accumulate=True)  # type: ignore[no-untyped-call]
        return merged


def _forget_dead_processes(directory: Path) -> None:
    """Drop the gauges of processes that were killed before they could drop them."""
    for path in directory.glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another scrape dropped it first
                mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]
        except PermissionError:
            continue
