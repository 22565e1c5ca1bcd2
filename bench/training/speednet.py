"""`speednet` from images in memory to final weights: seconds, arithmetic, accuracy.

The machine's own speed is that of a bfloat16 convolution like those of the network, measured before
and after each run; a run's speed is given as a part of the faster one. Accuracy is measured on the
test split after the training, for each number of views.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import get_args

import click
import torch
from pydantic import Field
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from app.artifact.manifest import Views
from bench.harness.report import Target, table, targets_table
from bench.harness.results import now
from bench.training.runs import Results, TrainedRun, put_away, train_timed, with_deviation
from training.architectures.describe import Description, describe
from training.data import dataset
from training.evaluate import evaluate
from training.recipes import Recipe

VIEWS: tuple[Views, ...] = get_args(Views)
CHANNELS, SIZE, KERNEL = 256, 16, 3
BATCH = 256
WARM_UPS, PASSES = 2, 6

MOST_PFLOP = 0.30
WANTED_SHARE = 0.60
WANTED_ACCURACY = 94.0


class Run(TrainedRun):
    """One run of the recipe.

    Attributes:
        flop: floating-point operations of the training, a step counted as three forward passes.
        executed_flop: the same without the operations that a step omits: the gradients of the
            frozen layer's weights and of its output.
        convolution_flops: FLOP per second of the machine's convolution, before and after.
        test_accuracy: test accuracy, 0 to 1, by number of views.
    """

    flop: float
    executed_flop: float
    convolution_flops: tuple[float, float]
    test_accuracy: dict[int, float]

    @property
    def share(self) -> float:
        """FLOP per second, as a part of the machine's convolution."""
        return self.flop / self.seconds / max(self.convolution_flops)

    @property
    def executed_share(self) -> float:
        """Executed FLOP per second, as a part of the machine's convolution."""
        return self.executed_flop / self.seconds / max(self.convolution_flops)


class SpeednetResults(Results):
    """`bench/results/training_speednet.json`."""

    runs: list[Run] = Field(default_factory=list)


@torch.no_grad()
def convolution_flops() -> float:
    """Return the FLOP per second of a forward 3×3 convolution 256→256 in bfloat16, best of six."""
    torch.use_deterministic_algorithms(False)  # a training leaves it on
    layout = torch.channels_last
    images = torch.randn(BATCH, CHANNELS, SIZE, SIZE).to(memory_format=layout).bfloat16()
    weights = torch.randn(CHANNELS, CHANNELS, KERNEL, KERNEL).to(memory_format=layout).bfloat16()
    seconds = []
    for _ in range(WARM_UPS + PASSES):
        started = time.perf_counter()
        F.conv2d(images, weights, padding=1)
        seconds.append(time.perf_counter() - started)
    flop = 2 * KERNEL**2 * CHANNELS**2 * BATCH * SIZE**2
    return flop / min(seconds[WARM_UPS:])


def training_flop(recipe: Recipe, images: int, classes: int) -> float:
    """Return the floating-point operations of a training.

    A multiply-accumulate is two, and a step costs three forward passes.

    Args:
        recipe: recipe of the run; a proxy's cost is not counted.
        images: number of images per epoch.
        classes: number of classes.
    """
    return sum(
        6.0 * description.macs * images * epochs
        for description, epochs in _descriptions(recipe, classes)
    )


def executed_flop(recipe: Recipe, images: int, classes: int) -> float:
    """Return the executed operations of a training; arguments as of `training_flop`.

    The whitening layer is not trained, so two of its three passes are omitted, and the gradient of
    the input of the first block's first convolution.
    """
    executed = 0.0
    for description, epochs in _descriptions(recipe, classes):
        macs = {layer.name: layer.macs for layer in description.layers}
        left_out = 2 * macs["whiten"] + macs["block1.first.conv"]
        executed += (6.0 * description.macs - 2.0 * left_out) * images * epochs
    return executed


def _descriptions(recipe: Recipe, classes: int) -> Iterator[tuple[Description, int]]:
    """Yield the network's description for each size of images, and the number of its epochs."""
    sizes = {dataset.IMAGE_SIZE: recipe.epochs - recipe.cropped_epochs}
    if recipe.crop:
        sizes[recipe.crop, recipe.crop] = recipe.cropped_epochs
    for size, epochs in sizes.items():
        yield describe(recipe.architecture, classes, size), epochs


