"""Which pixels of an image speak for a class, without gradients: occlusion and activation maps.

Occlusion (Zeiler & Fergus 2014) asks the model again with parts of the image covered, and works
for any network. A class activation map (Zhou et al. 2016) is the sum of the last feature map's
channels, weighted by the last layer; it needs a network with only global average pooling between
the two. Nothing here runs a model or draws.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.artifact.tensors import Images, Probabilities
from app.images import RgbImage

SaliencyMethod = Literal["occlusion", "cam"]

PATCH = 8
STRIDE = 4

Heat = NDArray[np.float32]
"""How much each pixel speaks for a class (above 0) or against it: float32 `[H,W]`."""


def occlude(image: RgbImage) -> Images:
    """Return copies of the image, each with one square of its mean colour.

    The squares have 8×8 pixels and stand 4 pixels apart. Those at the border lie partly outside, so
    that every pixel is covered equally often.

    Args:
        image: uint8 `[H,W,3]`.

    Returns:
        uint8 `[places,H,W,3]`.
    """
    places = _places(image.shape[:2])
    covered = np.repeat(image[np.newaxis], len(places), axis=0)
    colour = np.rint(image.mean(axis=(0, 1))).astype(np.uint8)
    for copy, place in zip(covered, places, strict=True):
        copy[place] = colour
    return covered


def occlusion_map(
    size: tuple[int, int], class_id: int, before: Probabilities, after: Probabilities
) -> Heat:
    """Return for each pixel the loss of the class's log-probability, in nats, when it is covered.

    The loss is the mean over the squares that cover the pixel.

    Args:
        size: height and width of the image.
        class_id: the class.
        before: the probabilities for the image, float32 `[classes]`.
        after: the probabilities for the copies of `occlude`, float32 `[places,classes]`.
    """
    tiny = np.finfo(np.float32).tiny
    lost = np.log(np.maximum(before[class_id], tiny)) - np.log(np.maximum(after[:, class_id], tiny))
    total, times = np.zeros(size), np.zeros(size)
    for place, loss in zip(_places(size), lost, strict=True):
        total[place] += loss
        times[place] += 1
    return (total / times).astype(np.float32)


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


def _places(size: tuple[int, ...]) -> list[tuple[slice, slice]]:
    first = STRIDE - PATCH
    rows, columns = (
        [slice(max(start, 0), start + PATCH) for start in range(first, side, STRIDE)]
        for side in size[:2]
    )
    return [(row, column) for row in rows for column in columns]
