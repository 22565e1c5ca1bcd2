"""The arithmetic of a network: output shape, parameters, multiply-accumulates, receptive field.

A network is traced symbolically and run on shapes alone (torch's meta device), so that VGG-16 takes
no memory. As is usual, only convolutions and fully connected layers count as multiply-accumulates;
biases, normalisation, activations and pooling do not.
"""

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from app.artifact.files import PIXELS
from app.artifact.manifest import LayerRecord, Window
from training.architectures import find_architecture

# In evaluation mode, numbers pass through these unchanged.
_PASSING = (nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity)


@dataclass(frozen=True)
class Description:
    """A network's layers in the order in which they run."""

    name: str
    input: tuple[int, ...]
    layers: tuple[LayerRecord, ...]

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
        classes: the number of classes; by default that of the data set it is known for.
        image_size: height and width in pixels; by default those of the architecture.

    Raises:
        RecipeError: no architecture has this name.
    """
    architecture = find_architecture(name)
    with torch.device("meta"):
        network = architecture.build(classes or architecture.classes, 0.0).eval()
        image = torch.empty(1, 3, *(image_size or architecture.image_size))
    return Description(name, tuple(image.shape[1:]), layers_of(network, image))


@torch.no_grad()
def layers_of(network: nn.Module, image: Tensor) -> tuple[LayerRecord, ...]:
    """Return the layers of a network in evaluation mode, in the order in which they run.

    Args:
        network: on the device of the image.
        image: float `[1,3,H,W]`; its values do not matter.
    """
    recorder = _LayerRecorder(fx.GraphModule(network, _LayerTracer().trace(network)))
    recorder.run(image)
    return tuple(recorder.layers)


def changing_layers(layers: Iterable[LayerRecord]) -> tuple[LayerRecord, ...]:
    """Return the layers that change numbers, which a manifest records."""
    passing = {kind.__name__ for kind in _PASSING}
    return tuple(layer for layer in layers if layer.kind not in passing)


def count_weights(layer: LayerRecord) -> int:
    """Return how many numbers a layer's kernel or matrix holds; 0 for a layer without one.

    That is its multiply-accumulates at one place of its output.
    """
    return layer.macs // math.prod(layer.shape[1:])


def averaged_layer(layers: Sequence[LayerRecord]) -> str | None:
    """Return the layer whose average over all pixels is the last layer's input, if there is one."""
    by_name = {layer.name: layer for layer in layers}
    last = layers[-1]
    pool = by_name.get(last.source or "")
    averaged = by_name.get(pool.source or "") if pool is not None else None
    if pool is None or averaged is None or averaged.shape[1:] == (1, 1):
        return None
    averages = pool.kind == "AdaptiveAvgPool2d" and pool.shape[1:] == (1, 1)
    return averaged.name if averages and last.kind.startswith("Linear") else None


class _LayerTracer(fx.Tracer):
    """Counts a convolution or fully connected layer as one layer, whoever defined its class."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_layer = isinstance(m, nn.Conv2d | nn.Linear)
        return is_layer or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Window:
    """The part of the input that one value of a tensor sees, `field` pixels a side.

    The windows of neighbouring values are `jump` pixels apart. The first begins `padding` pixels
    outside of the input.
    """

    field: float = 1
    jump: int = 1
    padding: int = 0


class _LayerRecorder(fx.Interpreter):
    """Runs a traced network and records each module that it calls.

    Receptive fields follow Araujo et al. 2019. A window of k steps of size d and stride s widens
    the field by (k - 1) d times the distance of neighbouring values and multiplies that distance by
    s; p pixels of padding move the start outwards by p times the distance. Where branches meet, the
    wider field counts.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.layers: list[LayerRecord] = []
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
        elif n.target is functional.interpolate:
            (small, *_), _ = self.fetch_args_kwargs_from_env(n)
            window = replace(window, jump=max(window.jump * small.shape[-1] // result.shape[-1], 1))
        elif n.op == "placeholder":
            terms = (PIXELS,)
        elif n.target is operator.add:
            terms = self._sum(n.all_input_nodes)
        self._windows[n], self._terms[n] = window, terms
        return result

    def _sum(self, nodes: Sequence[fx.Node]) -> tuple[str, ...]:
        """Return the layers that a sum adds; none if it adds anything else."""
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
    if isinstance(module, nn.ConvTranspose2d):
        steps = math.ceil(_side(module.kernel_size) / _side(module.stride)) - 1
        jump = max(window.jump // _side(module.stride), 1)
        return replace(window, field=window.field + steps * window.jump, jump=jump)
    return window


def _layer(
    name: str, module: nn.Module, output: Tensor, seen: _Window, taken: tuple[str, ...]
) -> LayerRecord:
    shape = tuple(output.shape[1:])
    macs = 0
    if isinstance(module, nn.Conv2d):
        macs = module.weight[0].numel() * output[0].numel()
    elif isinstance(module, nn.ConvTranspose2d):
        places = math.prod(shape[1:]) // _side(module.stride) ** 2
        macs = module.weight.numel() * places
    elif isinstance(module, nn.Linear):
        macs = module.weight.numel() * math.prod(shape[:-1])
    return LayerRecord(
        name=name,
        kind=_kind(module),
        shape=shape,
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
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
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