def train_missing(
    found: SpeednetResults, path: Path, recipe: Recipe, source: dataset.Source, folder: Path
) -> Run | None:
    """Train and measure, write the results and return the new run; None if it is there already.

    Args:
        found: results so far; the new run is added.
        path: file of the results.
        recipe: recipe of the run, with its seed.
        source: images in memory.
        folder: folder for the checkpoints.
    """
    if any(run.seed == recipe.seed for run in found.runs):
        return None
    click.echo(f"speednet, seed {recipe.seed}, {recipe.epochs} epochs")
    place = folder / f"speednet-seed{recipe.seed}-{found.commit[:12]}"
    run = measure(recipe, source, place, found.commit)
    found.runs.append(run)
    found.write(path)
    put_away(place)
    return run


def measure(recipe: Recipe, source: dataset.Source, place: Path, commit: str) -> Run:
    """Train between two measurements of the machine, then measure on the test split.

    Args:
        recipe: recipe of the run, with its seed.
        source: images in memory.
        place: folder for the checkpoints.
        commit: commit of the code.
    """
    before = convolution_flops()
    timed = train_timed(recipe, source, place)
    after = convolution_flops()
    images = source.load_train()
    trained_on, _ = dataset.split_distinct(images, recipe.holdout, recipe.split_seed)
    accuracy: dict[int, float] = {
        views: evaluate(timed.last, source, torch.device("cpu"), views).test.accuracy
        for views in VIEWS
    }
    return Run(
        seed=recipe.seed,
        flop=training_flop(recipe, len(trained_on), len(source.classes)),
        executed_flop=executed_flop(recipe, len(trained_on), len(source.classes)),
        convolution_flops=(before, after),
        test_accuracy=accuracy,
        seconds=round(timed.seconds, 2),
        resumed=timed.resumed,
        commit=commit,
        finished=now(),
    )


def everything_timed(recipe: Recipe) -> Recipe:
    """Return the recipe with all training images, none held out."""
    return recipe.replace(holdout=0.0)


def speednet_table(found: SpeednetResults) -> str:
    """Return a Markdown table: a row per seed, then mean and deviation."""
    head = [
        "seed",
        "seconds",
        "TFLOP/s",
        "of the convolution's",
        "executed alone",
        *(f"test accuracy, {views} view{'s' * (views > 1)}" for views in VIEWS),
    ]
    runs = sorted(found.runs, key=lambda run: run.seed)
    rows = [[f"{run.seed}{', resumed' * run.resumed}", *_figures([run])] for run in runs]
    if len(runs) > 1:
        rows.append(["mean ± deviation", *_figures(runs)])
    return table(head, rows) + _about_resumed(runs)


def _figures(runs: list[Run]) -> list[str]:
    return [
        with_deviation((run.seconds for run in runs), 1),
        with_deviation((run.flop / run.seconds for run in runs), 3, 1e-12),
        with_deviation((run.share for run in runs), 3),
        with_deviation((run.executed_share for run in runs), 3),
        *(
            with_deviation((run.test_accuracy[views] for run in runs), 2, 100, "%")
            for views in VIEWS
        ),
    ]


def _about_resumed(runs: list[Run]) -> str:
    if not any(run.resumed for run in runs):
        return ""
    return "\n\nThe seconds of a run that was stopped and resumed are the sum of its epochs."


def speednet_targets(found: SpeednetResults) -> str:
    """Return the targets and the means over the seeds as a Markdown table."""
    runs = found.runs
    pflop = mean(run.flop for run in runs) / 1e15 if runs else None
    share = mean(run.share for run in runs) if runs else None
    accuracy = 100 * mean(run.test_accuracy[6] for run in runs) if runs else None
    return targets_table(
        [
            Target("speednet, arithmetic of a training", pflop, MOST_PFLOP, False, " PFLOP"),
            Target("speednet, FLOP/s of the machine's convolution", share, WANTED_SHARE),
            Target("speednet, test accuracy with six views", accuracy, WANTED_ACCURACY, unit="%"),
        ]
    )
