"""An artifact to look into: a small untrained network.

Training's own functions export it, without the slow parts of an export.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.artifact.directory import Artifact
from app.artifact.files import (
    EVALUATION,
    EXAMPLES,
    GOLDEN,
    LAYER_OUTPUTS,
    LAYERS,
    MANIFEST,
    ONNX_GRAPH,
    RESPONSES,
)
from app.artifact.manifest import FEATURES
from app.artifact.tensors import Images, Probabilities
from tests.support import sample
from tests.support.artifacts import CLASSES, amend, write_artifact
from tests.support.tiny_networks import DEVIATION, MEAN, convolutional
from training.export.examples import examples
from training.export.graphs import ServedNetwork, onnx_graph
from training.export.inside import (
    biases_and_classifier,
    strongest_patches,
)

TEMPERATURE = 2.0
CELLS = {("red", "red"): 40, ("red", "green"): 3, ("blue", "blue"): 10}
"""Number of test images by true and predicted class."""


def averaging_network() -> nn.Sequential:
    """Return a network that is the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = convolutional(8, 12)
    return network.eval()


def measured_images() -> tuple[Images, NDArray[np.int64], Probabilities]:
    """Return images, their classes and their probabilities; no two have the same confidence."""
    pairs = [pair for pair, count in CELLS.items() for _ in range(count)]
    random = np.random.default_rng(0)
    pairs = [pairs[place] for place in random.permutation(len(pairs))]
    sure = random.permutation(np.linspace(0.5, 0.99, len(pairs)))
    probabilities = np.repeat(((1 - sure) / (len(CLASSES) - 1))[:, None], len(CLASSES), axis=1)
    predicted = [CLASSES.index(name) for _, name in pairs]
    probabilities[np.arange(len(pairs)), predicted] = sure
    labels = np.array([CLASSES.index(name) for name, _ in pairs])
    return sample.read("test")[0][: len(pairs)], labels, probabilities.astype(np.float32)


def write_averaging(store: Path) -> Artifact:
    """Write `averaging/1`, which has all files to look into."""
    path = write_artifact(store, "averaging", "1").path
    network = averaging_network()
    served = ServedNetwork(network, MEAN, DEVIATION, TEMPERATURE).eval()
    images, labels, probabilities = measured_images()
    graph, layer_outputs = onnx_graph(served, images[:4])
    (path / ONNX_GRAPH).write_bytes(graph)
    golden: dict[str, NDArray[Any]] = {
        "images": images[:4],
        "probabilities": served.predict(images[:4]).probabilities,
    }
    weights = biases_and_classifier(network, served.layers)
    responses = strongest_patches(network, served.layers, images, MEAN, DEVIATION)
    files: dict[str, dict[str, NDArray[Any]]] = {
        GOLDEN: golden,
        LAYERS: {LAYER_OUTPUTS: np.frombuffer(layer_outputs, np.uint8), **weights},
        RESPONSES: responses,
        EXAMPLES: examples(images, labels, probabilities),
    }
    for name, arrays in files.items():
        np.savez(path / name, allow_pickle=False, **arrays)
    _write_counts(path)
    features = {"name": FEATURES, "dtype": "float32", "shape": ["N", 12, 16, 16]}
    outputs = [*json.loads((path / MANIFEST).read_text())["outputs"], features]
    layers = [layer.model_dump() for layer in served.layers]
    return amend(path, architecture="averaging", layers=layers, outputs=outputs)


def _write_counts(path: Path) -> None:
    counts = [[CELLS.get((true, predicted), 0) for predicted in CLASSES] for true in CLASSES]
    evaluation = json.loads((path / EVALUATION).read_text())
    (path / EVALUATION).write_text(json.dumps(evaluation | {"confusion_matrix": counts}))
