"""The arithmetic of a network: output shape, parameters, multiply-accumulates, receptive field.

A network is traced symbolically and run on shapes alone (torch's meta device), so VGG-16 takes no
memory. Convolutions and fully connected layers are counted as multiply-accumulates; biases,
normalisation, activations and pooling are not, as is usual.
"""

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from app.artifact.files import PIXELS
from app.artifact.manifest import LayerRecord, Window
from training.architectures import find_architecture

# Numbers pass through these as they are, when nothing is trained.
_PASSING = (nn.Dropout, nn.Flatten, nn.Identity)


@dataclass(frozen=True)
class Layer:
    """One layer of a network, for one image.

    Attributes:
        name: its place in the network, such as `features.0`.
        kind: such as `Conv2d 3→64, 3×3`.
        output: the output's shape without the batch.
        weights: how many numbers its kernel or matrix holds.
        parameters: those and its biases.
        macs: multiply-accumulates.
        receptive_field: side in pixels of the square of the input that one output value sees;
            None where it sees the whole image.
        effective_stride: pixels of the input from what one output value sees to what the next does.
        effective_padding: pixels by which what the first one sees reaches out of the input.
        source: the layer whose output it takes, past those that only pass numbers on; `pixels`
            for the first, None where several outputs are joined before it.
        addends: those layers, where the joining is a sum.
        window: of a convolution or a pooling.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    weights: int
    parameters: int
    macs: int
    receptive_field: int | None
    effective_stride: int
    effective_padding: int
    source: str | None
    addends: tuple[str, ...]
    window: Window | None


@dataclass(frozen=True)
class Description:
    """A network's layers in the order in which they run."""

    name: str
    input: tuple[int, ...]
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """Learned numbers of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum(layer.macs for layer in self.layers)


def describe(
    name: str, classes: int | None = None, image_size: tuple[int, int] | None = None
) -> Description:
    """Describe the architecture of this name.

    Args:
        name: in `training.architectures`.
        classes: the number of classes, if not that of the data set it is known for.
        image_size: height and width in pixels, if not those that it is made for.

    Raises:
        RecipeError: there is no such architecture.
    """
    architecture = find_architecture(name)
    with torch.device("meta"):
        network = architecture.build(classes or architecture.classes, 0.0).eval()
        image = torch.empty(1, 3, *(image_size or architecture.image_size))
    return Description(name, tuple(image.shape[1:]), layers_of(network, image))


@torch.no_grad()
def layers_of(network: nn.Module, image: Tensor) -> tuple[Layer, ...]:
    """Return the layers of a network in evaluation mode, in the order in which they run.

    Args:
        network: on the device of the image.
        image: float `[1,3,H,W]`; its values do not matter.
    """
    recorder = _LayerRecorder(fx.GraphModule(network, _LayerTracer().trace(network)))
    recorder.run(image)
    return tuple(recorder.layers)


def records_of(layers: Iterable[Layer]) -> tuple[LayerRecord, ...]:
    """Return what a manifest says of those layers that change numbers."""
    passing = {kind.__name__ for kind in _PASSING}
    return tuple(
        LayerRecord(
            name=layer.name,
            kind=layer.kind,
            source=layer.source,
            addends=layer.addends,
            shape=layer.output,
            parameters=layer.parameters,
            macs=layer.macs,
            receptive_field=layer.receptive_field,
            effective_stride=layer.effective_stride,
            effective_padding=layer.effective_padding,
            window=layer.window,
        )
        for layer in layers
        if layer.kind not in passing
    )


def averaged_layer(layers: Sequence[LayerRecord]) -> str | None:
    """Return the layer whose output is averaged over all pixels for the last, if that is so."""
    by_name = {layer.name: layer for layer in layers}
    last = layers[-1]
    pool = by_name.get(last.source or "")
    averaged = by_name.get(pool.source or "") if pool is not None else None
    if pool is None or averaged is None or averaged.shape[1:] == (1, 1):
        return None
    averages = pool.kind == "AdaptiveAvgPool2d" and pool.shape[1:] == (1, 1)
    return averaged.name if averages and last.kind.startswith("Linear") else None


class _LayerTracer(fx.Tracer):
    """Takes a convolution or fully connected layer for one layer, whoever defined it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_layer = isinstance(m, nn.Conv2d | nn.Linear)
        return is_layer or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Window:
    """What one value of a tensor sees: `field` pixels a side, neighbours `jump` pixels apart.

    The first one's begins `padding` pixels outside of the input.
    """

    field: float = 1
    jump: int = 1
    padding: int = 0


