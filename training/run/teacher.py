"""A trained network whose answers a run learns, instead of labels (Hinton et al. 2015).

It is asked about every image as the run's network sees it, shifted, mirrored and degraded. Its
answers to the plain images, on which it is sure of nearly all, teach little (Beyer et al. 2022).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from app.errors import ConvscopeError
from training.architectures import find_architecture
from training.data.dataset import Source
from training.errors import RecipeError, RunError
from training.recipes import Recipe
from training.run.trained import load_trained, read_trained


def make_teacher(recipe: Recipe, source: Source, images: Tensor) -> nn.Module:
    """Return the network that the recipe names as the teacher.

    Args:
        recipe: `teacher` names the folder of a run, or of a model as `export` writes it.
        source: of the images that the run learns from.
        images: normalised float `[N,3,H,W]`, on the device of the network.

    Raises:
        RecipeError: the folder holds neither, or a network of other classes.
    """
    try:
        trained = read_trained(Path(recipe.teacher))
        network = find_architecture(trained.architecture).build(len(trained.classes), 0.0)
        network.to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        load_trained(network, trained.weights, images)
    except (ConvscopeError, RunError, RuntimeError) as exc:
        raise RecipeError(f"teacher is {recipe.teacher!r}: {exc}") from exc
    if trained.classes != source.classes:
        raise RecipeError(f"teacher is {recipe.teacher!r}, which has other classes")
    return network.eval().requires_grad_(requires_grad=False)
