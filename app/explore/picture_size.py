"""How large a picture of small squares becomes, and the limit of that."""

import math

from app.errors import InvalidParameter

MAX_PICTURE_PIXELS = 10_000_000
DEFAULT_SIDE = 1280
MAX_DEFAULT_SCALE = 16


def scale_for(height: int, width: int, wanted: int | None) -> int:
    """Return the scale for a picture of so many squares: what is wanted, if it is not too much.

    Raises:
        InvalidParameter: it is.
    """
    scale = wanted or max(1, min(MAX_DEFAULT_SCALE, DEFAULT_SIDE // max(height, width)))
    if height * width * scale**2 > MAX_PICTURE_PIXELS:
        raise InvalidParameter(
            f"at scale {scale} the picture would be {width * scale}x{height * scale} pixels; "
            f"the limit is {MAX_PICTURE_PIXELS / 1e6:g} megapixels"
        )
    return scale


def columns_for(count: int, wanted: int | None) -> int:
    """Return how many of so many pictures stand in a row.

    Unless it is given, a power of two, so that the usual numbers of filters fill their last row.
    """
    return min(wanted or int(2 ** math.ceil(math.log2(count) / 2)), count)
