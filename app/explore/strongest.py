"""The parts of test images to which a filter responds most: read from an artifact, and drawn.

Knows nothing of HTTP.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.artifact.directory import Artifact, recent_arrays
from app.artifact.files import (
    RESPONSE_CORNERS,
    RESPONSE_IMAGES,
    RESPONSE_VALUES,
    RESPONSES,
    RESPONSES_A_FILTER,
    SHEET,
)
from app.artifact.sheets import read_sheet
from app.errors import NothingToSee
from app.explore import drawing

_ACROSS = 3
_FRAME = 255  # around what belongs to one filter


@dataclass(frozen=True)
class Responses:
    """Of a layer's first filters, nine parts each, the strongest first.

    Attributes:
        parts: uint8 `[filters,9,side,side,3]`; large parts are reduced.
        images: their indices in the test split, int32 `[filters,9]`.
        corners: row and column of the test image where each starts, int16 `[filters,9,2]`.
        values: what the filter gives, float32 `[filters,9]`.
    """

    parts: NDArray[np.uint8]
    images: NDArray[np.int32]
    corners: NDArray[np.int16]
    values: NDArray[np.float32]


def read_responses(artifact: Artifact, layer: str) -> Responses:
    """Return what a layer's filters respond to.

    Raises:
        NothingToSee: the model was exported without it, or the layer is no convolution.
        ArtifactError: the file is damaged.
    """
    arrays = recent_arrays(artifact, RESPONSES) if RESPONSES in artifact.manifest.files else {}
    if SHEET.format(layer) not in arrays:
        raise NothingToSee(f"there is nothing to see of what {layer} responds to")
    sheet = read_sheet(artifact, RESPONSES, arrays[SHEET.format(layer)])
    images = arrays[RESPONSE_IMAGES.format(layer)]
    side = sheet.shape[1] // RESPONSES_A_FILTER
    parts = sheet.reshape(len(images), side, RESPONSES_A_FILTER, side, 3).swapaxes(1, 2)
    return Responses(
        parts,
        images,
        arrays[RESPONSE_CORNERS.format(layer)],
        arrays[RESPONSE_VALUES.format(layer)],
    )


def response_tiles(parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture of three by three parts for each filter: uint8 `[filters,side,side,3]`.

    Args:
        parts: of the filters, uint8 `[filters,9,side,side,3]`.
    """
    tiles = np.stack([drawing.tile_grid(nine, _ACROSS) for nine in parts])
    tiles[:, [0, -1]] = tiles[:, :, [0, -1]] = _FRAME
    return tiles
