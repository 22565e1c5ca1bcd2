"""Reports of a run's progress: a bar on a terminal, a line for each epoch elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from training.run.checkpoint import EpochFigures


class Reporter(Protocol):
    """Is told how a run goes."""

    def told(self, line: str) -> None:
        """Note a line about the run."""
        ...

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """Note the start of an epoch with this number of images; epochs count from 1."""
        ...

    def progressed(self, images: int, loss: float, accuracy: float | None) -> None:
        """Note the number of the epoch's images done so far, with their mean loss and accuracy."""
        ...

    def epoch_ended(self, figures: EpochFigures) -> None:
        """Note the end of an epoch, whose checkpoint is on disk."""
        ...


class SilentReporter:
    """Reports nothing. Of several processes, only the first reports."""

    def told(self, line: str) -> None:
        """Report nothing."""

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """Report nothing."""

    def progressed(self, images: int, loss: float, accuracy: float | None) -> None:
        """Report nothing."""

    def epoch_ended(self, figures: EpochFigures) -> None:
        """Report nothing."""


class LineReporter:
    """Prints a line for each finished epoch."""

    def __init__(self, console: Console, score: str = "") -> None:
        """Take the console, and the name of the score of held-out pictures with a space."""
        self._console = console
        self._score = score
        self._epochs = 0

    def told(self, line: str) -> None:
        """Print the line."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:  # noqa: ARG002
        """Keep the number of epochs."""
        self._epochs = epochs

    def progressed(self, images: int, loss: float, accuracy: float | None) -> None:
        """Print nothing within an epoch."""

    def epoch_ended(self, figures: EpochFigures) -> None:
        """Print the epoch's figures."""
        self.told(
            f"epoch {figures.epoch:>{len(str(self._epochs))}}/{self._epochs}  "
            f"loss {figures.loss:.4f}  {_train(figures.train_accuracy)}"
            f"held out {self._score}{_percent(figures.heldout_accuracy)}  "
            f"{figures.images_per_second:,.0f} images/s  {figures.seconds:.1f} s"
        )


class BarReporter:
    """Shows a bar for the whole run, and above it a line for each finished epoch."""

    def __init__(self, progress: Progress, score: str = "") -> None:
        """Take the bar, and the name of the score as `LineReporter` does."""
        self._progress = progress
        self._score = score
        self._lines = LineReporter(progress.console, score)
        self._task = progress.add_task(
            "", total=None, epoch="", loss="", train="", heldout="", rate=""
        )
        self._before = 0
        self._started = 0.0

    def told(self, line: str) -> None:
        """Print the line above the bar."""
        self._lines.told(line)

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """Move the bar to the start of the epoch."""
        self._lines.epoch_started(epoch, epochs, images)
        self._before, self._started = (epoch - 1) * images, time.perf_counter()
        if epoch > 1 and self._progress.tasks[0].total is None:
            # Resumed: images of an earlier process say nothing about the speed.
            self._progress.reset(self._task, total=epochs * images, completed=self._before)
        self._progress.update(
            self._task,
            total=epochs * images,
            completed=self._before,
            epoch=f"epoch {epoch}/{epochs}",
        )

    def progressed(self, images: int, loss: float, accuracy: float | None) -> None:
        """Move the bar within the epoch."""
        rate = images / (time.perf_counter() - self._started)
        self._progress.update(
            self._task,
            completed=self._before + images,
            loss=f"loss {loss:.3f}",
            train=_train(accuracy),
            rate=f"{rate:,.0f} images/s",
        )

    def epoch_ended(self, figures: EpochFigures) -> None:
        """Print the epoch's figures above the bar."""
        self._lines.epoch_ended(figures)
        heldout = _percent(figures.heldout_accuracy)
        self._progress.update(self._task, heldout=f"held out {self._score}{heldout}  ")


@contextmanager
def watch(console: Console, score: str = "") -> Iterator[Reporter]:
    """Give a reporter that suits the console, for one run.

    Args:
        console: a terminal or not.
        score: the name of the score of held-out pictures, with a space after it; without one, it
            is that of the training images.
    """
    if not console.is_terminal:
        yield LineReporter(console, score)
        return
    columns = (
        TextColumn("{task.fields[epoch]}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn(
            "{task.fields[loss]}  {task.fields[train]}{task.fields[heldout]}{task.fields[rate]}"
        ),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        yield BarReporter(progress, score)


def _train(accuracy: float | None) -> str:
    """Return the column of the accuracy on training images; detectors have none."""
    return "" if accuracy is None else f"train {accuracy:.2%}  "


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.2%}"
