"""The weights of a trained network as the beginning of a run, and as a part of its end."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from app.errors import ConvscopeError
from training.data.dataset import Source
from training.errors import RecipeError, RunError
from training.recipes import Recipe
from training.run.trained import Trained, load_trained, read_trained


@dataclass(frozen=True)
class Start:
    """What a run has of the network that it started from, besides weights.

    Attributes:
        new_layer: the name of the last layer if that keeps its own weights.
        seconds: of training.
    """

    new_layer: str | None
    seconds: float


def start_from_trained(recipe: Recipe, source: Source, network: nn.Module, images: Tensor) -> Start:
    """Give a newly built network the weights of the one that the recipe starts from.

    The last layer keeps its own if the other has other classes.

    Args:
        recipe: `start` names the folder of a run, or of a model as `export` writes it.
        source: of the images that the run learns from.
        network: its weights are replaced.
        images: as `load_trained` takes them.

    Raises:
        RecipeError: the folder holds neither, or a network of another architecture, or one that
            has learned from images that this run would hold out.
    """
    folder = Path(recipe.start)
    try:
        trained = read_trained(folder)
        _check(recipe, source, trained)
        weights, new = trained.weights, None
        if trained.classes != source.classes:
            last = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
            new = last[-1]
            weights = {name: weights[name] for name in weights if not name.startswith(new)}
        load_trained(network, weights, images)
    except (ConvscopeError, RunError, RuntimeError) as exc:
        raise RecipeError(f"start is {recipe.start!r}: {exc}") from exc
    return Start(new, trained.seconds)


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


def _check(recipe: Recipe, source: Source, trained: Trained) -> None:
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
