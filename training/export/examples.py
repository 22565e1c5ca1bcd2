"""The test images behind each cell of a confusion matrix, as an artifact keeps them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.artifact.files import EXAMPLE_COLUMNS, EXAMPLE_SHEET
from app.artifact.tensors import Images, Probabilities
from training.export.sheets import webp

MOST_IN_A_CELL = 24
MOST_ROWS = 511  # of 32 pixels: a WebP picture has at most 16,383
MOST_SHEET_BYTES = 1_900_000


def examples(
    images: Images, labels: NDArray[np.int64], probabilities: Probabilities
) -> dict[str, NDArray[Any]]:
    """Return the arrays of `examples.npz`: the surest predictions of each cell, as many as fit.

    Args:
        images: the test split, uint8 `[N,H,W,3]`.
        labels: their true classes, int64 `[N]`.
        probabilities: what is predicted, `[N,classes]`.
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    order = np.lexsort((-confidence, predicted, labels))
    cells = labels[order] * probabilities.shape[1] + predicted[order]
    starts = np.searchsorted(cells, cells)  # where the cell of each begins
    places = np.arange(len(order)) - starts
    fitting = np.argsort(places, kind="stable")[: MOST_ROWS * EXAMPLE_COLUMNS]
    chosen = order[np.sort(fitting[places[fitting] < MOST_IN_A_CELL])]
    return {
        EXAMPLE_SHEET: webp(_sheet(images[chosen]), MOST_SHEET_BYTES),
        "index": chosen.astype(np.int32),
        "true": labels[chosen].astype(np.int32),
        "predicted": predicted[chosen].astype(np.int32),
        "confidence": confidence[chosen].astype(np.float32),
    }


def _sheet(images: Images) -> NDArray[np.uint8]:
    count, height, width, _ = images.shape
    rows = -(-count // EXAMPLE_COLUMNS)
    places = np.zeros((rows * EXAMPLE_COLUMNS, height, width, 3), np.uint8)
    places[:count] = images
    grid = places.reshape(rows, EXAMPLE_COLUMNS, height, width, 3).swapaxes(1, 2)
    return grid.reshape(rows * height, EXAMPLE_COLUMNS * width, 3)
