"""The weights of a trained model as the beginning of a run, on its images or on others."""

import io
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from app.artifact.directory import Artifact, read_artifact
from app.artifact.files import TORCHSCRIPT_GRAPH
from app.errors import ConvscopeError
from training.data.dataset import Source
from training.errors import RecipeError
from training.recipes import Recipe

_PREFIX = "plain."
_NARROW = ".parametrizations.weight.original"
"""Ends the name of a weight that is stored in 16 bits (`training.export.half_weights`)."""

_MEASURED = 1000


def start_from_model(recipe: Recipe, source: Source, network: nn.Module, images: Tensor) -> None:
    """Give a newly built network the weights of the model that the recipe starts from.

    The last layer keeps its own if the model has other classes.

    Args:
        recipe: `start` names the model's folder, as `export` writes it.
        source: of the images that the run learns from.
        network: its weights are replaced.
        images: normalised float `[N,3,H,W]`, on the network's device. Where the export made a
            normalisation part of a convolution, their statistics take it out again.

    Raises:
        RecipeError: the folder holds no sound model, or one of another architecture, or a model
            that has learned from images that this run would hold out.
    """
    folder = Path(recipe.start)
    try:
        artifact = read_artifact(folder)
        if artifact.manifest.architecture != recipe.architecture:
            raise RecipeError(
                f"start is {recipe.start!r}, which is a {artifact.manifest.architecture}; "
                f"architecture is {recipe.architecture!r}"
            )
        _check_holdout(recipe, source, artifact)
        weights = _read_weights(artifact)
        if artifact.manifest.classes != source.classes:
            last = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
            weights = {name: weights[name] for name in weights if not name.startswith(last[-1])}
        _load(network, weights, images[:_MEASURED])
    except (ConvscopeError, RuntimeError) as exc:
        raise RecipeError(f"start is {str(folder)!r}: {exc}") from exc


def _check_holdout(recipe: Recipe, source: Source, artifact: Artifact) -> None:
    learned = artifact.manifest
    if learned.data.sha256 != source.sha256:
        return
    part, seed = learned.recipe["holdout"], learned.recipe["split_seed"]
    if recipe.holdout > part or (recipe.holdout and recipe.split_seed != seed):
        raise RecipeError(
            f"start is {recipe.start!r}, which has learned from images that holdout "
            f"{recipe.holdout} and split_seed {recipe.split_seed} would hold out; it held out "
            f"{part} by split_seed {seed}"
        )


def _read_weights(artifact: Artifact) -> dict[str, Tensor]:
    """Return the tensors of the network in a model's TorchScript file, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(io.BytesIO(artifact.read(TORCHSCRIPT_GRAPH)), map_location="cpu")
    return {
        name.removeprefix(_PREFIX).replace(_NARROW, ".weight"): tensor
        for name, tensor in module.state_dict().items()
        if name.startswith(_PREFIX)
    }


@torch.no_grad()
def _load(network: nn.Module, weights: dict[str, Tensor], images: Tensor) -> None:
    """Load the weights; what they lack stays as it is, except for folded normalisations."""
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
