"""Pictures of saliency maps, which show how much each pixel speaks for a class."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.explore.pictures import enlarged
from app.explore.saliency import Heat
from app.images import RgbImage

# ColorBrewer's diverging "PuOr", which colour-blind people can tell apart. Purple is negative.
_PURPLE_ORANGE = np.array(
    [
        (45, 0, 75),
        (84, 39, 136),
        (128, 115, 172),
        (178, 171, 210),
        (216, 218, 235),
        (247, 247, 247),
        (254, 224, 182),
        (253, 184, 99),
        (224, 130, 20),
        (179, 88, 6),
        (127, 59, 8),
    ],
    dtype=np.float64,
)
_FOR, _AGAINST = (230, 97, 1), (94, 60, 153)
_STRONGEST = 0.8  # opacity of the largest value over a picture


def draw_heat(heat: Heat, scale: int) -> bytes:
    """Draw a map: orange pixels speak for the class, purple ones against it, white ones neither.

    The largest absolute value has the full colour.

    Args:
        heat: float32 `[H,W]`.
        scale: side in pixels of the square for each value.
    """
    return enlarged(signed_colours(_unit(heat)), scale)


def signed_colours(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return colours from purple (-1) by white (0) to orange (1): uint8 `[...,3]`."""
    stops = np.linspace(-1, 1, len(_PURPLE_ORANGE))
    bands = [np.interp(values, stops, _PURPLE_ORANGE[:, band]) for band in range(3)]
    return np.rint(np.stack(bands, axis=-1)).astype(np.uint8)


def draw_overlay(
    picture: RgbImage, box: tuple[float, float, float, float], heat: Heat, scale: int
) -> bytes:
    """Lay a map in orange and purple over its picture in grey.

    Args:
        picture: uint8 `[height,width,3]`, of any size.
        box: the part that the model sees: left, upper, right, lower. The rest is darkened.
        heat: float32 `[H,W]`.
        scale: side in pixels of the square for each pixel of the picture.
    """
    height, width = picture.shape[:2]
    left, upper, right, lower = (round(side) for side in box)
    # At least one pixel: in a very narrow picture, both sides can round to the same number.
    right, lower = max(right, left + 1), max(lower, upper + 1)
    grey = Image.fromarray(picture).convert("L").convert("RGB")
    unit = Image.fromarray(_unit(heat)).resize(
        (right - left, lower - upper), Image.Resampling.BICUBIC
    )
    values = np.clip(np.asarray(unit), -1, 1)
    strength = Image.fromarray(np.rint(np.abs(values) * _STRONGEST * 255).astype(np.uint8))
    colour = np.where(values[..., np.newaxis] > 0, _FOR, _AGAINST).astype(np.uint8)
    shown = Image.blend(grey, Image.new("RGB", (width, height)), 0.6)
    shown.paste(grey.crop((left, upper, right, lower)), (left, upper))
    shown.paste(Image.fromarray(colour), (left, upper), strength)
    return enlarged(np.asarray(shown), scale)


def _unit(heat: Heat) -> Heat:
    """Divide the values by the largest absolute one; a map of zeros stays as it is."""
    largest = float(np.abs(heat).max())
    return heat / np.float32(largest or 1.0)
