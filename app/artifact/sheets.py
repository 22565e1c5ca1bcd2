"""Many small pictures side by side in one WebP file, kept as an array of the file's bytes.

The writer and the reader of such a sheet are both here: training writes, the service reads.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.artifact.directory import Artifact
from app.errors import ArtifactError

MAX_SIDE = 16_383
"""Pixels of a WebP picture's longer side at most."""

_QUALITIES = (90, 80, 70, 60, 50)
_EFFORT = 4


def pack_sheet(pictures: NDArray[np.uint8], max_bytes: int | None = None) -> NDArray[np.uint8]:
    """Return pictures as the bytes of one WebP file, uint8 `[bytes]`.

    Args:
        pictures: uint8 `[rows,columns,height,width,3]`; the sheet's sides are at most `MAX_SIDE`.
        max_bytes: the size to stay under. The sheet is lossless if that fits, otherwise it has
            the best quality that fits, or the lowest quality if none does. Without it, the sheet
            has a quality at which hardly any loss is visible.
    """
    rows, columns, height, width, _ = pictures.shape
    sheet = pictures.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    if max_bytes is None:
        return _encode(sheet, quality=_QUALITIES[0])
    lossless = _encode(sheet, lossless=True)
    if len(lossless) <= max_bytes:
        return lossless
    for quality in _QUALITIES:
        lossy = _encode(sheet, quality=quality)
        if len(lossy) <= max_bytes:
            break
    return lossy


def unpack_sheet(
    artifact: Artifact, file_name: str, data: NDArray[np.uint8], columns: int, height: int | None
) -> NDArray[np.uint8]:
    """Return the pictures of a sheet, uint8 `[rows,columns,height,width,3]`.

    Args:
        artifact: the artifact that the sheet belongs to.
        file_name: the artifact's file that holds it.
        data: the sheet as `pack_sheet` returned it.
        columns: how many pictures stand in a row.
        height: of one picture in pixels; the pictures are square if it is None.

    Raises:
        ArtifactError: the data are not a WebP picture.
    """
    try:
        with Image.open(io.BytesIO(data.tobytes()), formats=["WEBP"]) as picture:
            sheet = np.asarray(picture.convert("RGB"))
    except Exception as exc:  # Pillow documents no list of what its decoders raise
        raise ArtifactError(f"{artifact.path / file_name}: holds no picture: {exc}") from exc
    width = sheet.shape[1] // columns
    return sheet.reshape(-1, height or width, columns, width, 3).swapaxes(1, 2)


def _encode(
    sheet: NDArray[np.uint8], *, quality: int = 80, lossless: bool = False
) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=quality, lossless=lossless, method=_EFFORT)
    return np.frombuffer(buffer.getvalue(), np.uint8)
