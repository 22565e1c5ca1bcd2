"""The test images behind a cell of the confusion matrix: read from an artifact, and drawn.

Knows nothing of HTTP.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.artifact.directory import Artifact, recent_arrays
from app.artifact.files import EXAMPLE_COLUMNS, EXAMPLE_SHEET, EXAMPLES
from app.artifact.sheets import read_sheet
from app.artifact.tensors import Images
from app.errors import NothingToSee
from app.explore import drawing

_ACROSS = 6


@dataclass(frozen=True)
class Examples:
    """Test images of one cell, the surest first.

    Attributes:
        images: uint8 `[N,H,W,3]`.
        index: their indices in the test split, int32 `[N]`.
        confidence: the predicted class's probability, float32 `[N]`.
    """

    images: Images
    index: NDArray[np.int32]
    confidence: NDArray[np.float32]


def read_examples(artifact: Artifact, true: int, predicted: int) -> Examples:
    """Return the kept test images of a true and a predicted class.

    Raises:
        NothingToSee: the model was exported without them.
        ArtifactError: the file is damaged.
    """
    if EXAMPLES not in artifact.manifest.files:
        raise NothingToSee(
            f"{artifact.ref} was exported without the "
            "pictures behind its confusion matrix; `convscope-train export` adds them today"
        )
    arrays = recent_arrays(artifact, EXAMPLES)
    chosen = np.flatnonzero((arrays["true"] == true) & (arrays["predicted"] == predicted))
    sheet = read_sheet(artifact, EXAMPLES, arrays[EXAMPLE_SHEET])
    height, width = artifact.manifest.image_size
    grid = sheet.reshape(-1, height, EXAMPLE_COLUMNS, width, 3).swapaxes(1, 2)
    images = grid.reshape(-1, height, width, 3)[chosen]
    return Examples(images, arrays["index"][chosen], arrays["confidence"][chosen])


def contact_sheet(examples: Examples, scale: int) -> bytes:
    """Draw the images of a cell, six in a row, as a PNG; an empty cell is a small grey square."""
    images = examples.images if len(examples.images) else np.full((1, 8, 8, 3), 128, np.uint8)
    return drawing.png(drawing.enlarge(drawing.tile_grid(images, _ACROSS), scale))
