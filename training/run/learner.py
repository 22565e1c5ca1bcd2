"""A network with its optimizer: one step on one batch, and the choice of a batch's hard images.

Knows nothing of epochs, of files or of where the images come from.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from training.data import dataset
from training.kernels.weight_gradients import NineProducts
from training.recipes import Recipe
from training.run.hardware import has_amx
from training.run.optimization import set_learning_rate


@dataclass(frozen=True)
class Batch:
    """Normalised images `[N,3,H,W]` and labels int64 `[N]`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Batch":
        images = self.images[index].contiguous(memory_format=torch.channels_last)
        return Batch(images, self.labels[index])

    def parts(self, count: int) -> Iterator["Batch"]:
        """Yield the batch in so many parts of the same size, but for one image."""
        parts = (self.images.tensor_split(count), self.labels.tensor_split(count))
        for images, labels in zip(*parts, strict=True):
            yield Batch(images, labels)


@dataclass(frozen=True)
class Learner:
    """What learns. The loss is always float32, the network's arithmetic as the recipe says.

    Attributes:
        recipe: of the run.
        network: the weights.
        averaging: the network, or what wraps it to average gradients with other processes.
        optimizer: of the weights.
    """

    recipe: Recipe
    network: nn.Module
    averaging: nn.Module
    optimizer: torch.optim.Optimizer

    def learn(
        self, batch: Batch, rate: float, weight: float = 1.0, largest: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Take a step; return the batch's mean loss and how many it had right, detached.

        Args:
            batch: to learn from.
            rate: part of the peak learning rate.
            weight: of the batch's mean loss, where it is a process's share of a larger batch.
            largest: images in the largest share, where there are several: all processes must
                average gradients equally often.
        """
        total = torch.zeros((), device=batch.images.device)
        correct = torch.zeros((), dtype=torch.int64, device=batch.images.device)
        self._start_step(rate)
        largest = max(largest, len(batch))
        for part in batch.parts(math.ceil(largest / (self.recipe.micro_batch or largest))):
            logits = self._logits(part)
            loss = self._losses(logits, part).sum() / len(batch)
            (loss * weight).backward()
            total += loss.detach()
            correct += (logits.argmax(1) == part.labels).sum()
        self.optimizer.step()
        return total, correct

    def learn_hardest(self, batch: Batch, count: int, rate: float, weight: float = 1.0) -> Tensor:
        """Take a step on the images with the highest loss; return their places, int64 `[count]`."""
        losses = self._losses(self._logits(batch), batch)
        hardest = losses.detach().topk(min(count, len(batch)), sorted=False).indices
        self._start_step(rate)
        (losses[hardest].mean() * weight).backward()
        self.optimizer.step()
        return hardest

    def _logits(self, batch: Batch) -> Tensor:
        bfloat16 = self.recipe.precision == "bfloat16"
        kind = batch.images.device.type
        deep = NineProducts() if bfloat16 and kind == "cpu" and has_amx() else nullcontext()
        with torch.autocast(kind, torch.bfloat16, enabled=bfloat16), deep:
            logits: Tensor = self.averaging(batch.images)
        return logits.float()

    def _losses(self, logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(
            logits,
            batch.labels,
            label_smoothing=self.recipe.label_smoothing,
            reduction="none",
        )

    def _start_step(self, rate: float) -> None:
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)


def normalize(batch: dataset.Split, mean: list[float], deviation: list[float]) -> Batch:
    """Return the batch as a network takes it."""
    return Batch(dataset.normalize(batch.images, mean, deviation), batch.labels)
