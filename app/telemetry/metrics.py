"""Every metric that the service exports, in one place.

Labels are bounded: routes are templates, methods are known ones, models are those in the store.
With `PROMETHEUS_MULTIPROC_DIR` set, each process writes its values to files there and any of them
answers for all.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
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
            "From the end of a request's head to the end of its answer.",
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
            "Reading the body of a prediction.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._decode_seconds = Histogram(
            "convscope_decode_seconds",
            "Decoding all images of a request.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "convscope_queue_seconds",
            "Waiting of a request's images for the backend.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        )
        self.inference_seconds = Histogram(
            "convscope_inference_seconds",
            "One batch in the backend.",
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
            "Images that wait for the backend.",
            _MODEL,
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._rejections = Counter(
            "convscope_rejections",
            "Requests refused or given up, by the end of the problem's type.",
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
            "Worker processes that serve.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.worker_restarts = Counter(
            "convscope_worker_restarts",
            "Workers that took the place of one that died or hung.",
            registry=registry,
        )
        self._model_info = Gauge(
            "convscope_model_info",
            "1 for each model that is served.",
            (*_MODEL, "architecture", "backend", "precision", "default"),
            multiprocess_mode="livemax",
            registry=registry,
        )
        # The library's own lookup takes longer than counting does.
        self._requests_labelled = cache(self._requests.labels)
        self._seconds_labelled = cache(self._request_seconds.labels)
        self._rejections_labelled = cache(self._rejections.labels)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` is a template or `OTHER`."""
        method = method if method in _METHODS else OTHER
        self._requests_labelled(method, route, status).inc()
        self._seconds_labelled(method, route).observe(seconds)

    def count_rejection(self, reason: str, count: int = 1) -> None:
        """Count requests that were refused or given up; `reason` is an error's name."""
        self._rejections_labelled(reason).inc(count)

    def count_refused(self, method: str, route: str, status: int, count: int = 1) -> None:
        """Count requests that were answered before the application saw them, in no time."""
        method = method if method in _METHODS else OTHER
        self._requests_labelled(method, route, status).inc(count)

    def observe_stages(self, read: float, decode: float) -> None:
        """Count the seconds that reading and decoding one prediction's images took."""
        self._read_seconds.observe(read)
        self._decode_seconds.observe(decode)

    def describe_model(self, *labels: str) -> None:
        """Show a model: name, version, architecture, backend, precision and if it is default."""
        self._model_info.labels(*labels).set(1)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type, in the format that Accept asks for."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number; the default is for everybody
            encode, content_type = choose_encoder("")
        return encode(self._collected()), content_type

    def _collected(self) -> CollectorRegistry:
        directory = os.environ.get(MULTIPROCESS_VARIABLE)
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
        """The queue now holds so many images."""
        self._waiting.set(images)

    def computed(self, images: int, seconds: float) -> None:
        """A batch of so many images took the backend so many seconds."""
        self._images.observe(images)
        self._inference.observe(seconds)

    def answered(self, labels: Sequence[str], queue_seconds: float) -> None:
        """A request's images were classified after having waited so many seconds."""
        self._queue.observe(queue_seconds)
        for label in labels:
            self._labelled(label).inc()


def _forget_dead_processes(directory: Path) -> None:
    """Drop the gauges of processes that were killed before they could do it themselves."""
    for path in directory.glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another scrape was faster
                mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]
        except PermissionError:
            continue
