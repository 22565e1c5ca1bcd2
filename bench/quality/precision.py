"""float32 beside int8, one processor thread, by the service's own backend.

    python -m bench.quality.precision

Every model of the store (`CONVSCOPE_STORE`) that holds both graphs. The two take turns within a
round, so that what else the machine does falls on both, and the ratio is the median of the rounds'
ratios. Prints a table and writes `bench/results/precision.json`. Nothing of HTTP is measured here.
"""

import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from app.artifact.directory import Artifact
from app.artifact.files import GOLDEN
from app.artifact.manifest import Int8Record, Precision
from app.artifact.store import read_store
from app.artifact.tensors import Images
from app.inference.backends import Backend, open_backend
from app.settings import read_settings
from bench import RESULTS

BATCHES = (1, 4, 16, 64)
ROUNDS = 41
IMAGES_A_TURN = 256
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")


def main() -> None:
    """Measure, print and write."""
    settings = read_settings()
    store = read_store(settings.store, settings.models, settings.default_model)
    models = [measure(item, item.manifest.int8) for item in store if item.manifest.int8]
    result = {"machine": machine(), "rounds": ROUNDS, "threads": 1, "models": models}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "precision.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(models))


def measure(artifact: Artifact, int8: Int8Record) -> dict[str, Any]:
    """Return one model's accuracies, bytes and times by batch size."""
    backends = {name: open_backend(artifact, "onnx-cpu", 1, name) for name in PRECISIONS}
    golden = artifact.arrays(GOLDEN)["images"]
    manifest = artifact.manifest
    return {
        "model": artifact.ref,
        "test_accuracy": {"float32": manifest.test.accuracy, "int8": int8.test_accuracy},
        "test_ece": {"float32": manifest.test.ece_calibrated, "int8": int8.test_ece},
        "bytes": {name: len(artifact.read_graph(artifact.onnx_graph(name))) for name in PRECISIONS},
        "batches": [
            compare(backends, np.resize(golden, (size, *golden.shape[1:]))) for size in BATCHES
        ],
    }


def compare(backends: dict[Precision, Backend], images: Images) -> dict[str, Any]:
    """Return medians over the rounds: microseconds an image of each, and float32's over int8's."""
    rounds = []
    for number in range(ROUNDS):
        order = PRECISIONS if number % 2 else PRECISIONS[::-1]
        rounds.append({name: turn(backends[name], images) for name in order})
    return {
        "batch": len(images),
        "microseconds_an_image": {
            name: round(statistics.median(times[name] for times in rounds), 2)
            for name in PRECISIONS
        },
        "speedup": round(statistics.median(t["float32"] / t["int8"] for t in rounds), 3),
    }


def turn(backend: Backend, images: Images) -> float:
    """Return microseconds an image."""
    calls = max(1, IMAGES_A_TURN // len(images))
    backend.predict(images)  # the other's turn has filled the caches
    started = time.perf_counter()
    for _ in range(calls):
        backend.predict(images)
    return (time.perf_counter() - started) / (calls * len(images)) * 1e6


def machine() -> dict[str, str | bool]:
    """Return what the times depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    about = {name.strip(): text.strip() for name, _, text in (row.partition(":") for row in lines)}
    return {
        "processor": about.get("model name", platform.processor()),
        "vnni": "vnni" in about.get("flags", ""),
        "onnxruntime": version("onnxruntime"),
        "python": platform.python_version(),
    }


def table(models: list[dict[str, Any]]) -> str:
    """Return the figures as a markdown table."""
    lines = [
        "| model | test accuracy | batch | float32, µs an image | int8, µs an image | int8 is |",
        "|---|---|---|---|---|---|",
    ]
    for model in models:
        float32, int8 = (f"{model['test_accuracy'][name]:.2%}" for name in PRECISIONS)
        for row in model["batches"]:
            times = " | ".join(f"{row['microseconds_an_image'][name]:.1f}" for name in PRECISIONS)
            lines.append(
                f"| {model['model']} | {float32} → {int8} | {row['batch']} | {times} "
                f"| {row['speedup']:.2f}× |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
