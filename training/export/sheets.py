"""Many small pictures in one WebP file, as an array of its bytes."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_QUALITIES = (90, 80, 70, 60, 50)
_EFFORT = 4


def webp(picture: NDArray[np.uint8], most_bytes: int = 0) -> NDArray[np.uint8]:
    """Return a picture uint8 `[height,width,3]` as the bytes of a WebP file.

    Args:
        picture: at most 16,383 pixels a side.
        most_bytes: what it may take: without loss if that fits, else in the best quality that
            does, or in the least one. 0 is for a quality at which hardly a loss is seen.
    """
    if not most_bytes:
        return _bytes(picture, quality=_QUALITIES[0])
    exact = _bytes(picture, lossless=True)
    if len(exact) <= most_bytes:
        return exact
    for quality in _QUALITIES:
        found = _bytes(picture, quality=quality)
        if len(found) <= most_bytes:
            break
    return found


def _bytes(
    picture: NDArray[np.uint8], *, quality: int = 80, lossless: bool = False
) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(
        buffer, "WEBP", quality=quality, lossless=lossless, method=_EFFORT
    )
    return np.frombuffer(buffer.getvalue(), np.uint8)
