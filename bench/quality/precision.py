"""float32 against int8 by the service's own backend with one thread, without HTTP.

    python -m bench.quality.precision

Measures every model of the store (`CONVSCOPE_STORE`) that holds both graphs. The two take turns
within a round, so that other work of the machine affects both; the ratio is the median of the
rounds' ratios. Prints a table and writes `bench/results/precision.json`.
"""

import statistics
import time
from typing import Any

import numpy as np

from app.artifact.directory import Artifact
from app.artifact.golden import read_golden
from app.artifact.manifest import Int8Record, Precision
from app.artifact.store import read_store
from app.artifact.tensors import Images
from app.inference.backends import Backend, open_backend
from app.settings import read_settings
from bench import RESULTS
from bench.harness.report import table
from bench.harness.results import versions, write
from training.run.hardware import about_processor, name_processor

BATCHES = (1, 4, 16, 64)
ROUNDS = 41
IMAGES_A_TURN = 256
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")


def main() -> None:
    """Measure, print the table and write the results."""
    settings = read_settings()
    store = read_store(settings.store, settings.models, settings.default_model)
    classifiers = store.for_task("classification")
    models = [measure(item, item.classifier.int8) for item in classifiers if item.classifier.int8]
    result = {"machine": machine(), "rounds": ROUNDS, "threads": 1, "models": models}
    write(RESULTS / "precision.json", result)
    print(precision_table(models))


def measure(artifact: Artifact, int8: Int8Record) -> dict[str, Any]:
    """Return one model's accuracies, bytes and times by batch size."""
    backends = {name: open_backend(artifact, "onnx-cpu", 1, name) for name in PRECISIONS}
    golden, _ = read_golden(artifact)
    manifest = artifact.classifier
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
    """Return medians over the rounds: microseconds per image of each graph, and their ratio."""
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
    """Return microseconds per image."""
    calls = max(1, IMAGES_A_TURN // len(images))
    backend.predict(images)  # the other graph's turn has filled the caches
    started = time.perf_counter()
    for _ in range(calls):
        backend.predict(images)
    return (time.perf_counter() - started) / (calls * len(images)) * 1e6


def machine() -> dict[str, str | bool]:
    """Return the conditions of the times; `vnni` is the processor's int8 instructions."""
    return {
        "processor": name_processor(),
        "vnni": "vnni" in about_processor("flags"),
        **versions(["onnxruntime"]),
    }


def precision_table(models: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    head = [
        "model",
        "test accuracy",
        "batch",
        "float32, µs per image",
        "int8, µs per image",
        "int8 is",
    ]
    rows = []
    for model in models:
        float32, int8 = (f"{model['test_accuracy'][name]:.2%}" for name in PRECISIONS)
        for row in model["batches"]:
            times = [f"{row['microseconds_an_image'][name]:.1f}" for name in PRECISIONS]
            accuracy, faster = f"{float32} → {int8}", f"{row['speedup']:.2f}×"
            rows.append([model["model"], accuracy, str(row["batch"]), *times, faster])
    return table(head, rows)


if __name__ == "__main__":
    main()
