"""Every artifact of a store, side by side: what it costs and what it gives.

Accuracy comes from each artifact's own evaluation, so the test split is not read again; latency and
throughput are measured here and now. Tables and plots are `training.report`'s.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.backends import Backend, open_backend
from app.contract import (
    GOLDEN,
    HISTORY,
    ONNX_GRAPH,
    TORCHSCRIPT_GRAPH,
    Artifact,
    Images,
    read_artifact,
)
from app.errors import ConvscopeError
from training.checkpoint import EpochFigures, parse_history
from training.errors import RunError

BATCH = 64
ROUNDS = 15
SINGLE_CALLS = 50
BATCH_CALLS = 4


@dataclass(frozen=True)
class ModelFigures:
    """One row of the comparison.

    Attributes:
        model: `name/version`.
        parameters: learned numbers.
        macs: multiply-accumulates for one image.
        onnx_bytes: size of the ONNX graph.
        torchscript_bytes: size of the TorchScript graph.
        training_seconds: of the run, on `training_hardware`.
        training_hardware: what it was trained on.
        epochs: passes over the training images.
        training_images: how many there were.
        accuracy: on the test split, 0 to 1.
        cross_entropy: on the test split, calibrated, in nats.
        ece: expected calibration error on the test split, calibrated.
        recall_by_class: the part of each class's test images that is recognised.
        latency_ms: of one image, median, ONNX on one thread.
        images_per_second: at batch 64, median, ONNX on one thread.
        history: one record an epoch.
    """

    model: str
    parameters: int
    macs: int
    onnx_bytes: int
    torchscript_bytes: int
    training_seconds: float
    training_hardware: str
    epochs: int
    training_images: int
    accuracy: float
    cross_entropy: float
    ece: float
    recall_by_class: dict[str, float]
    latency_ms: float
    images_per_second: float
    history: tuple[EpochFigures, ...]


def compare(store: Path) -> list[ModelFigures]:
    """Verify and measure every artifact of a store, by name and version.

    Raises:
        RunError: the store holds no artifact, or one that is damaged.
    """
    try:
        artifacts = [read_artifact(path) for path in store.glob("[!.]*/[1-9]*")]
        if not artifacts:
            raise RunError(f"{store}: holds no artifact")
        artifacts.sort(key=lambda item: (item.manifest.name, int(item.manifest.version)))
        return [_figures(artifact) for artifact in artifacts]
    except ConvscopeError as exc:
        raise RunError(str(exc)) from exc


def _figures(artifact: Artifact) -> ModelFigures:
    artifact.verify()
    manifest, evaluation = artifact.manifest, artifact.evaluation()
    history = parse_history(artifact.read(HISTORY).decode())
    backend = open_backend(artifact, "onnx-cpu", threads=1)
    images: Images = np.resize(
        artifact.arrays(GOLDEN)["images"], (BATCH, *artifact.manifest.image_size, 3)
    )
    return ModelFigures(
        model=f"{manifest.name}/{manifest.version}",
        parameters=manifest.parameters,
        macs=manifest.macs,
        onnx_bytes=manifest.files[ONNX_GRAPH].bytes,
        torchscript_bytes=manifest.files[TORCHSCRIPT_GRAPH].bytes,
        training_seconds=manifest.training_seconds,
        training_hardware=manifest.hardware,
        epochs=len(history),
        training_images=manifest.data.train,
        accuracy=manifest.test.accuracy,
        cross_entropy=manifest.test.cross_entropy_calibrated,
        ece=manifest.test.ece_calibrated,
        recall_by_class={figures.label: figures.recall for figures in evaluation.per_class},
        latency_ms=1000 * _seconds_a_call(backend, images[:1], SINGLE_CALLS),
        images_per_second=BATCH / _seconds_a_call(backend, images, BATCH_CALLS),
        history=history,
    )


def _seconds_a_call(backend: Backend, images: Images, calls: int) -> float:
    """Return the median over rounds of a call's mean time, after one round that warms up."""
    rounds = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        for _ in range(calls):
            backend.predict(images)
        rounds.append((time.perf_counter() - started) / calls)
    return statistics.median(rounds[1:])
