"""A trained network as the beginning of a run, and as a part of its end."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from training.architectures import find_architecture
from training.errors import RecipeError
from training.recipes import Recipe
from training.run.trained import Trained, load_trained


def check_start(recipe: Recipe, trained: Trained, classes: tuple[str, ...]) -> None:
    """Raise unless a run of the recipe can begin with a network.

    Raises:
        RecipeError: it is neither of the same architecture nor of its backbone's, or starts anew in
            a part and would be averaged.
    """
    backbone = find_architecture(recipe.architecture).backbone
    if trained.architecture not in (recipe.architecture, backbone):
        fitting = f"{recipe.architecture!r}" + (f" or {backbone!r}" if backbone else "")
        raise RecipeError(f"it is a {trained.architecture}; it must be a {fitting}")
    if recipe.start_part == 0:
        return
    if trained.architecture == backbone:
        raise RecipeError(f"it is a {backbone} alone; start_part is {recipe.start_part}")
    if trained.classes != classes:
        raise RecipeError(f"it has other classes; start_part is {recipe.start_part}")


def begin_with(
    trained: Trained,
    network: nn.Module,
    images: Tensor,
    architecture: str,
    classes: tuple[str, ...],
) -> str:
    """Give a newly built network the weights of a trained one.

    Args:
        trained: of the same architecture, or of its backbone.
        network: its weights are replaced, but for layers that the trained one has not, and for the
            last layer if the classes are others.
        images: as `load_trained` takes them.
        architecture: of the network.
        classes: of the images that the run learns from.

    Returns:
        The names of the layers that keep their own weights; empty if all are replaced.

    Raises:
        RunError: the network has other weights than the trained one.
    """
    own, weights = network.state_dict(), trained.weights
    anew: list[str] = []
    layers: dict[str, None] = {}
    if trained.architecture != architecture:  # it is the backbone
        learned, kept = ({_layer(name) for name in each} for each in (weights, own))
        anew = [name for name in own if _layer(name) not in learned]
        layers = dict.fromkeys(map(_layer, anew))
        weights = {name: each for name, each in weights.items() if _layer(name) in kept}
    elif trained.classes != classes:
        anew = _weights_of_outputs(architecture)
        layers = dict.fromkeys(name.rpartition(".")[0] for name in anew)
    load_trained(network, weights | {name: own[name] for name in anew}, images)
    return ", ".join(layers)


def _layer(name: str) -> str:
    """Return the name of the network's part that a weight belongs to."""
    return name.partition(".")[0]


def _weights_of_outputs(architecture: str) -> list[str]:
    """Return the names of the weights whose number depends on the number of classes."""
    build = find_architecture(architecture).build
    with torch.device("meta"):
        some, more = (build(outputs, 0.0).state_dict() for outputs in (2, 3))
    return [name for name in some if some[name].shape != more[name].shape]


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
        batches: augmented training images, normalised float `[N,3,H,W]`, all of one size.
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
