"""Arrays of pixels as PNG files: enlarged, side by side in a grid, and of a bounded size.

The other modules of this package draw with these functions. Everything is drawn with Pillow and
NumPy alone, so that a picture is the same on every machine; only names in letters that the shipped
fonts lack depend on the system's (`lettering`).
"""

import base64
import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import InvalidParameter

MAX_PICTURE_PIXELS = 10_000_000
DEFAULT_SIDE = 1280
MAX_DEFAULT_SCALE = 16

DRAWN_SIDE = 1280
"""Of the longer side in pixels of a picture that is drawn on; a larger one is reduced before."""

GREY = (128, 128, 128)
"""The background between pictures."""


def choose_scale(height: int, width: int, wanted: int | None) -> int:
    """Return by what factor to enlarge a picture.

    Args:
        height: of the picture in pixels before it is enlarged.
        width: likewise.
        wanted: the scale that the client asks for; None chooses one for a picture of about
            `DEFAULT_SIDE` pixels.

    Raises:
        InvalidParameter: the enlarged picture would be over `MAX_PICTURE_PIXELS`.
    """
    scale = wanted or max(1, min(MAX_DEFAULT_SCALE, DEFAULT_SIDE // max(height, width)))
    if height * width * scale**2 > MAX_PICTURE_PIXELS:
        raise InvalidParameter(
            f"at scale {scale} the picture would be {width * scale}x{height * scale} pixels; "
            f"the limit is {MAX_PICTURE_PIXELS / 1e6:g} megapixels"
        )
    return scale


def choose_grid(
    tiles: NDArray[np.uint8], columns: int | None, scale: int | None
) -> tuple[int, int]:
    """Return the number of columns and the scale for a grid of pictures.

    Args:
        tiles: the pictures, uint8 `[n,height,width,3]`.
        columns: how many the client wants in a row. None chooses a power of two, so that the
            usual numbers of filters fill their last row.
        scale: as for `choose_scale`.

    Raises:
        InvalidParameter: the grid would be over `MAX_PICTURE_PIXELS`.
    """
    count, height, width, _ = tiles.shape
    columns = min(columns or int(2 ** math.ceil(math.log2(count) / 2)), count)
    rows = -(-count // columns)
    return columns, choose_scale(rows * (height + 1) + 1, columns * (width + 1) + 1, scale)


def tile_grid(tiles: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Lay pictures out row by row on neutral grey, a pixel apart.

    Args:
        tiles: uint8 `[n,height,width,3]`.
        columns: pictures in a row; fewer pictures than that make a narrower grid.
    """
    count, height, width, _ = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = np.empty((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), np.uint8)
    grid[:] = GREY
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        top, left = row * (height + 1) + 1, column * (width + 1) + 1
        grid[top : top + height, left : left + width] = tile
    return grid


def enlarged(pixels: NDArray[np.uint8], scale: int) -> bytes:
    """Return a PNG of uint8 `[height,width,3]`, each pixel a square of `scale` pixels."""
    return png(Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1)))


def data_url(pixels: NDArray[np.uint8]) -> str:
    """Return uint8 `[height,width,3]` as a PNG within a URL."""
    return "data:image/png;base64," + base64.b64encode(png(Image.fromarray(pixels))).decode()


def png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
