"""Test images that several models get wrong: arithmetic on predictions, which reads no data."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_EXAMPLES = 100
"""The number of images of a group that are listed by their index."""

Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SharedMistake:
    """A test image: its index, its class, and the class that most erring models predict."""

    index: int
    true: str
    predicted: str


@dataclass(frozen=True)
class MistakeGroup:
    """The number of test images of a kind, and the first `MOST_EXAMPLES` of them."""

    images: int
    examples: tuple[SharedMistake, ...]


@dataclass(frozen=True)
class Overlap:
    """The errors in common of several models on the same test images.

    Attributes:
        models: `name/version`, in the order of `errors` and `shared`.
        images: the number of test images.
        errors: the number of images that each model gets wrong.
        histogram: the numbers of images that 0, 1, ... all models get wrong.
        shared: `[models][models]`, the images that both get wrong as a part of the images that one
            or both get wrong; 1 if neither errs.
        by_all: the images that every model gets wrong.
        by_fully_connected: the images that every fully connected network gets wrong and every other
            model right; None unless there are models of both kinds.
    """

    models: tuple[str, ...]
    images: int
    errors: tuple[int, ...]
    histogram: tuple[int, ...]
    shared: tuple[tuple[float, ...], ...]
    by_all: MistakeGroup
    by_fully_connected: MistakeGroup | None


def find_overlap(
    labels: Labels,
    predictions: dict[str, Labels],
    classes: tuple[str, ...],
    fully_connected: AbstractSet[str] = frozenset(),
) -> Overlap:
    """Compare the errors of one model or more.

    Args:
        labels: the true classes, int64 `[N]`.
        predictions: by model, int64 `[N]`.
        classes: names by label.
        fully_connected: the models that are fully connected networks.
    """
    predicted = np.stack(list(predictions.values()))
    wrong = predicted != labels
    histogram = np.bincount(wrong.sum(0), minlength=len(wrong) + 1)

    def group(members: Mask, voters: Mask) -> MistakeGroup:
        return _group(members.nonzero()[0], labels, predicted[voters], classes)

    dense = np.array([model in fully_connected for model in predictions])
    only_dense = wrong[dense].all(0) & ~wrong[~dense].any(0)
    return Overlap(
        models=tuple(predictions),
        images=len(labels),
        errors=tuple(wrong.sum(1).tolist()),
        histogram=tuple(histogram.tolist()),
        shared=tuple(tuple(row) for row in _shared(wrong).round(4).tolist()),
        by_all=group(wrong.all(0), np.ones_like(dense)),
        by_fully_connected=group(only_dense, dense) if 0 < dense.sum() < len(dense) else None,
    )


def _shared(wrong: Mask) -> NDArray[np.float64]:
    """Return intersection over union for every pair of rows of `[models,N]`."""
    both = wrong.astype(np.int64) @ wrong.T.astype(np.int64)
    either = both.diagonal()[:, None] + both.diagonal() - both
    part = np.ones(both.shape)
    np.divide(both, either, out=part, where=either > 0)
    return part


def _group(
    indices: Labels, labels: Labels, votes: Labels, classes: tuple[str, ...]
) -> MistakeGroup:
    """Return a group with its examples; of equally frequent predictions, the first class."""
    examples = tuple(
        SharedMistake(
            index=index,
            true=classes[labels[index]],
            predicted=classes[np.bincount(votes[:, index]).argmax()],
        )
        for index in indices[:MOST_EXAMPLES].tolist()
    )
    return MistakeGroup(images=len(indices), examples=examples)
