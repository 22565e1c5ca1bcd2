"""Timed runs of training, and the JSON file that each benchmark writes after every part.

A benchmark continues a file that holds some parts, so hours of training survive a stop. It refuses
a file of another recipe, other data or another machine.
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
_MEASURED = (
    "app",
    "training",
    "bench",
    ":!bench/results",
)  # the results change while they are written


class Record(BaseModel):
    """A part of the results; `commit` is the commit of the measured code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    commit: str


class TrainedRun(Record):
    """One training run.

    Attributes:
        seed: seed of the recipe.
        seconds: time from decoded images in memory to the last weights; the sum of the epochs if
            the run was stopped and resumed.
        resumed: whether the run was stopped and resumed.
        finished: time of day in UTC.
    """

    seed: int
    seconds: float
    resumed: bool
    finished: str


class Results(BaseModel):
    """Fields that all results share: their subject and their conditions.

    Attributes:
        recipe: fields of the recipe, without the seed; `auto` precision is resolved.
        data_sha256: hash of the data set.
        machine: processor, cores and memory.
        versions: versions of Python and of the packages that compute.
        threads: threads of torch.
        commit: commit of the code at the start of the newest command.
        started: time of day in UTC at the start of the first command.
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
        """Return the results in the file, or empty results if there is no file.

        Raises:
            RunError: the file cannot be read, or its results have another subject.
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
        """Return the conditions of these parts as a sentence."""
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        commits = sorted({part.commit or "unknown" for part in parts})
        return (
            f"{self.machine['processor']}, {self.machine['cores']} cores, {self.threads} threads; "
            f"{packages}; commit {', '.join(commits) or '–'}, "
            f"{self.started[:10]}. `make bench-training` makes these figures."
        )


def with_deviation(values: Iterable[float], digits: int, factor: float = 1, unit: str = "") -> str:
    """Return `mean ± standard deviation` of a sample; one value alone; a dash without values."""
    known = [value * factor for value in values]
    if not known:
        return UNKNOWN
    spread = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{mean(known):,.{digits}f}{spread}{unit}"


@dataclass(frozen=True)
class Timed:
    """A finished run; `seconds` and `resumed` are those of `TrainedRun`."""

    last: Checkpoint
    seconds: float
    resumed: bool


def train_timed(recipe: Recipe, source: dataset.Source, run: Path) -> Timed:
    """Train on the processor, starting from the newest checkpoint in `run` if there is one.

    Args:
        recipe: recipe of the run.
        source: data set; its images should be in memory, since reading them is timed.
        run: folder for the checkpoints.
    """
    resumed = checkpoint.newest(run) is not None
    reporter = LineReporter(Console(width=120))
    started = time.perf_counter()
    last = train(recipe, source, run, reporter, device="cpu", resume=True)
    seconds = time.perf_counter() - started
    return Timed(last, last.state.training_seconds if resumed else seconds, resumed)


def put_away(run: Path) -> None:
    """Rename the folder of a run whose results are written, so that no later run resumes it."""
    done = run.with_name(f"{run.name}-finished")
    shutil.rmtree(done, ignore_errors=True)
    run.rename(done)


def in_memory(source: dataset.Source) -> dataset.Source:
    """Return the data set with its training images read and decoded."""
    train_split = source.load_train()
    return replace(source, load_train=lambda: train_split)
