"""Image files made of pixels, and pixels of the pictures that the service draws."""

import io
import struct
import zlib
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def as_png(image: NDArray[np.uint8]) -> bytes:
    """Return a file that holds exactly these pixels, uint8 `[H,W,3]`."""
    return as_file(image, "PNG")


def as_file(image: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    """Return EXIF with an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return what a file with an orientation stores of an upright picture (EXIF 2.32, 4.6.4)."""
    turns = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }
    return np.ascontiguousarray(turns[orientation])


def shown(response: httpx.Response) -> NDArray[np.uint8]:
    """Return the pixels of an answer that must be a PNG, uint8 `[H,W,3]`."""
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    return read_png(response.content)


def read_png(png: bytes) -> NDArray[np.uint8]:
    """Return the pixels of a PNG, uint8 `[H,W,3]`."""
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff(tags: list[tuple[int, int, int, int]], data: bytes = b"", order: str = "<") -> bytes:
    """Return a TIFF of one directory; `data` begins at `tiff_data_offset(len(tags))`.

    Args:
        tags: each with its type, count and value, which fills four bytes.
        data: what follows the directory.
        order: "<" or ">", little or big-endian.
    """
    entries = b"".join(struct.pack(f"{order}HHII", *tag) for tag in tags)
    signature = b"II*\0" if order == "<" else b"MM\0*"
    return signature + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4) + data


def tiff_data_offset(tags: int) -> int:
    """Return where `tiff` puts its data behind so many tags."""
    return 8 + 2 + 12 * tags + 4
