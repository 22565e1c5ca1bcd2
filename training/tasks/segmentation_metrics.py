"""Metrics of segmenters. A pixel's class is 0 for background; negative ones count for nothing."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BOUNDARY_PIXELS = 2
"""How far a border may lie from the true one."""

LEAST_OVERLAP = 0.5
"""Of an object that is found. Above one half, no two objects can find the same one."""


def count_pixels(
    truth: NDArray[np.int64], found: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Return the confusion matrix of pixels, `[classes,classes]`, rows true."""
    known = truth >= 0
    pairs = classes * truth[known] + found[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def overlaps(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each class's intersection over union from a confusion matrix.

    It is NaN for a class that is nowhere.
    """
    shared = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - shared
    overlap: NDArray[np.float64] = np.where(union > 0, shared / np.maximum(union, 1), np.nan)
    return overlap


def mean_overlap(matrix: NDArray[np.int64]) -> float:
    """Return the mean overlap of the classes that are anywhere, without background, the first."""
    known = overlaps(matrix)[1:]
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else 0.0


@dataclass(frozen=True)
class Counts:
    """Objects that were found, and those of both sides that have no other."""

    both: int = 0
    found_alone: int = 0
    missed: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.both + other.both,
            self.found_alone + other.found_alone,
            self.missed + other.missed,
        )

    @property
    def f1(self) -> float:
        """Twice the common objects over all of both sides; 1 if there are none."""
        every = 2 * self.both + self.found_alone + self.missed
        return 2 * self.both / every if every else 1.0


def count_objects(truth: NDArray[np.int64], found: NDArray[np.int64]) -> Counts:
    """Return how many objects two maps of numbers share, 0 being none.

    Pixels below 0 in `truth` count for nothing.
    """
    known = truth >= 0
    true, other = truth[known], found[known]
    columns = int(other.max(initial=0)) + 1
    pairs, shared = np.unique(true * columns + other, return_counts=True)
    rows, places = pairs // columns, pairs % columns
    true_area = np.bincount(true.astype(np.int64))
    found_area = np.bincount(other.astype(np.int64), minlength=columns)
    objects = (rows > 0) & (places > 0)
    union = true_area[rows] + found_area[places] - shared
    both = int((objects & (shared > LEAST_OVERLAP * union)).sum())
    true_count, found_count = (int((area[1:] > 0).sum()) for area in (true_area, found_area))
    return Counts(both, found_count - both, true_count - both)


def boundary_f1(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> float | None:
    """Return the F1 of the border pixels of two masks (Csurka et al. 2013).

    A border pixel is right if one of the other mask's lies within `BOUNDARY_PIXELS`. None if
    neither has any.
    """
    borders = _border(truth), _border(found)
    if not any(border.any() for border in borders):
        return None
    parts = []
    for border, other in (borders, borders[::-1]):
        if not border.any() or not other.any():
            return 0.0
        distance = ndimage.distance_transform_edt(~other)
        parts.append(float((distance[border] <= BOUNDARY_PIXELS).mean()))
    recall, precision = parts
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inner: NDArray[np.bool_] = ndimage.binary_erosion(mask, border_value=1)
    return mask & ~inner
