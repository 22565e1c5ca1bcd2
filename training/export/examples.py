"""Choosing the test images that an artifact keeps for each cell of its confusion matrix."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.artifact.examples import Examples, most_examples, pack_examples
from app.artifact.tensors import Images, Probabilities

MOST_IN_A_CELL = 24
MOST_SHEET_BYTES = 1_900_000


def examples(
    images: Images, labels: NDArray[np.int64], probabilities: Probabilities
) -> dict[str, NDArray[Any]]:
    """Return the arrays of `examples.npz`: each cell's most confident predictions that fit.

    Args:
        images: the test split, uint8 `[N,H,W,3]`.
        labels: their true classes, int64 `[N]`.
        probabilities: the predictions, `[N,classes]`.
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    order = np.lexsort((-confidence, predicted, labels))
    cells = labels[order] * probabilities.shape[1] + predicted[order]
    starts = np.searchsorted(cells, cells)  # where the cell of each begins
    places = np.arange(len(order)) - starts
    fitting = np.argsort(places, kind="stable")[: most_examples(images.shape[1])]
    chosen = order[np.sort(fitting[places[fitting] < MOST_IN_A_CELL])]
    kept = Examples(
        images[chosen],
        chosen.astype(np.int32),
        labels[chosen].astype(np.int32),
        predicted[chosen].astype(np.int32),
        confidence[chosen].astype(np.float32),
    )
    return pack_examples(kept, MOST_SHEET_BYTES)
