"""Pictures that an artifact keeps as the bytes of a WebP file within an array."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.artifact.directory import Artifact
from app.errors import ArtifactError


def read_sheet(artifact: Artifact, file_name: str, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture, uint8 `[height,width,3]`.

    Args:
        artifact: whose it is.
        file_name: of the file that it lies in.
        data: the array, whose file's hash has been checked.

    Raises:
        ArtifactError: it is no picture.
    """
    try:
        with Image.open(io.BytesIO(data.tobytes()), formats=["WEBP"]) as picture:
            return np.asarray(picture.convert("RGB"))
    except Exception as exc:  # Pillow documents no list of what its decoders raise
        raise ArtifactError(f"{artifact.path / file_name}: holds no picture: {exc}") from exc
