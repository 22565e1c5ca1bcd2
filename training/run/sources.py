"""The lessons of each task, and the data that they come from."""

from pathlib import Path

import torch

from app.artifact.manifest import Task
from training.architectures import find_architecture
from training.data import dataset
from training.data.cifar_scenes import scenes_of
from training.data.scenes import SceneSource, open_scenes
from training.errors import DataError, RecipeError
from training.recipes import CLASSIFIER_FIELDS, SCENE_FIELDS, Recipe
from training.run.image_lessons import check_takes_images, load_images
from training.run.lessons import Lessons
from training.run.scene_lessons import check_scene_recipe, load_scenes

Source = dataset.Source | SceneSource


def find_source(architecture: str, data_dir: Path | None, *, download: bool = True) -> Source:
    """Find the data that an architecture can learn from, as `dataset.find` does.

    Detectors and segmenters learn from annotated pictures; of a data set for classifiers, scenes
    are made.

    Raises:
        DataError: the place does not exist, holds nothing to learn from, or cannot be learned from.
        RecipeError: there is no such architecture.
    """
    if find_architecture(architecture).task == "classification":
        return dataset.find(data_dir, download=download)
    place = dataset.place_of(data_dir)
    if place.is_dir() and (found := open_scenes(place)) is not None:
        return found
    return scenes_of(dataset.find(data_dir, download=download))


def check_lessons(recipe: Recipe, source: Source) -> None:
    """Raise unless a recipe's network can learn from a data set.

    Raises:
        RecipeError: the recipe has a value that its task has no use for, or images of a size that
            the network does not take; or there is no such architecture.
        DataError: the data set has other annotations than the network learns from.
    """
    task = find_architecture(recipe.architecture).task
    tasks: tuple[Task, ...] = ("classification",)
    why_not = ""
    if isinstance(source, SceneSource):
        tasks, why_not = source.tasks, source.why_not and f", but {source.why_not}"
    if task not in tasks:
        raise DataError(
            f"{source}: is annotated for {' and '.join(tasks)}; {recipe.architecture} learns "
            f"{task}{why_not}"
        )
    is_scenes = isinstance(source, SceneSource)
    useless = CLASSIFIER_FIELDS if is_scenes else SCENE_FIELDS
    for name in useless:
        default = Recipe.model_fields[name].default
        if (value := getattr(recipe, name)) != default:
            raise RecipeError(
                f"{name} is {value!r}; {recipe.architecture} learns {task}, which does not use it"
            )
    if is_scenes:
        check_scene_recipe(recipe, task, len(source.classes))
        return
    for name in filter(None, (recipe.architecture, recipe.proxy)):
        check_takes_images(name, recipe.crop)


def load_lessons(recipe: Recipe, source: Source, device: torch.device) -> Lessons:
    """Load and split the images of a run.

    Raises:
        DataError: the images cannot be read or split.
    """
    if isinstance(source, SceneSource):
        return load_scenes(recipe, source, device)
    return load_images(recipe, source, device)
