"""Which pixels of an image speak for a class, without gradients: three ways to tell.

*Regions* asks the model about enlarged parts of the image, each alone, and about the image with a
part covered: what suffices for the class, and what it needs. *Occlusion* (Zeiler & Fergus 2014)
covers smaller parts only. Both work for any network. A *class activation map* (Zhou et al. 2016)
is the sum of the last feature map's channels, weighted by the last layer; it needs a network with
only global average pooling between the two. Nothing here runs a model or draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.artifact.tensors import Images, Probabilities
from app.images import RgbImage

SaliencyMethod = Literal["regions", "occlusion", "cam"]

Heat = NDArray[np.float32]
"""How much each pixel speaks for a class (above 0) or against it: float32 `[H,W]`."""

_LEAST_PROBABILITY = 0.01
"""Smaller ones count as this with `regions`: how unlikely an unlikely class is tells nothing."""


_PARTS = 32


@dataclass(frozen=True)
class _Squares:
    """Rows of equal squares over an image, in parts of its side: each number is of 32.

    So their number is the same for images of any size, and they reach all of its pixels. In an
    image that is no square, they are rectangles.

    Attributes:
        side: of a square.
        step: from one square to the next.
        outside: how far the outermost squares reach beyond the image.
    """

    side: int
    step: int
    outside: int

    def spans(self, length: int) -> list[tuple[float, float]]:
        """Return where the squares begin and end along a side of the image, in pixels."""
        starts = range(-self.outside, _PARTS - self.side + self.outside + 1, self.step)
        scale = length / _PARTS
        return [(scale * start, scale * (start + self.side)) for start in starts]

    def slices(self, size: tuple[int, int]) -> list[tuple[slice, slice]]:
        """Return rows and columns of each square in an image of this height and width."""
        rows, columns = (
            [slice(max(round(start), 0), round(end)) for start, end in self.spans(length)]
            for length in size
        )
        return list(product(rows, columns))

    def mean(self, size: tuple[int, int], values: NDArray[np.float32]) -> Heat:
        """Return the mean of each pixel's squares, `[H,W]`, by weights that fall from their middle.

        Args:
            size: height and width of the image.
            values: of the squares, in the order of `slices`.
        """
        rows, columns = (self._weights(length) for length in size)
        total = rows.T @ values.reshape(len(rows), len(columns)) @ columns
        return (total / np.outer(rows.sum(0), columns.sum(0))).astype(np.float32)

    def _weights(self, length: int) -> NDArray[np.float64]:
        """Return each square's weights along a side of the image, `[squares,length]`; 0 outside."""
        starts, ends = np.array(self.spans(length)).T[..., np.newaxis]
        distances = np.arange(0.5, length) - (starts + ends) / 2
        weights: NDArray[np.float64] = 1 - np.abs(distances) / ((ends - starts) / 2)
        return weights.clip(0)


_PATCHES = _Squares(side=8, step=4, outside=4)
_REGIONS = _Squares(side=20, step=6, outside=0)
_COVERED = _Squares(side=16, step=8, outside=4)


@dataclass(frozen=True)
class Perturbation:
    """A way to explain an answer by the answers to changed copies of the image.

    Attributes:
        copies: makes the copies, uint8 `[copies,H,W,3]`, of an image, uint8 `[H,W,3]`.
        heat: makes the map from the image's height and width, the class, and the probabilities
            for the image, float32 `[classes]`, and for the copies, `[copies,classes]`.
    """

    copies: Callable[[RgbImage], Images]
    heat: Callable[[tuple[int, int], int, Probabilities, Probabilities], Heat]


def _occlude(image: RgbImage) -> Images:
    return _cover(image, _PATCHES)


def _occlusion_map(
    size: tuple[int, int], class_id: int, before: Probabilities, after: Probabilities
) -> Heat:
    """Return the loss of log-probability, in nats, when squares around a pixel are covered."""
    least = float(np.finfo(np.float32).tiny)
    lost = _log(before[class_id], least) - _log(after[:, class_id], least)
    return _PATCHES.mean(size, lost)


def _look_at_regions(image: RgbImage) -> Images:
    return np.concatenate([_enlarge(image, _REGIONS), _cover(image, _COVERED)])


def _region_map(
    size: tuple[int, int], class_id: int, before: Probabilities, after: Probabilities
) -> Heat:
    """Return two logarithms of ratios, added, in nats.

    How much likelier the class is in regions around a pixel than in the mean region, and how much
    less likely when squares around it are covered.
    """
    found = _log(after[:, class_id], _LEAST_PROBABILITY)
    regions, covered = np.split(found, [len(_REGIONS.slices(size))])
    suffices = _REGIONS.mean(size, regions - regions.mean())
    needed = _COVERED.mean(size, _log(before[class_id], _LEAST_PROBABILITY) - covered)
    return suffices + needed


PERTURBATIONS: dict[SaliencyMethod, Perturbation] = {
    "regions": Perturbation(_look_at_regions, _region_map),
    "occlusion": Perturbation(_occlude, _occlusion_map),
}


def _cover(image: RgbImage, squares: _Squares) -> Images:
    """Return copies of the image, each with one square of its mean colour."""
    slices = squares.slices(image.shape[:2])
    copies = np.repeat(image[np.newaxis], len(slices), axis=0)
    colour = np.rint(image.mean(axis=(0, 1))).astype(np.uint8)
    for copy, square in zip(copies, slices, strict=True):
        copy[square] = colour
    return copies


def _enlarge(image: RgbImage, squares: _Squares) -> Images:
    """Return each square of the image at the image's size."""
    height, width = image.shape[:2]
    # Cut out first: otherwise the pixels around a square would count at its border.
    parts = [Image.fromarray(image[square]) for square in squares.slices((height, width))]
    return np.stack(
        [np.asarray(part.resize((width, height), Image.Resampling.BILINEAR)) for part in parts]
    )


def _log(probabilities: Probabilities | np.float32, least: float) -> NDArray[np.float32]:
    return np.log(np.maximum(probabilities, np.float32(least)))


def class_activation_map(
    features: NDArray[np.float32], weights: NDArray[np.float32], size: tuple[int, int]
) -> Heat:
    """Return how much each place of the last feature map speaks for the class, at the image's size.

    The mean of the map before it is enlarged is the class's logit without bias and temperature.

    Args:
        features: the map before global average pooling, float32 `[C,h,w]`.
        weights: the last layer's weights for the class, float32 `[C]`.
        size: height and width of the image.
    """
    activation = np.tensordot(weights, features, axes=1)
    height, width = size
    enlarged = Image.fromarray(activation).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(enlarged, np.float32)
