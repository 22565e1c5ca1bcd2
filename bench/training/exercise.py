"""Speed and accuracy of the exercise's network in this project's loop and in the tutorial's.

Speed is measured over whole epochs, from images in memory to the last step. The loops take turns,
so that other work of the machine affects both; a ratio is that of one round. The tutorial's loop
runs in a process of its own, free of this project's settings of torch and of the C library.
Accuracy is measured on the test split after a full run on the same images.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Literal, ParamSpec, TypeVar

import click
import torch
from pydantic import Field

from bench.harness.report import UNKNOWN, Target, table, targets_table
from bench.harness.results import Spread, now
from bench.training.reference_loop import make_reference_loop
from bench.training.runs import (
    Record,
    Results,
    TrainedRun,
    in_memory,
    put_away,
    train_timed,
    with_deviation,
)
from training.data import dataset
from training.evaluate import answer_test, evaluate
from training.recipes import Recipe
from training.run.progress import SilentReporter
from training.run.train import train

P = ParamSpec("P")
T = TypeVar("T")

Loop = Literal["reference", "ours"]

TITLES: dict[Loop, str] = {"reference": "PyTorch's tutorial", "ours": "Convscope"}
WANTED_SPEEDUP = 4.0


class Round(Record):
    """Images per second of both loops, over one epoch each, one after the other."""

    reference: float
    ours: float


class Run(TrainedRun):
    """One full training by one of the loops; `test_accuracy` is 0 to 1."""

    loop: Loop
    test_accuracy: float


class ExerciseResults(Results):
    """`bench/results/training_exercise.json`."""

    rounds: list[Round] = Field(default_factory=list)
    runs: list[Run] = Field(default_factory=list)

    def of(self, loop: Loop) -> list[Run]:
        """Return the runs of a loop."""
        return [run for run in self.runs if run.loop == loop]


def measure_missing(
    found: ExerciseResults, path: Path, recipe: Recipe, source: dataset.Source, rounds: int
) -> Iterator[Round]:
    """Measure the missing rounds, write the results after each, and yield the new rounds.

    An uncounted round comes first, in which this project's loop compiles its kernels.

    Args:
        found: results so far; new rounds are added.
        path: file of the results.
        recipe: recipe of both loops.
        source: images in memory.
        rounds: wanted number of rounds.
    """
    if len(found.rounds) < rounds:
        measure_round(recipe, source, found.commit)
    while len(found.rounds) < rounds:
        one = measure_round(recipe, source, found.commit)
        found.rounds.append(one)
        found.write(path)
        yield one


def measure_round(recipe: Recipe, source: dataset.Source, commit: str) -> Round:
    """Train one epoch by each loop, both warmed up."""
    reference = _apart(_reference_rate, recipe, source.place, torch.get_num_threads())
    return Round(reference=reference, ours=_our_rate(recipe, source), commit=commit)


def _apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _reference_rate(recipe: Recipe, place: Path, threads: int) -> float:
    torch.set_num_threads(threads)
    loop = make_reference_loop(recipe, in_memory(dataset.find(place)))
    loop.train_epoch()  # the first epoch warms up, as in our loop
    started = time.perf_counter()
    loop.train_epoch()
    return round(len(loop.pictures) / (time.perf_counter() - started), 2)


def _our_rate(recipe: Recipe, source: dataset.Source) -> float:
    with TemporaryDirectory() as place:
        one_epoch = recipe.replace(epochs=1)
        last = train(one_epoch, source, Path(place), SilentReporter(), device="cpu")
    return round(last.state.history[0].images_per_second, 2)


def train_missing(
    found: ExerciseResults, path: Path, recipe: Recipe, source: dataset.Source, folder: Path
) -> Iterator[Run]:
    """Do the missing runs of both loops, write the results after each, and yield the new runs.

    Args:
        found: results so far; new runs are added.
        path: file of the results.
        recipe: recipe of the run, with its seed.
        source: images in memory.
        folder: folder for the checkpoints of our loop; the tutorial's writes none.
    """
    place = folder / f"exercise-seed{recipe.seed}-{found.commit[:12]}"
    for loop in TITLES:
        if any(run.seed == recipe.seed for run in found.of(loop)):
            continue
        click.echo(f"{TITLES[loop]}, seed {recipe.seed}, {recipe.epochs} epochs")
        if loop == "reference":
            run = train_reference(recipe, source, found.commit)
        else:
            run = train_ours(recipe, source, place, found.commit)
        found.runs.append(run)
        found.write(path)
        if loop == "ours":
            put_away(place)
        yield run


def train_reference(recipe: Recipe, source: dataset.Source, commit: str) -> Run:
    """Train by the tutorial's loop, then measure on the test split."""
    seconds, accuracy = _apart(_train_reference, recipe, source.place, torch.get_num_threads())
    return Run(
        loop="reference",
        seed=recipe.seed,
        test_accuracy=accuracy,
        seconds=round(seconds, 2),
        resumed=False,
        commit=commit,
        finished=now(),
    )


