"""One run of our own loop with a clock around all of it, that may be stopped and gone on with."""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from training.data import dataset
from training.recipes import Recipe
from training.run import checkpoint
from training.run.checkpoint import Checkpoint
from training.run.progress import LineReporter
from training.run.train import train


@dataclass(frozen=True)
class Timed:
    """A finished run; `seconds` and `resumed` as in `training_results.TrainedRun`."""

    last: Checkpoint
    seconds: float
    resumed: bool


def train_timed(recipe: Recipe, source: dataset.Source, run: Path) -> Timed:
    """Train on the processor, from the newest checkpoint in `run` if there is one.

    Args:
        recipe: every number of the run.
        source: its training images should be in memory: reading them would be timed.
        run: where the checkpoints go.
    """
    resumed = checkpoint.newest(run) is not None
    reporter = LineReporter(Console(width=120))
    started = time.perf_counter()
    last = train(recipe, source, run, reporter, device="cpu", resume=True)
    seconds = time.perf_counter() - started
    return Timed(last, last.state.training_seconds if resumed else seconds, resumed)


def put_away(run: Path) -> None:
    """Rename the folder of a run whose results are written, so that no later one resumes it."""
    done = run.with_name(f"{run.name}-finished")
    shutil.rmtree(done, ignore_errors=True)
    run.rename(done)


def in_memory(source: dataset.Source) -> dataset.Source:
    """Return the same data set with its training images read and decoded."""
    train_split = source.load_train()
    return replace(source, load_train=lambda: train_split)
