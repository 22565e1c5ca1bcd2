"""A trained model whose answers another network learns (Hinton et al. 2015)."""

from collections.abc import Sequence
from pathlib import Path

import torch

from app.artifact.directory import read_artifact
from app.artifact.tensors import Outputs
from app.errors import ConvscopeError
from app.inference.backends import open_backend
from training.data.dataset import Split
from training.errors import RecipeError

_BATCH = 64


def ask_teacher(folder: Path, classes: Sequence[str], split: Split) -> Split:
    """Return the images with a model's probabilities as labels; in int8 if it has such a graph.

    Args:
        folder: the model's, as `export` writes it.
        classes: of the images; the model's must be the same.
        split: the images.

    Raises:
        RecipeError: the folder holds no sound model, or one of other classes.
    """
    try:
        artifact = read_artifact(folder)
        if artifact.manifest.classes != tuple(classes):
            raise RecipeError(f"teacher is {str(folder)!r}, which knows other classes")
        precision = artifact.manifest.precisions[-1]
        backend = open_backend(artifact, "onnx-cpu", torch.get_num_threads(), precision)
        found = Outputs.in_batches(backend.predict, split.images.cpu().numpy(), _BATCH)
    except ConvscopeError as exc:
        raise RecipeError(f"teacher is {str(folder)!r}: {exc}") from exc
    return Split(split.images, torch.from_numpy(found.probabilities).to(split.images.device))