def _train_reference(recipe: Recipe, place: Path, threads: int) -> tuple[float, float]:
    """Return the training's seconds and the accuracy on the test split."""
    torch.set_num_threads(threads)
    source = in_memory(dataset.find(place))
    started = time.perf_counter()
    loop = make_reference_loop(recipe, source)
    for epoch in range(1, recipe.epochs + 1):
        loss = loop.train_epoch()
        seconds = time.perf_counter() - started
        click.echo(f"epoch {epoch}/{recipe.epochs}  loss {loss:.4f}  {seconds:,.0f} s so far")
    return seconds, answer_test(loop.predict, source).accuracy


def train_ours(recipe: Recipe, source: dataset.Source, place: Path, commit: str) -> Run:
    """Train by our loop, with checkpoints in `place`, then measure on the test split."""
    timed = train_timed(recipe, source, place)
    return Run(
        loop="ours",
        seed=recipe.seed,
        test_accuracy=evaluate(timed.last, source, torch.device("cpu")).test.accuracy,
        seconds=round(timed.seconds, 2),
        resumed=timed.resumed,
        commit=commit,
        finished=now(),
    )


def exercise_table(found: ExerciseResults) -> str:
    """Return both loops and their ratio as a Markdown table."""
    epochs = found.recipe["epochs"]
    head = ["loop", "images/s", f"{epochs} epochs, wall time in s", "test accuracy", "seeds"]
    precisions: dict[Loop, str] = {"reference": "float32", "ours": found.recipe["precision"]}
    rows = [[f"{TITLES[loop]}, {precisions[loop]}", *_row(found, loop)] for loop in TITLES]
    return table(
        head, [*rows, ["ratio", _spread(speedups(found), "{:.2f}×"), _wall_ratio(found), "", ""]]
    )


def _row(found: ExerciseResults, loop: Loop) -> list[str]:
    runs = sorted(found.of(loop), key=lambda run: run.seed)
    resumed = sum(run.resumed for run in runs)
    wall = with_deviation((run.seconds for run in runs), 0)
    return [
        _spread([getattr(one, loop) for one in found.rounds], "{:,.0f}"),
        wall + (f" ({resumed} resumed: the sum of its epochs)" if resumed else ""),
        with_deviation((run.test_accuracy for run in runs), 2, 100, "%"),
        ", ".join(str(run.seed) for run in runs) or UNKNOWN,
    ]


def _spread(values: Sequence[float], form: str) -> str:
    """Return the median, and the lowest and highest if there are several values."""
    spread = Spread.of(values)
    if spread is None:
        return UNKNOWN
    low, high = form.format(spread.low), form.format(spread.high)
    return form.format(spread.median) + (f" ({low}–{high})" if len(values) > 1 else "")


def speedups(found: ExerciseResults) -> list[float]:
    """Return the ratio of our images per second to the tutorial's, by round."""
    return [one.ours / one.reference for one in found.rounds]


def _wall_ratio(found: ExerciseResults) -> str:
    reference, ours = ([run.seconds for run in found.of(loop)] for loop in TITLES)
    return f"{mean(reference) / mean(ours):.2f}×" if reference and ours else UNKNOWN


def exercise_targets(found: ExerciseResults) -> str:
    """Return the targets and the measured figures as a Markdown table."""
    ratios = speedups(found)
    title = "training the exercise's CNN, images/s against the tutorial's loop"
    return targets_table(
        [
            Target(title, median(ratios) if ratios else None, WANTED_SPEEDUP, unit="×"),
            Target(
                "difference of their mean test accuracies", _difference(found), 1, False, " points"
            ),
        ]
    )


def _difference(found: ExerciseResults) -> float | None:
    """Return the difference of the loops' mean test accuracies in points."""
    means = [[run.test_accuracy for run in found.of(loop)] for loop in TITLES]
    return 100 * abs(mean(means[0]) - mean(means[1])) if all(means) else None
