"""Where in an image a class is seen, without gradients: what occlusion costs, and activation maps.

Occlusion (Zeiler & Fergus 2014) asks the model again with a part of the image covered, and works
for any network. A class activation map (Zhou et al. 2016) is a sum of the last feature map's
channels, weighted as the last layer weights them; it is there only where nothing but global
average pooling lies between the two. Nothing here runs a model or draws.
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
    """Return the image with a square of its mean colour on it, at every place of a grid.

    Squares of 8×8 pixels every 4, those at the border partly outside, so that every pixel is
    covered equally often.

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
    """Return how much of the class's log-probability is lost, in nats, when a pixel is covered.

    The mean over the squares that cover it.

    Args:
        size: height and width of the image.
        class_id: the class.
        before: float32 `[classes]`, for the image as it is.
        after: float32 `[places,classes]`, for what `occlude` made of it.
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
    """Return what each pixel of the last feature map says of the class, at the image's size.

    The map's mean is the class's logit before bias and temperature.

    Args:
        features: the map before global average pooling, float32 `[C,h,w]`.
        weights: the last layer's for the class, float32 `[C]`.
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
