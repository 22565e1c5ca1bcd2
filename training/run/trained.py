"""Trained networks, read from the folders of runs and of models."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from app.artifact.directory import read_artifact
from app.inference.backends.torchscript import load_graph
from training.run import checkpoint

_PREFIX = "plain."
"""Begins the name of a network's weight in a graph (`training.export.graphs.ServedNetwork`)."""

_NARROW = ".parametrizations.weight.original"
"""Ends the name of a weight that is stored in 16 bits (`training.export.half_weights`)."""

_MEASURED = 1000
"""Images whose statistics a folded normalisation gets."""


@dataclass(frozen=True)
class Trained:
    """A trained network, the images that it has seen and the time that it took, in seconds."""

    architecture: str
    classes: tuple[str, ...]
    data_sha256: str
    holdout: float
    split_seed: int
    weights: dict[str, Tensor]
    seconds: float


def read_trained(folder: Path) -> Trained:
    """Read the newest checkpoint of a run, or a model as `export` writes it.

    Raises:
        RunError: the folder holds a run without its weights.
        ConvscopeError: it holds neither a run nor a model.
    """
    return _read_run(folder) or _read_model(folder)


@torch.no_grad()
def load_trained(network: nn.Module, weights: dict[str, Tensor], images: Tensor) -> None:
    """Load the weights of a trained network; tensors that they lack stay.

    Args:
        network: of the same architecture.
        weights: by the network's names for them.
        images: normalised float `[N,3,H,W]`, on the network's device. Where the export made a
            normalisation part of a convolution, their statistics take it out again.
    """
    weights = dict(weights)
    hooks = []
    for name, layer, norm in _folded(network, weights):
        bias = weights[f"{name}.bias"].to(images)
        if layer.bias is None:
            del weights[f"{name}.bias"]
        else:
            weights[f"{name}.bias"] = torch.zeros_like(bias)
        kernels = weights[f"{name}.weight"].to(images)
        scale = kernels.flatten(1).norm(dim=1)
        weights[f"{name}.weight"] = kernels / scale[:, None, None, None]
        hooks.append(norm.register_forward_pre_hook(partial(_unfold, scale, bias)))
    network.load_state_dict(network.state_dict() | weights)
    network.eval()(images[:_MEASURED])
    for hook in hooks:
        hook.remove()


def _folded(
    network: nn.Module, weights: dict[str, Tensor]
) -> Iterator[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    """Yield each convolution that a normalisation was made part of, after its name."""
    for path, layers in network.named_modules():
        if isinstance(layers, nn.Sequential):
            for (first, layer), (second, norm) in pairwise(layers.named_children()):
                name, norm_name = (f"{path}.{part}".lstrip(".") for part in (first, second))
                kept = f"{norm_name}.running_mean" in weights
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and not kept:
                    yield name, layer, norm


def _unfold(scale: Tensor, bias: Tensor, norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
    """Set a normalisation so that its output is `scale` times its input plus `bias`."""
    variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
    norm.running_mean, norm.running_var = mean, variance
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.bias.copy_(bias + scale * mean)


def _read_run(folder: Path) -> Trained | None:
    """Return the network of a run's newest checkpoint, or None if the folder has none."""
    last = checkpoint.newest(folder)
    if last is None:
        return None
    recipe = last.state.recipe
    return Trained(
        architecture=recipe.architecture,
        classes=last.state.classes,
        data_sha256=last.state.data_sha256,
        holdout=recipe.holdout,
        split_seed=recipe.split_seed,
        weights=last.read(checkpoint.NETWORK),
        seconds=last.state.training_seconds,
    )


def _read_model(folder: Path) -> Trained:
    """Return the network of a model's TorchScript file."""
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    graph = load_graph(artifact, torch.device("cpu"))
    return Trained(
        architecture=manifest.architecture,
        classes=manifest.classes,
        data_sha256=manifest.data.sha256,
        holdout=manifest.recipe["holdout"],
        split_seed=manifest.recipe["split_seed"],
        weights={
            name.removeprefix(_PREFIX).replace(_NARROW, ".weight"): tensor
            for name, tensor in graph.state_dict().items()
            if name.startswith(_PREFIX)
        },
        seconds=manifest.training_seconds,
    )
