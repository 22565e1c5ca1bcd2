"""What the benchmarks of training found: a JSON file each, written whole after every part.

A file that holds parts already is gone on with, so that hours of training survive being stopped;
one of another recipe, other data or another machine is refused.
"""

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console

from bench.harness.report import UNKNOWN
from bench.harness.results import commit, machine, now, versions
from training.data import dataset
from training.errors import RecipeError, RunError
from training.recipes import Recipe
from training.run import checkpoint, durable
from training.run.checkpoint import Checkpoint
from training.run.hardware import resolve_precision
from training.run.progress import LineReporter
from training.run.train import train

_PACKAGES = ("numba", "numpy", "pillow", "torch", "torchvision")
_MEASURED = ("app", "training", "bench", ":!bench/results")  # which change as they are written


class Record(BaseModel):
    """A part of the results; `commit` is that of the code that was measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    commit: str


class TrainedRun(Record):
    """One training run, whatever was measured of it.

    Attributes:
        seed: of the recipe.
        seconds: from decoded images in memory to the last weights; of a run that was stopped and
            resumed, the sum of its epochs.
        resumed: whether it was.
        finished: the time of day in UTC.
    """

    seed: int
    seconds: float
    resumed: bool
    finished: str


class Results(BaseModel):
    """What all results hold: what they are of, and what they depend on.

    Attributes:
        recipe: its fields, without the seed; the precision is the one that this processor has.
        data_sha256: of the data set.
        machine: processor, cores and memory.
        versions: of Python and the packages that compute.
        threads: of torch.
        commit: of the code, when the newest command started.
        started: the time of day in UTC, of the first command.
    """

    model_config = ConfigDict(extra="forbid")

    recipe: dict[str, Any]
    data_sha256: str
    machine: dict[str, Any]
    versions: dict[str, str]
    threads: int
    commit: str
    started: str

    @classmethod
    def open(cls, path: Path, recipe: Recipe, source: dataset.Source) -> Self:
        """Return what the file holds, or empty results if there is none.

        Raises:
            RunError: the file holds results of something else, or cannot be read.
        """
        fields = recipe.model_dump()
        fields["precision"] = resolve_precision(recipe.precision, torch.device("cpu"))
        del fields["seed"]
        new = cls(
            recipe=fields,
            data_sha256=source.sha256,
            machine=machine(),
            versions=versions(_PACKAGES),
            threads=torch.get_num_threads(),
            commit=commit(*_MEASURED),
            started=now(),
        )
        try:
            old = cls.model_validate_json(path.read_bytes())
            Recipe.model_validate(old.recipe)
        except FileNotFoundError:
            return new
        except (OSError, ValidationError, RecipeError) as exc:
            raise RunError(f"{path}: not the results of a run: {exc}") from exc
        if differing := [name for name, same in old._compared(new).items() if not same]:
            raise RunError(
                f"{path}: holds results of another {', '.join(differing)}; "
                "remove it to measure anew, or name another place with --out"
            )
        old.commit, old.versions = new.commit, new.versions
        return old

    def _compared(self, other: "Results") -> dict[str, bool]:
        return {
            "recipe": Recipe.model_validate(self.recipe) == Recipe.model_validate(other.recipe),
            "data set": self.data_sha256 == other.data_sha256,
            "processor": self.machine["processor"] == other.machine["processor"],
            "set of versions": self.versions.items() <= other.versions.items(),
            "number of threads": self.threads == other.threads,
        }

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(path, self.model_dump_json(indent=1) + "\n")

    def conditions(self, parts: Iterable[Record]) -> str:
        """Return what the figures of these parts hold for."""
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        commits = sorted({part.commit or "unknown" for part in parts})
        return (
            f"{self.machine['processor']}, {self.machine['cores']} cores, {self.threads} threads; "
            f"{packages}; commit {', '.join(commits) or '–'}, "
            f"{self.started[:10]}. `make bench-training` makes these figures."
        )


def with_deviation(values: Iterable[float], digits: int, factor: float = 1, unit: str = "") -> str:
    """Return `mean ± deviation` (of a sample), a single value as it is, none as a dash."""
    known = [value * factor for value in values]
    if not known:
        return UNKNOWN
    spread = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{mean(known):,.{digits}f}{spread}{unit}"


@dataclass(frozen=True)
class Timed:
    """A finished run; `seconds` and `resumed` as in `TrainedRun`."""

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
