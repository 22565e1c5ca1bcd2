"""All metrics of the service.

Label values are bounded: routes are templates, methods are the known ones, models are those in the
store. If `PROMETHEUS_MULTIPROC_DIR` is set, each process keeps its values in files there, and any
process renders the values of all.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from app.telemetry import METRICS_DIRECTORY_VARIABLE

OTHER = "other"

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MODEL = ("model", "version")


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "convscope_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._request_seconds = Histogram(
            "convscope_http_request_duration_seconds",
            "Time from the end of a request's head to the end of its answer.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "convscope_http_requests_in_flight",
            "Requests being answered.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.predictions = Counter(
            "convscope_predictions",
            "Images classified.",
            (*_MODEL, "label"),
            registry=registry,
        )
        self._read_seconds = Histogram(
            "convscope_read_seconds",
            "Time to read the body of a prediction.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._decode_seconds = Histogram(
            "convscope_decode_seconds",
            "Time to decode all images of a request.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "convscope_queue_seconds",
            "Time that a request's images waited for the backend.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        )
        self.inference_seconds = Histogram(
            "convscope_inference_seconds",
            "Time of one batch in the backend.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_images = Histogram(
            "convscope_batch_images",
            "Images in a batch.",
            _MODEL,
            buckets=_IMAGES,
            registry=registry,
        )
        self.queue_images = Gauge(
            "convscope_queue_images",
            "Images waiting for the backend.",
            _MODEL,
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._rejections = Counter(
            "convscope_rejections",
            "Requests refused or given up, by the last part of the problem's type.",
            ("reason",),
            registry=registry,
        )
        self.connections = Gauge(
            "convscope_connections",
            "Open connections.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.workers = Gauge(
            "convscope_workers",
            "Worker processes in service.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.worker_restarts = Counter(
            "convscope_worker_restarts",
            "Workers started to replace one that died or hung.",
            registry=registry,
        )
        self._model_info = Gauge(
            "convscope_model_info",
            "1 for each model in service.",
            (*_MODEL, "architecture", "backend", "precision", "default"),
            multiprocess_mode="livemax",
            registry=registry,
        )
        # The library's own lookup of labels takes longer than counting.
        self._requests_labelled = cache(self._requests.labels)
        self._seconds_labelled = cache(self._request_seconds.labels)
        self._rejections_labelled = cache(self._rejections.labels)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request. `route` is a template or `OTHER`."""
        method = method if method in _METHODS else OTHER
        self._requests_labelled(method, route, status).inc()
        self._seconds_labelled(method, route).observe(seconds)

    def count_rejection(self, reason: str, count: int = 1) -> None:
        """Count requests that were refused or given up. `reason` is the error's name."""
        self._rejections_labelled(reason).inc(count)

    def count_refused(self, method: str, route: str, status: int, count: int = 1) -> None:
        """Count requests that were refused before they reached the application."""
        method = method if method in _METHODS else OTHER
        self._requests_labelled(method, route, status).inc(count)

    def observe_stages(self, read: float, decode: float) -> None:
        """Count the seconds that reading and decoding one prediction's images took."""
        self._read_seconds.observe(read)
        self._decode_seconds.observe(decode)

    def describe_model(self, *labels: str) -> None:
        """Set the labels of a model: name, version, architecture, backend, precision, default."""
        self._model_info.labels(*labels).set(1)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return all values and their content type, in the format that Accept asks for."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # Accept holds a version that is not a number
            encode, content_type = choose_encoder("")
        return encode(self._collected()), content_type

    def _collected(self) -> CollectorRegistry:
        directory = os.environ.get(METRICS_DIRECTORY_VARIABLE)
        if not directory:
            return self._registry
        _forget_dead_processes(Path(directory))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
        return registry


class ModelMetrics:
    """The metrics of one model; a `batcher.Observer`."""

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        self._labels = (name, version)
        predictions = metrics.predictions
        self._labelled = cache(lambda label: predictions.labels(*self._labels, label))
        self._waiting = metrics.queue_images.labels(*self._labels)
        self._images = metrics.batch_images.labels(*self._labels)
        self._inference = metrics.inference_seconds.labels(*self._labels)
        self._queue = metrics.queue_seconds.labels(*self._labels)

    def waiting(self, images: int) -> None:
        """Record that `images` images wait in the queue."""
        self._waiting.set(images)

    def computed(self, images: int, seconds: float) -> None:
        """Record a batch's size and the seconds that it took the backend."""
        self._images.observe(images)
        self._inference.observe(seconds)

    def answered(self, labels: Sequence[str], queue_seconds: float) -> None:
        """Record the labels given to a request's images, and the seconds that these waited."""
        self._queue.observe(queue_seconds)
        for label in labels:
            self._labelled(label).inc()


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
