"""All metrics of the service.

Label values are bounded: routes are templates, methods are the known ones, models are those in the
store. If `PROMETHEUS_MULTIPROC_DIR` is set, each process keeps its values in files there.

What every request counts is added up in memory, because writing to a file would take ten times as
long, and `flush` writes it. The service does so several times a second and when it stops; SIGKILL
loses what was counted since.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

OTHER = "other"

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MODEL = ("model", "version")


class _Count:
    """What a counter or gauge will grow by at the next flush."""

    __slots__ = ("_metric", "_new")

    def __init__(self, metric: Counter | Gauge) -> None:
        self._metric = metric
        self._new = 0

    def add(self, number: int) -> None:
        self._new += number

    def flush(self) -> None:
        if self._new:
            self._metric.inc(self._new)
            self._new = 0


class _Observed:
    """What a histogram has observed since the last flush."""

    __slots__ = ("_bounds", "_histogram", "_new", "_sum")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._bounds = histogram._upper_bounds
        self._new = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._new[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        """Do what `Histogram.observe` does, for all values at once."""
        for index, number in enumerate(self._new):
            if number:
                self._histogram._buckets[index].inc(number)
                self._new[index] = 0
        if self._sum:
            self._histogram._sum.inc(self._sum)
            self._sum = 0.0


class Metrics:
    """The metrics of one application, in a registry of their own.

    Attributes:
        registry: holds the values of this process, or of no process if they are kept in files.
    """

    def __init__(self) -> None:
        self._kept: list[_Count | _Observed] = []
        self.registry = registry = CollectorRegistry()
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
        in_flight = Gauge(
            "convscope_http_requests_in_flight",
            "Requests being answered.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._in_flight = self.count(in_flight)
        self.predictions = Counter(
            "convscope_predictions",
            "Images classified.",
            (*_MODEL, "label"),
            registry=registry,
        )
        self.objects = Counter(
            "convscope_objects",
            "Objects found in pictures.",
            (*_MODEL, "label"),
            registry=registry,
        )
        read_seconds = Histogram(
            "convscope_read_seconds",
            "Time to read the body of a prediction.",
            buckets=_SECONDS,
            registry=registry,
        )
        decode_seconds = Histogram(
            "convscope_decode_seconds",
            "Time to decode all images of a request.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._read_seconds = self.observed(read_seconds)
        self._decode_seconds = self.observed(decode_seconds)
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
        self.masks_seconds = Histogram(
            "convscope_masks_seconds",
            "Time to make the masks of a request, or a picture of them.",
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
        self._requests_counted = cache(lambda *labels: self.count(self._requests.labels(*labels)))
        self._seconds_observed = cache(
            lambda *labels: self.observed(self._request_seconds.labels(*labels))
        )
        self._rejections_counted = cache(lambda reason: self.count(self._rejections.labels(reason)))

    def count(self, metric: Counter | Gauge) -> _Count:
        """Return what adds to a counter or gauge at every flush."""
        kept = _Count(metric)
        self._kept.append(kept)
        return kept

    def observed(self, histogram: Histogram) -> _Observed:
        """Return what adds to a histogram at every flush."""
        kept = _Observed(histogram)
        self._kept.append(kept)
        return kept

    def flush(self) -> None:
        """Write what was counted since the last time, in the thread that counts."""
        for kept in self._kept:
            kept.flush()

    def begin_request(self) -> None:
        """Count a request that is being answered."""
        self._in_flight.add(1)

    def withdraw_request(self) -> None:
        """Forget that a request is being answered: another part begins with it again."""
        self._in_flight.add(-1)

    def end_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that has been answered. `route` is a template or `OTHER`."""
        self._in_flight.add(-1)
        method = method if method in _METHODS else OTHER
        self._requests_counted(method, route, status).add(1)
        self._seconds_observed(method, route).observe(seconds)

    def count_rejection(self, reason: str) -> None:
        """Count a request that was refused or given up. `reason` is the error's name."""
        self._rejections_counted(reason).add(1)

    def count_refused(self, method: str, route: str, status: int) -> None:
        """Count a request that was refused before it reached the application."""
        method = method if method in _METHODS else OTHER
        self._requests_counted(method, route, status).add(1)

    def observe_stages(self, read: float, decode: float) -> None:
        """Count the seconds that reading and decoding one prediction's images took."""
        self._read_seconds.observe(read)
        self._decode_seconds.observe(decode)

    def describe_model(self, *labels: str) -> None:
        """Set the labels of a model: name, version, architecture, backend, precision, default."""
        self._model_info.labels(*labels).set(1)


class ModelMetrics:
    """The metrics of one model; a `batcher.Observer`.

    Args:
        metrics: of the application.
        name: of the model.
        version: of the model.
        counted: of the labels in its answers.
    """

    def __init__(self, metrics: Metrics, name: str, version: str, counted: Counter) -> None:
        labels = (name, version)
        self._label = cache(lambda label: metrics.count(counted.labels(*labels, label)))
        self._masks = cache(lambda: metrics.observed(metrics.masks_seconds.labels(*labels)))
        self._waiting = metrics.count(metrics.queue_images.labels(*labels))
        self._images = metrics.observed(metrics.batch_images.labels(*labels))
        self._inference = metrics.observed(metrics.inference_seconds.labels(*labels))
        self._queue = metrics.observed(metrics.queue_seconds.labels(*labels))

    def waiting(self, change: int) -> None:
        """Record that so many images more, or fewer, wait in the queue."""
        self._waiting.add(change)

    def computed(self, images: int, seconds: float) -> None:
        """Record a batch's size and the seconds that it took the backend."""
        self._images.observe(images)
        self._inference.observe(seconds)

    def masked(self, seconds: float) -> None:
        """Record the seconds that the masks of a request took."""
        self._masks().observe(seconds)

    def answered(self, labels: Sequence[str], queue_seconds: float) -> None:
        """Record the labels given to a request's images, and the seconds that these waited."""
        self._queue.observe(queue_seconds)
        for label in labels:
            self._label(label).add(1)
