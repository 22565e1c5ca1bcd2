"""Small untrained networks, and artifacts of their graphs."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from app.artifact.directory import Artifact, read_artifact
from app.artifact.files import (
    GOLDEN,
    LAYER_OUTPUTS,
    LAYERS,
    MANIFEST,
    ONNX_GRAPH,
    TORCHSCRIPT_GRAPH,
)
from app.artifact.tensors import Images
from tests.support import sample
from tests.support.artifacts import CLASSES, rehash, write_artifact
from training.export.graphs import ServedNetwork, onnx_graph, torchscript_graph
from training.export.half_weights import pack_onnx, packed

MEAN, DEVIATION = [0.5, 0.45, 0.4], [0.25, 0.24, 0.26]
TEMPERATURE = 1.5
CONVOLUTIONS = ("conv1", "conv2")


def convolutional(first: int, second: int) -> nn.Sequential:
    """Return two convolutions with so many filters, then global average pooling."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, first, 3, padding=1),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, 3, padding="same", bias=False),
            bn2=nn.BatchNorm2d(second),
            relu2=nn.ReLU(inplace=True),
            average=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(second, len(CLASSES)),
        )
    )


def tiny_network() -> nn.Sequential:
    """Return a network that is the same at every call.

    The first filter of the first convolution is below zero for every image, and the activation
    after it overwrites its input.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = convolutional(6, 8)
        for name in ("bn2.weight", "bn2.bias"):
            nn.init.uniform_(network.get_parameter(name), 0.5, 1.5)
    bias = network.get_parameter("conv1.bias")
    with torch.no_grad():
        bias[0] = -100
    return network.eval()


def flat_network() -> nn.Sequential:
    """A network without a convolution."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(3 * 32 * 32, len(CLASSES)))
        return nn.Sequential(layers).eval()


def some_images(count: int = 80) -> Images:
    """Return real images, no two alike, uint8 `[count,32,32,3]`."""
    return np.ascontiguousarray(sample.read("test")[0][:count])


def write_graphs(served: ServedNetwork, store: Path, *, half: bool = False) -> Artifact:
    """Write the artifact `tiny/1` with a network's graphs and the outputs of its layers."""
    path = write_artifact(store, "tiny", "1").path
    images = some_images(4)
    graph, outputs = onnx_graph(served, images)
    (path / ONNX_GRAPH).write_bytes(pack_onnx(graph) if half else graph)
    script = torchscript_graph(packed(served) if half else served, images)
    (path / TORCHSCRIPT_GRAPH).write_bytes(script)
    np.savez(path / GOLDEN, images=images, probabilities=served.predict(images).probabilities)
    more = {LAYER_OUTPUTS: np.frombuffer(outputs, np.uint8)}
    np.savez(path / LAYERS, allow_pickle=False, **more)
    rehash(path, {"onnx-cpu": 1e-4, "torch-cpu": 1e-4})
    values = served(torch.from_numpy(images))
    shapes = dict(zip(served.output_names, (value.shape[1:] for value in values), strict=True))
    manifest = json.loads((path / MANIFEST).read_text()) | {
        "layers": [layer.model_dump() for layer in served.layers],
        "outputs": [
            {"name": name, "dtype": "float32", "shape": ["N", *shape]}
            for name, shape in shapes.items()
        ],
    }
    (path / MANIFEST).write_text(json.dumps(manifest))
    return read_artifact(path)
