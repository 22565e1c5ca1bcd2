"""Pictures of masks: a PNG whose pixels are classes, and objects laid over their picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.explore.palette import colour_of
from app.explore.pictures import png
from app.images import RgbImage

LEAST_SIDE = 480
"""Of a picture's longer side; a smaller one is enlarged, so that outlines find room."""

_FILL = 0.4  # opacity
_LINE = 3  # pixels of an outline: a dark one between objects that touch, and two of the colour


def index_png(classes: NDArray[np.uint8], count: int) -> bytes:
    """Return a palette PNG whose pixels are the classes.

    Args:
        classes: 0 for background, which is black, otherwise one more than the class, uint8 `[h,w]`.
        count: of the classes, without background.
    """
    picture = Image.fromarray(np.ascontiguousarray(classes))
    colours = [(0, 0, 0), *(colour_of(label) for label in range(count))]
    picture.putpalette([part for colour in colours for part in colour])
    return png(picture)


def draw_masks(picture: RgbImage, regions: NDArray[Any], labels: Sequence[int]) -> bytes:
    """Lay objects over their picture, each filled and outlined in its class's colour, as a PNG.

    Args:
        picture: uint8 `[height,width,3]`.
        regions: 0 where there is none, otherwise the object's number, from 1, `[height,width]`.
        labels: the class of each object.
    """
    scale = max(1, -(-LEAST_SIDE // max(picture.shape[:2])))
    shown = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    regions = regions.repeat(scale, axis=0).repeat(scale, axis=1)
    table = np.array([(0, 0, 0), *(colour_of(label) for label in labels)], np.uint8)
    colours = table[regions]
    inside = regions > 0
    shown[inside] = np.rint((1 - _FILL) * shown[inside] + _FILL * colours[inside])
    for distance in range(_LINE, 0, -1):
        line = inside & _near_another(regions, distance)
        shown[line] = colours[line] if distance > 1 else 0
    return png(Image.fromarray(shown))


def _near_another(regions: NDArray[Any], distance: int) -> NDArray[np.bool_]:
    """Return the pixels that have another region at a distance, along a row or a column."""
    near = np.zeros(regions.shape, np.bool_)
    for numbers, found in ((regions, near), (regions.T, near.T)):
        other = numbers[distance:] != numbers[:-distance]
        found[distance:] |= other
        found[:-distance] |= other
    return near
