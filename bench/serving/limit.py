"""The machine's limit: decoding and onnxruntime in a loop, one process per core, no server.

Figures of servers are compared with this one. The loop uses Pillow's decoder, the service's own
backend with one thread, and the PNG files that the servers get; no process is pinned to a core.
"""

import io
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.artifact.directory import read_artifact
from app.images.decode import decode
from app.inference.backends import Backend, open_backend
from bench.harness.payloads import Payload
from bench.serving.servers import EXERCISE, Served

BATCHES = (1, 2, 4, 8, 16, 32)
_START_SECONDS = 60


@dataclass(frozen=True)
class Limit:
    """Images per second by batch size, on one core and on all cores at once."""

    cores: int
    one_core: dict[int, float]
    all_cores: dict[int, float]


@dataclass(frozen=True)
class PhotoDecoding:
    """One large JPEG in process: `app.images.decode.decode` against a full decode and one resize.

    Attributes:
        ours_ms: median time of the service's decoder.
        full_ms: median time of Pillow's full decode, crop and bicubic resize.
        difference: mean absolute difference of the samples, of 255.
        same_label: whether the model gives both results the same label.
    """

    ours_ms: float
    full_ms: float
    difference: float
    same_label: bool


def backend(served: Served = EXERCISE) -> Backend:
    """Return a model on the service's own runtime with one thread, checked."""
    artifact = read_artifact(served.directory)
    return open_backend(artifact, "onnx-cpu", precision=served.precision)


def measure_limit(served: Served, files: Sequence[bytes], seconds: float) -> Limit:
    """Measure every batch size on one core, then on all cores.

    Args:
        served: the model.
        files: PNG files of 32x32 pixels.
        seconds: duration of each batch size.
    """
    cores = os.cpu_count() or 1
    one, every = (_measure(served, files, seconds, processes) for processes in (1, cores))
    return Limit(cores=cores, one_core=one, all_cores=every)


def _measure(
    served: Served, files: Sequence[bytes], seconds: float, processes: int
) -> dict[int, float]:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    workers = [
        context.Process(target=_work, args=(served, files, seconds, barrier, sender), daemon=True)
        for _, sender in pipes
    ]
    for worker in workers:
        worker.start()
    for _, sender in pipes:
        sender.close()  # if a worker dies, the wait below ends
    rates = [receiver.recv() for receiver, _ in pipes]
    for worker in workers:
        worker.join()
    return {batch: sum(rate[batch] for rate in rates) for batch in BATCHES}


def _work(
    served: Served, files: Sequence[bytes], seconds: float, barrier: Barrier, sender: Connection
) -> None:
    runtime = backend(served)
    rates = {}
    for batch in BATCHES:
        _loop(runtime, files, batch, min(seconds, 0.2))
        barrier.wait(_START_SECONDS + seconds)
        rates[batch] = _loop(runtime, files, batch, seconds)
    sender.send(rates)


def _loop(runtime: Backend, files: Sequence[bytes], batch: int, seconds: float) -> float:
    """Return images per second."""
    done = 0
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        chosen = [files[(done + number) % len(files)] for number in range(batch)]
        runtime.predict(np.stack([_decode_png(data) for data in chosen]))
        done += batch
    return done / spent


def _decode_png(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))


def measure_photo(payload: Payload, repeats: int = 7) -> PhotoDecoding:
    """Compare the service's decoder with a full decode on each photograph of the payload."""
    ours: list[float] = []
    full: list[float] = []
    pairs = []
    for (data,) in payload.requests:
        for _ in range(repeats):
            start = time.perf_counter()
            left = decode(data, (32, 32), 40_000_000)
            middle = time.perf_counter()
            right = _decode_fully(data)
            ours.append(middle - start)
            full.append(time.perf_counter() - middle)
        pairs.append((left, right))
    outputs = backend().predict(np.stack([image for pair in pairs for image in pair]))
    labels = outputs.probabilities.argmax(1)
    distances = [np.abs(left.astype(int) - right).mean() for left, right in pairs]
    return PhotoDecoding(
        ours_ms=1000 * statistics.median(ours),
        full_ms=1000 * statistics.median(full),
        difference=float(max(distances)),
        same_label=bool((labels[::2] == labels[1::2]).all()),
    )


def _decode_fully(data: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, upper = (image.width - side) / 2, (image.height - side) / 2
    box = (left, upper, left + side, upper + side)
    return np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC, box=box))
