"""Speed and accuracy of training: `python -m bench.training exercise` or `speednet`.

Each command prints tables and writes a file in `bench/results` after every finished part. It does
not measure again the parts that the file holds, so a stopped command can be started again. The
text between `<!-- bench:exercise -->` or `<!-- bench:speednet -->` and the closing marker in
`docs/training.md` is replaced, unless the results go elsewhere. CIFAR-10 is found as by
`convscope-train`.
"""

from pathlib import Path

import click
import torch

from app.commands import OneLineErrors
from bench import BUILD, RESULTS, ROOT
from bench.harness.report import fill
from bench.training import exercise as exercise_bench
from bench.training import speednet as speednet_bench
from bench.training.exercise import ExerciseResults, exercise_table, exercise_targets
from bench.training.runs import in_memory
from bench.training.speednet import (
    SpeednetResults,
    everything_timed,
    speednet_table,
    speednet_targets,
)
from training.data import dataset
from training.errors import TrainingError
from training.recipes import find_recipe

RUNS = BUILD / "training"
EXERCISE_OUT = RESULTS / "training_exercise.json"
SPEEDNET_OUT = RESULTS / "training_speednet.json"
DOCUMENTS = (ROOT / "docs" / "training.md",)
THREADS = 2


def _read_seeds(_context: click.Context, _option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0,1,2") from None


seeds_option = click.option(
    "--seeds", default="0,1,2", show_default=True, callback=_read_seeds, help="One run for each."
)


@click.group(cls=OneLineErrors, errors=TrainingError)
def main() -> None:
    """Measure training."""
    torch.set_num_threads(THREADS)


@main.command()
@click.option(
    "--rounds",
    default=5,
    show_default=True,
    type=click.IntRange(0),
    help="Of one epoch by each loop.",
)
@click.option("--accuracy/--no-accuracy", default=True, show_default=True, help="Train fully.")
@seeds_option
@click.option("--out", default=EXERCISE_OUT, type=click.Path(path_type=Path))
def exercise(rounds: int, seeds: tuple[int, ...], out: Path, *, accuracy: bool) -> None:
    """Train the exercise's CNN in this project's loop and in that of PyTorch's tutorial."""
    recipe, source = find_recipe("simple-cnn"), in_memory(dataset.find(None))
    found = ExerciseResults.open(out, recipe, source)
    for one in exercise_bench.measure_missing(found, out, recipe, source, rounds):
        click.echo(f"{one.reference:,.0f} and {one.ours:,.0f} images/s")
    for seed in seeds if accuracy else ():
        seeded = recipe.replace(seed=seed)
        for run in exercise_bench.train_missing(found, out, seeded, source, RUNS):
            click.echo(f"test accuracy {run.test_accuracy:.2%} after {run.seconds:,.0f} s")
    parts = [
        exercise_table(found),
        exercise_targets(found),
        found.conditions([*found.rounds, *found.runs]),
    ]
    _report("exercise", parts, publish=out == EXERCISE_OUT)


@main.command()
@seeds_option
@click.option("--out", default=SPEEDNET_OUT, type=click.Path(path_type=Path))
def speednet(seeds: tuple[int, ...], out: Path) -> None:
    """Train the recipe speednet on all training images; compare with the machine's own speed."""
    recipe, source = everything_timed(find_recipe("speednet")), in_memory(dataset.find(None))
    found = SpeednetResults.open(out, recipe, source)
    for seed in seeds:
        seeded = recipe.replace(seed=seed)
        if run := speednet_bench.train_missing(found, out, seeded, source, RUNS):
            click.echo(f"{run.seconds:.1f} s, {run.share:.3f} of the convolution's rate")
    parts = [speednet_table(found), speednet_targets(found), found.conditions(found.runs)]
    _report("speednet", parts, publish=out == SPEEDNET_OUT)


def _report(name: str, parts: list[str], *, publish: bool) -> None:
    """Print the tables; with `publish`, also put them into the documents with the markers."""
    content = "\n\n".join(parts)
    click.echo(f"\n{content}")
    for document in DOCUMENTS if publish else ():
        fill(document, content, name)
