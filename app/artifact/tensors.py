"""A graph's tensors: a batch of images in, what it says of them out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROBABILITIES = "probabilities"
OOD_SCORE = "ood_score"
DEPTH = "depth"
BOXES, SCORES, LABELS = "boxes", "scores", "labels"

Images = NDArray[np.uint8]
"""A batch of images, uint8 `[N,H,W,3]`, RGB."""

Probabilities = NDArray[np.float32]
"""Class probabilities, float32: `[N,classes]`, or a segmenter's `[N,classes+1,H,W]`. The classes of
an image or of a pixel sum to one."""


def overlaps(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the overlap (IoU) of boxes `[n,4]` with others `[K,4]`, float64 `[n,K]`.

    Boxes are left, upper, right, lower.
    """
    low = np.maximum(boxes[:, None, :2], others[:, :2]).astype(np.float64)
    high = np.minimum(boxes[:, None, 2:], others[:, 2:]).astype(np.float64)
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = _areas(boxes)[:, None] + _areas(others)
    overlap: NDArray[np.float64] = shared / np.maximum(areas - shared, 1e-9)
    return overlap


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    areas: NDArray[np.float32] = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return areas


@dataclass(frozen=True, slots=True)
class Outputs:
    """A graph's outputs for a batch.

    Attributes:
        arrays: by the names that the manifest has for them; the batch is their first dimension.
    """

    arrays: Mapping[str, NDArray[Any]]

    @property
    def probabilities(self) -> Probabilities:
        """A classifier's, float32 `[N,classes]`; a segmenter's, `[N,classes+1,H,W]`."""
        return self.arrays[PROBABILITIES]

    @property
    def ood_scores(self) -> NDArray[np.float32] | None:
        """How unlike the training images each image is, float32 `[N]`, if the classifier tells."""
        return self.arrays.get(OOD_SCORE)

    @property
    def are_finite(self) -> bool:
        """Whether all values are numbers."""
        return all(bool(np.isfinite(array).all()) for array in self.arrays.values())

    def __len__(self) -> int:
        """Return the number of images."""
        return len(next(iter(self.arrays.values())))

    def part(self, start: int, images: int) -> "Outputs":
        """Return the outputs for `images` images of the batch, from the one at `start`."""
        chosen = slice(start, start + images)
        return Outputs({name: array[chosen] for name, array in self.arrays.items()})

    @classmethod
    def of_classes(
        cls, probabilities: Probabilities, ood_scores: NDArray[np.float32] | None = None
    ) -> "Outputs":
        """Return the outputs of a classifier."""
        scores = {} if ood_scores is None else {OOD_SCORE: ood_scores}
        return cls({PROBABILITIES: probabilities, **scores})

    @classmethod
    def in_batches(
        cls, predict: "Callable[[Images], Outputs]", images: Images, size: int
    ) -> "Outputs":
        """Return the outputs of `predict` for any number of images, computed `size` at a time."""
        starts = range(0, len(images), size)
        return cls.join([predict(images[start : start + size]) for start in starts])

    @classmethod
    def join(cls, parts: "Sequence[Outputs]") -> "Outputs":
        """Return the outputs of several batches of one graph, in their order."""
        names = parts[0].arrays
        return cls({name: np.concatenate([part.arrays[name] for part in parts]) for name in names})
