"""Evaluation of a trained network; the only reader of the test split.

The temperature is fitted on held-out images. Nothing is chosen on the test split. A task's metrics
are in `training.tasks`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from app.artifact.directory import first_error
from app.artifact.files import EVALUATION
from app.artifact.manifest import Evaluation, Views, WeightFormat
from app.artifact.tensors import Images, Outputs
from training.architectures import find_architecture
from training.architectures.rounding import rounded
from training.architectures.views import with_views
from training.data import dataset
from training.errors import DataError, RunError
from training.run import durable
from training.run.checkpoint import Checkpoint
from training.run.image_lessons import compute_logits
from training.run.sources import Source
from training.tasks import classification

SERVED_BATCH = 50
"""Images in a call of a graph. 500 do not fit a processor's cache and take twice as long each."""

Predict = Callable[[Images], Outputs]
"""A backend's answers for uint8 images `[N,H,W,3]`."""


def load_network(
    checkpoint: Checkpoint, outputs: int | None = None, weights: WeightFormat = "float32"
) -> nn.Module:
    """Return the checkpoint's network: float32, on the processor, in evaluation mode.

    Args:
        checkpoint: of a run.
        outputs: of the network; by default its classes.
        weights: with `float16`, kernels and matrices are rounded to float16 values.

    Raises:
        RunError: the weights cannot be read.
    """
    state = checkpoint.state
    build = find_architecture(state.recipe.architecture).build
    network = build(outputs or len(state.classes), state.recipe.dropout)
    checkpoint.load_network(network)
    return network.eval() if weights == "float32" else rounded(network)


def evaluate(
    checkpoint: Checkpoint,
    source: dataset.Source,
    device: torch.device,
    views: Views = 1,
    weights: WeightFormat = "float32",
) -> Evaluation:
    """Fit the temperature on the held-out images, then measure on the test split.

    Args:
        checkpoint: of a run. Without held-out images, the temperature is 1.
        source: the data set that the run was trained on.
        device: computes the logits, in float32.
        views: of each image, whose logits are averaged.
        weights: the type that kernels and matrices are rounded to.

    Raises:
        DataError: `source` is not the data set that the run was trained on.
        RunError: the weights cannot be read.
    """
    state = checkpoint.state
    check_source(checkpoint, source)
    network = with_views(load_network(checkpoint, weights=weights), views).to(device)

    def logits_of(split: dataset.Split) -> Tensor:
        return compute_logits(network, split.images, state.mean, state.deviation, device)

    temperature = 1.0
    heldout = load_heldout(checkpoint, source)
    if len(heldout) > 0:
        temperature = classification.fit_temperature(logits_of(heldout), heldout.labels)
    test = source.load_test()
    found = classification.measure(logits_of(test), test.labels, temperature, state.classes)
    return found.model_copy(update={"views": views, "weights": weights})


def check_source(checkpoint: Checkpoint, source: Source) -> None:
    """Raise DataError unless `source` is the data set that the run was trained on."""
    if source.sha256 != checkpoint.state.data_sha256:
        raise DataError(
            f"{source.place}: data with sha256 {source.sha256}; "
            f"{checkpoint.path} was trained on {checkpoint.state.data_sha256}"
        )


def load_splits(
    checkpoint: Checkpoint, source: dataset.Source
) -> tuple[dataset.Split, dataset.Split]:
    """Return the images that the run learned from and the images that it held out, if any."""
    images, recipe = source.load_train(), checkpoint.state.recipe
    train, heldout = dataset.split_distinct(images, recipe.holdout, recipe.split_seed)
    return images[train], images[heldout]


def load_heldout(checkpoint: Checkpoint, source: dataset.Source) -> dataset.Split:
    """Return the images that the run held out; none if its recipe held out none."""
    _, heldout = load_splits(checkpoint, source)
    return heldout


@dataclass(frozen=True)
class Answered:
    """Images with their true classes and a graph's answers.

    Attributes:
        images: uint8 `[N,H,W,3]`.
        labels: int64 `[N]`.
        outputs: of the graph.
    """

    images: Images
    labels: NDArray[np.int64]
    outputs: Outputs

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable classes, int64 `[N]`."""
        classes: NDArray[np.int64] = self.outputs.probabilities.argmax(1)
        return classes

    @property
    def accuracy(self) -> float:
        """The part of the images that is classified correctly."""
        return float(np.mean(self.predicted == self.labels))


def answer(predict: Predict, split: dataset.Split) -> Answered:
    """Return a graph's answers for all images of a split."""
    images: Images = split.images.numpy()
    return Answered(images, split.labels.numpy(), outputs_for(predict, images))


def answer_test(predict: Predict, source: dataset.Source) -> Answered:
    """Return a graph's answers for the test split. No choice may depend on them."""
    return answer(predict, source.load_test())


def spaced_test_images(source: dataset.Source, count: int) -> dataset.Split:
    """Return `count` test images at equal distances, or all if there are fewer.

    The first ones of class folders would be of the first classes alone.
    """
    test = source.load_test()
    count = min(count, len(test))
    index = torch.arange(count) * len(test) // count
    return dataset.Split(test.images[index], test.labels[index])


def outputs_for(predict: Predict, images: Images) -> Outputs:
    """Return a graph's answers for any number of images."""
    return Outputs.in_batches(predict, images, SERVED_BATCH)


def save_evaluation(checkpoint: Checkpoint, evaluation: BaseModel) -> None:
    """Write `evaluation.json` into the checkpoint that was measured.

    Raises:
        RunError: the file cannot be written.
    """
    path = checkpoint.path / EVALUATION
    try:
        durable.write_text(path, evaluation.model_dump_json(indent=1))
    except OSError as exc:
        raise RunError(f"{path}: cannot be written: {exc}") from exc


def read_evaluation(checkpoint: Checkpoint) -> Evaluation | None:
    """Return the saved evaluation of a checkpoint, or None if it has none.

    Raises:
        RunError: the file is not an evaluation.
    """
    path = checkpoint.path / EVALUATION
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise RunError(f"{path}: cannot be read: {exc.strerror}") from exc
    except ValidationError as exc:
        raise RunError(f"{path}: not an evaluation: {first_error(exc)}") from exc
