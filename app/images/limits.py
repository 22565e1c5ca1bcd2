"""Limits that several formats share, and the words of refusals."""

from app.errors import UnsupportedImage

MAX_PIECES = 20_000
"""The most chunks, segments or other pieces of a file. Python visits them one by one."""


def megapixels(pixels: int) -> str:
    """Return a number of pixels as messages give it: `12.5 megapixels`."""
    return f"{pixels / 1e6:.4g} megapixels"


def unsupported(file_format: str, kind: str, instead: str) -> UnsupportedImage:
    """Return the error of a sound file whose kind is not known to be read right.

    Args:
        file_format: of the file, such as `TIFF`.
        kind: of the file within its format, in words.
        instead: the formats that the sender may convert it to.
    """
    return UnsupportedImage(
        f"{file_format} image of this kind is not read: {kind}; convert it to {instead}"
    )
