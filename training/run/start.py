"""The weights of a trained network as the beginning of a run, and as a part of its end."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from app.artifact.directory import read_artifact
from app.errors import ConvscopeError
from app.inference.backends.torchscript import load_graph
from training.data.dataset import Source
from training.errors import RecipeError, RunError
from training.recipes import Recipe
from training.run import checkpoint

_PREFIX = "plain."
"""Begins the name of a network's weight in a graph (`training.export.graphs.ServedNetwork`)."""

_NARROW = ".parametrizations.weight.original"
"""Ends the name of a weight that is stored in 16 bits (`training.export.half_weights`)."""

_MEASURED = 1000
"""Images whose statistics a folded normalisation gets."""


@dataclass(frozen=True)
class _Trained:
    """A trained network, and the images that it has seen."""

    architecture: str
    classes: tuple[str, ...]
    data_sha256: str
    holdout: float
    split_seed: int
    weights: dict[str, Tensor]


def start_from_trained(
    recipe: Recipe, source: Source, network: nn.Module, images: Tensor
) -> str | None:
    """Give a newly built network the weights of the one that the recipe starts from.

    The last layer keeps its own if the other has other classes.

    Args:
        recipe: `start` names the folder of a run, or of a model as `export` writes it.
        source: of the images that the run learns from.
        network: its weights are replaced.
        images: normalised float `[N,3,H,W]`, on the network's device. Where the export made a
            normalisation part of a convolution, their statistics take it out again.

    Returns:
        The name of the last layer if that keeps its own weights.

    Raises:
        RecipeError: the folder holds neither, or a network of another architecture, or one that
            has learned from images that this run would hold out.
    """
    folder = Path(recipe.start)
    try:
        trained = _read_run(folder) or _read_model(folder)
        _check(recipe, source, trained)
        weights, new = trained.weights, None
        if trained.classes != source.classes:
            last = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
            new = last[-1]
            weights = {name: weights[name] for name in weights if not name.startswith(new)}
        _load(network, weights, images[:_MEASURED])
    except (ConvscopeError, RunError, RuntimeError) as exc:
        raise RecipeError(f"start is {recipe.start!r}: {exc}") from exc
    return new


@torch.no_grad()
def average_with_start(
    network: nn.Module, start: Mapping[str, Tensor], part: float, batches: Iterable[Tensor]
) -> None:
    """Make a trained network's weights a mean of its own and those that it started from.

    Where a learning rate has fallen to zero, weights lie at the rim of a wide region of good ones;
    the mean of two such ends lies nearer to its middle (Izmailov et al. 2018). The statistics of
    normalisations are measured anew.

    Args:
        network: its weights are replaced.
        start: its state when the run began.
        part: of the start's weights, 0 to 1.
        batches: training images as it learns from them, normalised float `[N,3,H,W]`.
    """
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(start[name], part)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not norms:
        return
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().reset_running_stats()
        norm.momentum = None  # the mean over all batches
    for images in batches:
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _check(recipe: Recipe, source: Source, trained: _Trained) -> None:
    if trained.architecture != recipe.architecture:
        raise RecipeError(
            f"start is {recipe.start!r}, which is a {trained.architecture}; "
            f"architecture is {recipe.architecture!r}"
        )
    if trained.classes != source.classes and recipe.start_part > 0:
        raise RecipeError(
            f"start is {recipe.start!r}, which has other classes; start_part is {recipe.start_part}"
        )
    other_seed = recipe.holdout > 0 and recipe.split_seed != trained.split_seed
    if trained.data_sha256 == source.sha256 and (recipe.holdout > trained.holdout or other_seed):
        raise RecipeError(
            f"start is {recipe.start!r}, which has learned from images that holdout "
            f"{recipe.holdout} and split_seed {recipe.split_seed} would hold out; it held out "
            f"{trained.holdout} by split_seed {trained.split_seed}"
        )


def _read_run(folder: Path) -> _Trained | None:
    """Return the network of a run's newest checkpoint, or None if the folder has none."""
    last = checkpoint.newest(folder)
    if last is None:
        return None
    recipe = last.state.recipe
    return _Trained(
        architecture=recipe.architecture,
        classes=last.state.classes,
        data_sha256=last.state.data_sha256,
        holdout=recipe.holdout,
        split_seed=recipe.split_seed,
        weights=last.read(checkpoint.NETWORK),
    )


def _read_model(folder: Path) -> _Trained:
    """Return the network of a model's TorchScript file."""
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    graph = load_graph(artifact, torch.device("cpu"))
    return _Trained(
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
    )


@torch.no_grad()
def _load(network: nn.Module, weights: dict[str, Tensor], images: Tensor) -> None:
    """Load the weights; tensors that they lack stay, except for folded normalisations."""
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
    network.eval()(images)
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
