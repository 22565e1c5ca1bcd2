"""Pictures per second of detectors and segmenters on one core: `python -m bench.serving.scenes`.

The service has one worker on one processor, two connections of `wrk` are on the other. In turn
with it, one process on the same processor decodes the same JPEG files and computes the graph in a
loop: the limit. Prints a table, writes `bench/results/scenes.json` and fills `docs/performance.md`.
"""

import multiprocessing
import os
import shutil
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import httpx
import numpy as np
from PIL import Image

from app.artifact.directory import Artifact, read_artifact
from app.artifact.golden import read_golden
from app.artifact.manifest import Precision
from app.images.decode import decode_placed
from app.inference.backends import open_backend
from bench import BUILD, ROOT
from bench.harness.load import closed_loop
from bench.harness.payloads import encode
from bench.harness.processes import ServerProcess, free_port
from bench.harness.report import publish, table
from bench.harness.requests import Request
from bench.harness.results import machine
from bench.serving.servers import SERVERS

MODELS = {"yolo-bccd/1": "/detect", "unet-nuclei/1": "/segment"}
SIZES = ((320, 240), (640, 480))
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")
ROUNDS, SECONDS = 3, 4
CONNECTIONS = 2
"""One request is computed while the other is read or answered. With more, the service would refuse
some, because a picture takes longer than the wait that it allows."""

MAX_PIXELS = 40_000_000
_SERVICE, _CLIENT = 0, 1


def main() -> None:
    """Measure, print, write."""
    os.sched_setaffinity(0, {_CLIENT})
    rows = [
        _measure(read_artifact(ROOT / "models_store" / model), route, precision, size)
        for model, route in MODELS.items()
        for precision in PRECISIONS
        for size in SIZES
    ]
    content = scenes_table(rows, machine()["processor"])
    publish("scenes", {"rows": rows}, content, ROOT / "docs" / "performance.md")


def _measure(
    artifact: Artifact, route: str, precision: Precision, size: tuple[int, int]
) -> dict[str, Any]:
    files = _files(artifact, size)
    port = free_port()
    command = [shutil.which("taskset") or "taskset", "-c", str(_SERVICE)]
    command += SERVERS["ours-1"].command(port)
    environment = os.environ | {
        "CONVSCOPE_MODELS": artifact.manifest.name,
        "CONVSCOPE_DEFAULT_MODEL": artifact.manifest.name,
        "CONVSCOPE_PRECISION": precision,
        "CONVSCOPE_LOG_LEVEL": "warning",
    }
    log = BUILD / "logs" / "scenes.log"
    address = ("127.0.0.1", port)
    served, limits = [], []
    with (
        ServerProcess(command, directory=ROOT, environment=environment, log=log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        process.wait_until(lambda: _ready(client), 150)
        requests = [Request(route, body=data, content_type="image/jpeg") for data in files]
        raw = [request.raw(address) for request in requests]
        latency = _latency_ms(client, route, files)
        for _ in range(ROUNDS):
            found = closed_loop(address, raw, CONNECTIONS, SECONDS)
            if found.errors:
                raise RuntimeError(f"{found.errors} requests of {artifact.ref} have no answer")
            served.append(found.requests_per_second)
            limits.append(_in_a_process(artifact, precision, files))
    return {
        "model": artifact.ref,
        "precision": precision,
        "size": list(size),
        "latency_ms": latency,
        "pictures_per_second": served,
        "limit": limits,
    }


def _files(artifact: Artifact, size: tuple[int, int]) -> list[bytes]:
    images, _ = read_golden(artifact)
    resized = [np.asarray(Image.fromarray(image).resize(size)) for image in images]
    return [encode(image, "JPEG", quality=90) for image in resized]


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def _latency_ms(client: httpx.Client, route: str, files: list[bytes]) -> float:
    """Return the median time of one request after the other."""
    taken = []
    for number in range(30):
        started = time.perf_counter()
        client.post(route, content=files[number % len(files)]).raise_for_status()
        taken.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(taken[5:]), 1)


def _in_a_process(artifact: Artifact, precision: Precision, files: list[bytes]) -> float:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=_loop, args=(artifact, precision, files, sender), daemon=True)
    worker.start()
    sender.close()
    rate: float = receiver.recv()
    worker.join()
    return rate


def _loop(artifact: Artifact, precision: Precision, files: list[bytes], to: Connection) -> None:
    """Send how many pictures a second are decoded and computed, one after the other."""
    os.sched_setaffinity(0, {_SERVICE})
    backend = open_backend(artifact, "onnx-cpu", precision=precision)
    size, resize = artifact.manifest.image_size, artifact.manifest.resize
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < SECONDS:
        image, _ = decode_placed(files[done % len(files)], size, MAX_PIXELS, resize=resize)
        backend.predict(image[np.newaxis])
        done += 1
    to.send(done / spent)


def scenes_table(rows: list[dict[str, Any]], processor: str) -> str:
    """Return a Markdown table of the figures, and its conditions."""
    cells = []
    for row in rows:
        served, limit = (statistics.median(row[name]) for name in ("pictures_per_second", "limit"))
        across, down = row["size"]
        cells.append(
            [
                row["model"],
                row["precision"],
                f"{across}×{down}",
                f"{row['latency_ms']:.1f}",
                f"{served:.1f}",
                f"{limit:.1f}",
                f"{served / limit:.2f}",
            ]
        )
    columns = ["model", "graph", "JPEG sent", "latency, ms", "pictures/s", "limit", "ratio"]
    said = (
        f"One worker on one core of {processor}. Latency: median, one request after the other. "
        f"Pictures/s: {CONNECTIONS} connections, median of {ROUNDS} rounds of {SECONDS} s. Limit: "
        "decoding and inference in a loop on the same core, in turn with it."
    )
    return f"{table(columns, cells)}\n\n{said}"


if __name__ == "__main__":
    main()
