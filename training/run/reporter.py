"""Who is told how a run goes."""

from typing import Protocol

from training.run.checkpoint import EpochFigures


class Reporter(Protocol):
    """Is told how a run goes; `training.run.progress` shows it."""

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """An epoch of so many images starts; the first is 1."""
        ...

    def progressed(self, images: int, loss: float, accuracy: float) -> None:
        """So many images of the epoch are done, with this mean loss and accuracy (0 to 1)."""
        ...

    def epoch_ended(self, figures: EpochFigures) -> None:
        """The epoch is done and its checkpoint is on disk."""
        ...


class SilentReporter:
    """Says nothing: of several processes only the first reports."""

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """Say nothing."""

    def progressed(self, images: int, loss: float, accuracy: float) -> None:
        """Say nothing."""

    def epoch_ended(self, figures: EpochFigures) -> None:
        """Say nothing."""
