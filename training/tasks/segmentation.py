"""Segmentation: what each pixel learns, the loss, and objects from a network's maps.

A network gives a logit for each class of a pixel, background first, and one more for its depth: how
far the pixel lies from the border of its object, as a part of the object's deepest pixel. Objects
that touch are told apart by it. Nothing here knows of a network, a file or a data set.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

IGNORED = -1
"""The class of a pixel that is not learned from."""

DICE_WEIGHT, DEPTH_WEIGHT = 1.0, 1.0


@dataclass(frozen=True)
class Maps:
    """What each pixel of N pictures learns.

    Attributes:
        classes: int64 `[N,H,W]`, 0 for background, `IGNORED` for a pixel that learns nothing.
        depth: within the pixel's object, float `[N,H,W]`; None where objects are not told apart.
    """

    classes: Tensor
    depth: Tensor | None

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: Tensor) -> "Maps":
        return Maps(self.classes[index], None if self.depth is None else self.depth[index])

    def to(self, device: torch.device) -> "Maps":
        """Return the same maps on another device."""
        depth = None if self.depth is None else self.depth.to(device)
        return Maps(self.classes.to(device), depth)


class Lesson:
    """What a segmenter learns (`training.run.lessons.Lesson`)."""

    count_correct = None
    """No picture is right or wrong as a whole."""

    def losses(self, logits: Tensor, maps: Maps, label_smoothing: float) -> Tensor:  # noqa: ARG002
        """Return each picture's loss, `[N]`."""
        return losses(logits, maps.classes, maps.depth)


def depth_of(objects: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return each pixel's depth within its object, 0 outside, float32 `[H,W]`.

    It is the distance from the nearest pixel of another object or of none, divided by the largest
    of the object.

    Args:
        objects: the number of each pixel's object, 0 where there is none, `[H,W]`.
    """
    inner = objects > 0
    for axis in (0, 1):
        changes = np.diff(objects, axis=axis) != 0
        padding = [(0, 0), (0, 0)]
        for side in ((0, 1), (1, 0)):
            padding[axis] = side
            inner &= ~np.pad(changes, padding)
    if inner.all():  # one object, whose border is out of sight
        return np.ones(objects.shape, np.float32)
    distance = ndimage.distance_transform_edt(inner) + (objects > 0)
    count = int(objects.max(initial=0))
    if count == 0:
        return np.zeros(objects.shape, np.float32)
    deepest = np.concatenate([[1.0], ndimage.maximum(distance, objects, np.arange(1, count + 1))])
    depth: NDArray[np.float32] = (distance / np.maximum(deepest, 1.0)[objects]).astype(np.float32)
    return depth


def losses(logits: Tensor, classes: Tensor, depth: Tensor | None) -> Tensor:
    """Return each picture's loss, `[N]`.

    Cross-entropy and one minus the soft Dice coefficient (Milletari et al. 2016, arXiv 1606.04797)
    of the classes, and binary cross-entropy of the depth.

    Args:
        logits: `[N,C,H,W]`, or `[N,C+1,H,W]` with depth.
        classes: int64 `[N,H,W]`, 0 for background.
        depth: float `[N,H,W]`, if the network learns it.
    """
    count = logits.shape[1] - (depth is not None)
    labels = logits[:, :count]
    known = classes != IGNORED
    entropy = F.cross_entropy(labels, classes, ignore_index=IGNORED, reduction="none")
    pixels = known.flatten(1).sum(1).clamp_min(1)
    loss = entropy.flatten(1).sum(1) / pixels
    loss = loss + DICE_WEIGHT * _dice_loss(labels.softmax(1), classes.clamp_min(0), known)
    if depth is not None:
        error = F.binary_cross_entropy_with_logits(logits[:, count], depth, reduction="none")
        loss = loss + DEPTH_WEIGHT * (error * known).flatten(1).sum(1) / pixels
    return loss


def _dice_loss(probabilities: Tensor, classes: Tensor, known: Tensor) -> Tensor:
    """Return one minus the mean Dice coefficient of the classes but background, over the batch."""
    truth = F.one_hot(classes, probabilities.shape[1]).permute(0, 3, 1, 2)
    truth = truth * known[:, None]
    found = probabilities * known[:, None]
    shared = (found * truth).sum((0, 2, 3))[1:]
    both = (found + truth).sum((0, 2, 3))[1:]
    dice = (2 * shared + 1) / (both + 1)
    return (1 - dice.mean()).expand(len(classes))
