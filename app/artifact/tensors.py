"""A graph's tensors: a batch of images in, probabilities and scores out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
"""A batch of images, uint8 `[N,H,W,3]`, RGB."""

Probabilities = NDArray[np.float32]
"""Class probabilities, float32 `[N,classes]`; each row sums to one."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """A graph's outputs for a batch.

    Attributes:
        probabilities: float32 `[N,classes]`.
        ood_scores: how unlike the training images each image is, float32 `[N]`; None from a graph
            that was exported without them.
    """

    probabilities: Probabilities
    ood_scores: NDArray[np.float32] | None = None

    def part(self, start: int, images: int) -> "Outputs":
        """Return the outputs for `images` images of the batch, from the one at `start`."""
        chosen = slice(start, start + images)
        scores = None if self.ood_scores is None else self.ood_scores[chosen]
        return Outputs(self.probabilities[chosen], scores)

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
        scores = [part.ood_scores for part in parts if part.ood_scores is not None]
        probabilities = np.concatenate([part.probabilities for part in parts])
        return cls(probabilities, np.concatenate(scores) if scores else None)
