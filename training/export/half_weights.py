"""Graphs whose kernels and matrices are stored in 16 bits and computed with in 32.

The network's weights were rounded to float16 values before anything was measured
(`training.architectures.rounding`). Packing a graph therefore loses nothing: the file is half as
large, and the answers stay the same. A runtime widens the weights when it loads the graph.
"""

import copy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from training.errors import ExportError
from training.export.graphs import nodes_of_logits

_SUFFIX = "_float16"


def pack_onnx(graph: bytes) -> bytes:
    """Return an ONNX graph with its rounded weights as float16, each followed by a Cast.

    Weights that the logits do not depend on (the out-of-distribution score's) stay unchanged.

    Raises:
        ExportError: a weight is not a float16 value, so `rounded` did not leave it.
    """
    model = onnx.load_from_string(graph)
    casts = []
    weights = {name for node in nodes_of_logits(model) for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in weights and tensor.data_type == TensorProto.FLOAT and _is_matrix(tensor):
            wide, name = numpy_helper.to_array(tensor), tensor.name
            narrow = wide.astype(np.float16)
            if not np.array_equal(narrow, wide):
                raise ExportError(f"{name} was changed after it had been rounded to float16")
            tensor.CopyFrom(numpy_helper.from_array(narrow, name + _SUFFIX))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    return bytes(model.SerializeToString())


def unpack_onnx(graph: bytes) -> bytes:
    """Undo `pack_onnx`; return any other graph unchanged."""
    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16 and tensor.name.endswith(_SUFFIX):
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name.removesuffix(_SUFFIX)))
    for node in [node for node in model.graph.node if _widens(node)]:
        model.graph.node.remove(node)
    return bytes(model.SerializeToString())


def packed(served: nn.Module) -> nn.Module:
    """Return a copy of a network with its rounded weights in float16, for TorchScript."""
    copied = copy.deepcopy(served)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight = nn.Parameter(module.weight.half(), requires_grad=False)
            parametrize.register_parametrization(module, "weight", _Widened(), unsafe=True)
    return copied


class _Widened(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight in float32."""
        return weight.float()


def _is_matrix(tensor: TensorProto) -> bool:
    return len(tensor.dims) in {2, 4}  # fully connected and convolutional weights


def _widens(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and node.input[0].endswith(_SUFFIX)
