"""`examples.npz`: the test images behind the cells of the confusion matrix.

The file's layout is known here alone: training packs, the service reads.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.artifact.directory import Artifact, recent_arrays
from app.artifact.files import EXAMPLES
from app.artifact.sheets import MAX_SIDE, pack_sheet, unpack_sheet
from app.artifact.tensors import Images
from app.errors import NothingToSee

_COLUMNS = 32
_SHEET, _INDEX, _TRUE, _PREDICTED, _CONFIDENCE = (
    "sheet",
    "index",
    "true",
    "predicted",
    "confidence",
)


@dataclass(frozen=True)
class Examples:
    """Test images with their predictions.

    Attributes:
        images: uint8 `[N,H,W,3]`.
        index: their indices in the test split, int32 `[N]`.
        true: their classes, int32 `[N]`.
        predicted: the predicted classes, int32 `[N]`.
        confidence: the predicted class's probability, float32 `[N]`.
    """

    images: Images
    index: NDArray[np.int32]
    true: NDArray[np.int32]
    predicted: NDArray[np.int32]
    confidence: NDArray[np.float32]


def most_examples(height: int) -> int:
    """Return how many images of so many pixels in height fit in the sheet of an artifact."""
    return MAX_SIDE // height * _COLUMNS


def pack_examples(examples: Examples, max_bytes: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of `examples.npz`.

    Args:
        examples: sorted by true class, predicted class and falling confidence; at most
            `most_examples` of them.
        max_bytes: the size to which their sheet is compressed.
    """
    count, height, width, _ = examples.images.shape
    rows = -(-count // _COLUMNS)
    pictures = np.zeros((rows * _COLUMNS, height, width, 3), np.uint8)
    pictures[:count] = examples.images
    return {
        _SHEET: pack_sheet(pictures.reshape(rows, _COLUMNS, height, width, 3), max_bytes),
        _INDEX: examples.index,
        _TRUE: examples.true,
        _PREDICTED: examples.predicted,
        _CONFIDENCE: examples.confidence,
    }


def check_examples(artifact: Artifact) -> None:
    """Raise NothingToSee if the model was exported without test images."""
    if EXAMPLES not in artifact.manifest.files:
        raise NothingToSee(
            f"{artifact.ref} was exported without the pictures behind its confusion matrix; "
            "`convscope-train export` adds them today"
        )


def read_examples(artifact: Artifact, true: int, predicted: int) -> Examples:
    """Return the examples of one cell, the most confident first.

    Raises:
        NothingToSee: the model was exported without examples.
        ArtifactError: the file is damaged.
    """
    check_examples(artifact)
    arrays = recent_arrays(artifact, EXAMPLES)
    chosen = np.flatnonzero((arrays[_TRUE] == true) & (arrays[_PREDICTED] == predicted))
    height, width = artifact.manifest.image_size
    pictures = unpack_sheet(artifact, EXAMPLES, arrays[_SHEET], _COLUMNS, height)
    images = pictures.reshape(-1, height, width, 3)
    columns = (arrays[name][chosen] for name in (_INDEX, _TRUE, _PREDICTED, _CONFIDENCE))
    return Examples(images[chosen], *columns)
