"""The lessons of a run: its images, the answers to learn and the held-out score.

The loop knows a task only by these. `image_lessons` has those of classifiers, `scene_lessons` those
of detectors and segmenters.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from training.data.augmentation import Epoch


class Rows(Protocol):
    """Something with a row for each image."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: Tensor, /) -> Self:
        """Return the rows of some images."""
        ...


@dataclass(frozen=True)
class Batch:
    """Images to learn from.

    Attributes:
        images: normalised, float32 `[N,3,H,W]`.
        targets: the answers to learn, as the task's loss takes them.
    """

    images: Tensor
    targets: Any

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> "Batch":
        images = self.images[index].contiguous(memory_format=torch.channels_last)
        return Batch(images, self.targets[index])

    def parts(self, count: int) -> Iterator["Batch"]:
        """Yield the batch in parts of about equal size."""
        start = 0
        for images in self.images.tensor_split(count):
            index = torch.arange(start, start + len(images), device=images.device)
            yield Batch(images, self.targets[index])
            start += len(images)


class Lesson(Protocol):
    """What a network's outputs should be."""

    def losses(self, outputs: Any, targets: Any, label_smoothing: float) -> Tensor:
        """Return each image's loss, `[N]`."""
        ...

    @property
    def count_correct(self) -> Callable[[Any, Any], Tensor] | None:
        """Counts the images whose outputs agree with their targets, `[]`.

        None if an answer for an image is not either right or wrong.
        """
        ...


class Lessons(Protocol):
    """All that a run learns from, and is measured by."""

    @property
    def lesson(self) -> Lesson:
        """Of the run's task."""
        ...

    @property
    def mean(self) -> list[float]:
        """Of each channel of the images to learn from, 0 to 1."""
        ...

    @property
    def deviation(self) -> list[float]:
        """Likewise."""
        ...

    @property
    def outputs(self) -> int:
        """The number of classes or channels that the network is built for."""
        ...

    def __len__(self) -> int:
        """Return the number of images to learn from."""
        ...

    def some_images(self) -> Tensor:
        """Return some images, normalised, to take initial weights from."""
        ...

    def drafts(self, epoch: Epoch, size: int) -> Iterator[Rows]:
        """Yield every image once, in batches of a size; the last one may be smaller."""
        ...

    def prepare(self, draft: Any) -> Batch:
        """Return a draft's images as the network takes them."""
        ...

    def measure(self, network: nn.Module, epoch: int) -> float | None:
        """Return the held-out score; None without held-out images, or if it is not its turn."""
        ...
