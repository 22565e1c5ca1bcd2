import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from app.artifact.directory import Artifact
from app.artifact.files import ONNX_GRAPH, TORCHSCRIPT_GRAPH
from app.inference.backends import open_backend
from training.architectures import find_architecture
from training.architectures.rounding import rounded
from training.errors import ExportError
from training.export.graphs import ServedNetwork, onnx_graph
from training.export.half_weights import pack_onnx, unpack_onnx


def test_rounding_folds_normalisation_and_leaves_what_a_float16_holds() -> None:
    torch.manual_seed(0)
    network = find_architecture("resnet20").build(10, 0.0).eval()
    images = torch.randn(4, 3, 32, 32)
    before = network(images)
    halved = rounded(network)
    for name, parameter in halved.named_parameters():
        if parameter.ndim > 1:
            assert torch.equal(parameter, parameter.half().float()), name
    assert not any(isinstance(module, nn.BatchNorm2d) for module in halved.modules())
    assert torch.allclose(halved(images), before, atol=0.01)
    assert not torch.equal(halved(images), before)


def test_a_packed_graph_is_half_as_large_and_unpacks_to_what_it_was() -> None:
    network = rounded(find_architecture("fc").build(10, 0.0))
    served = ServedNetwork(network, [0.5] * 3, [0.25] * 3, 1.0).eval()
    graph, _ = onnx_graph(served, np.zeros((2, 32, 32, 3), np.uint8))
    packed = pack_onnx(graph)
    assert len(packed) < 0.52 * len(graph)
    assert unpack_onnx(packed) == graph
    assert unpack_onnx(graph) == graph


def test_an_artifact_with_float16_weights_says_so_and_both_graphs_hold_them(half: Artifact) -> None:
    assert (half.manifest.weights, half.classifier.views) == ("float16", 2)
    graph = onnx.load_from_string(half.read(ONNX_GRAPH))
    kinds = {len(tensor.dims): tensor.data_type for tensor in graph.graph.initializer}
    assert kinds[4] == TensorProto.FLOAT16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.load(half.path / TORCHSCRIPT_GRAPH)
    assert {p.dtype for p in script.parameters() if p.ndim > 1} == {torch.float16}


def test_its_torchscript_is_little_more_than_half_as_large(
    half: Artifact, exported: Artifact
) -> None:
    sizes = [(artifact.path / TORCHSCRIPT_GRAPH).stat().st_size for artifact in (half, exported)]
    assert sizes[0] < 0.6 * sizes[1]


def test_its_backends_agree_with_each_other_and_in_int8(half: Artifact) -> None:
    images = half.arrays("golden.npz")["images"]
    expected = half.arrays("golden.npz")["probabilities"]
    for name in ("onnx-cpu", "torch-cpu"):
        answers = open_backend(half, name).predict(images).probabilities
        assert np.abs(answers - expected).max() < 1e-4
    int8 = open_backend(half, "onnx-cpu", precision="int8").predict(images).probabilities
    assert np.abs(int8 - expected).max() < 0.2


def test_multiply_accumulates_count_every_view(half: Artifact, exported: Artifact) -> None:
    assert half.manifest.macs == 2 * exported.manifest.macs


def test_filters_are_read_as_float32(half: Artifact) -> None:
    assert {weights.dtype for weights in half.filters().values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("weight", "said"), [(-70_000.0, "70000.0"), (float("nan"), "nan")])
def test_a_weight_that_a_float16_cannot_hold_is_named(weight: float, said: str) -> None:
    network = find_architecture("fc").build(10, 0.0)
    with torch.no_grad():
        network.get_parameter("fc2.weight")[3, 5] = weight
    with pytest.raises(ExportError, match=rf"fc2.weight holds {said}; the limit .* is 65504.0"):
        rounded(network)
