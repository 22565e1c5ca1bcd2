"""`responses.npz`: the patches of test images to which each filter responds most.

The file's layout is known here alone: training packs, the service reads.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.artifact.directory import Artifact, recent_arrays
from app.artifact.files import RESPONSES
from app.artifact.sheets import pack_sheet, unpack_sheet
from app.errors import NothingToSee

PATCHES = 9
"""How many patches are kept of each filter."""

# The arrays of a convolution in the file; the sheet has a row for each filter.
_SHEET, _IMAGES, _CORNERS, _VALUES = "{}.sheet", "{}.images", "{}.corners", "{}.values"


@dataclass(frozen=True)
class Strongest:
    """Nine patches for each of a convolution's first filters, the strongest response first.

    Attributes:
        patches: uint8 `[filters,9,side,side,3]`; large patches are reduced.
        images: the test images they were cut from, as indices in the test split, int32
            `[filters,9]`.
        corners: row and column of the test image where each patch starts, int16 `[filters,9,2]`;
            a patch may start outside the image.
        values: the filter's responses, float32 `[filters,9]`.
    """

    patches: NDArray[np.uint8]
    images: NDArray[np.int32]
    corners: NDArray[np.int16]
    values: NDArray[np.float32]


def pack_strongest(layer: str, strongest: Strongest) -> dict[str, NDArray[Any]]:
    """Return the arrays of `responses.npz` for one convolution; its patches lose a little."""
    return {
        _SHEET.format(layer): pack_sheet(strongest.patches),
        _IMAGES.format(layer): strongest.images,
        _CORNERS.format(layer): strongest.corners,
        _VALUES.format(layer): strongest.values,
    }


def read_strongest(artifact: Artifact, layer: str) -> Strongest:
    """Return the strongest patches of a convolution's filters.

    Raises:
        NothingToSee: the model was exported without them, or the layer is not a convolution.
        ArtifactError: the file is damaged.
    """
    arrays = recent_arrays(artifact, RESPONSES) if RESPONSES in artifact.manifest.files else {}
    if _SHEET.format(layer) not in arrays:
        raise NothingToSee(f"the model has no strongest patches of the layer {layer}")
    sheet = arrays[_SHEET.format(layer)]
    return Strongest(
        unpack_sheet(artifact, RESPONSES, sheet, PATCHES, height=None),
        arrays[_IMAGES.format(layer)],
        arrays[_CORNERS.format(layer)],
        arrays[_VALUES.format(layer)],
    )