class _LayerRecorder(fx.Interpreter):
    """Runs a traced network and writes down each module that it calls.

    Receptive fields follow Araujo et al. 2019: a window of k steps of size d and stride s widens
    the field by (k - 1) d times the distance of neighbouring values, and multiplies that
    distance by s; p pixels of padding begin p times the distance further out. Where branches meet,
    the wider one counts.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.layers: list[Layer] = []
        self._windows: dict[fx.Node, _Window] = {}
        self._terms: dict[fx.Node, tuple[str, ...]] = {}  # layers whose sum a node is

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        before = [self._windows[node] for node in n.all_input_nodes]
        window = max(before, key=lambda seen: seen.field, default=_Window())
        terms: tuple[str, ...] = ()
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            window = _widen(window, module)
            taken = self._terms[n.all_input_nodes[0]]
            self.layers.append(_layer(str(n.target), module, result, window, taken))
            terms = taken if isinstance(module, _PASSING) else (str(n.target),)
        elif n.op == "placeholder":
            terms = (PIXELS,)
        elif n.target is operator.add:
            terms = self._sum(n.all_input_nodes)
        self._windows[n], self._terms[n] = window, terms
        return result

    def _sum(self, nodes: Sequence[fx.Node]) -> tuple[str, ...]:
        """Return the layers that a sum is made of; none if there is something else among them."""
        parts = [self._terms[node] for node in nodes]
        return tuple(itertools.chain(*parts)) if all(parts) else ()


def _widen(window: _Window, module: nn.Module) -> _Window:
    pools_all = isinstance(module, nn.AdaptiveAvgPool2d) and _side(module.output_size) == 1
    if isinstance(module, nn.Linear) or pools_all:
        return replace(window, field=math.inf)
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        kernel, stride = _side(module.kernel_size), _side(module.stride)
        dilation = 1 if isinstance(module, nn.AvgPool2d) else _side(module.dilation)
        field = window.field + (kernel - 1) * dilation * window.jump
        padding = window.padding + _padding(module) * window.jump
        return _Window(field, window.jump * stride, padding)
    return window


def _layer(
    name: str, module: nn.Module, output: Tensor, seen: _Window, taken: tuple[str, ...]
) -> Layer:
    shape = tuple(output.shape[1:])
    weight = getattr(module, "weight", None)
    macs = 0
    if isinstance(module, nn.Conv2d):
        macs = module.weight[0].numel() * output[0].numel()
    elif isinstance(module, nn.Linear):
        macs = module.weight.numel() * math.prod(shape[:-1])
    return Layer(
        name=name,
        kind=_kind(module),
        output=shape,
        weights=0 if weight is None or weight.ndim < 2 else weight.numel(),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=macs,
        receptive_field=None if math.isinf(seen.field) else int(seen.field),
        effective_stride=seen.jump,
        effective_padding=seen.padding,
        source=taken[0] if len(taken) == 1 else None,
        addends=taken if len(taken) > 1 else (),
        window=_window(module),
    )


def _window(module: nn.Module) -> Window | None:
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return None
    return Window(
        kernel=_side(module.kernel_size),
        stride=_side(module.stride),
        padding=_padding(module),
        groups=getattr(module, "groups", 1),
    )


def _padding(module: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) -> int:
    if isinstance(module.padding, str):
        return (_side(module.kernel_size) - 1) // 2 if module.padding == "same" else 0
    return _side(module.padding)


def _kind(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.Conv2d):
        side = _side(module.kernel_size)
        stride = f", stride {_side(module.stride)}" if _side(module.stride) > 1 else ""
        return f"{kind} {module.in_channels}→{module.out_channels}, {side}×{side}{stride}"
    if isinstance(module, nn.Linear):
        return f"{kind} {module.in_features}→{module.out_features}"
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return f"{kind} {_side(module.kernel_size)}×{_side(module.kernel_size)}"
    return kind


def _side(value: Any) -> int:
    return int(value if isinstance(value, int) else value[0])
