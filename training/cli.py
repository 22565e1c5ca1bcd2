"""`convscope-train`: data, train, evaluate, export, compare, corruptions, describe.

Reads arguments and prints. Every error of `training.errors` ends with exit code 1, as one line or,
if a folder of pictures has several faults, with a line for each.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console

from app.artifact.manifest import Views, WeightFormat
from app.commands import OneLineErrors, printable
from app.errors import SettingsError
from app.settings import check_names
from training import evaluate, evaluate_scenes, report
from training.architectures import ARCHITECTURES, find_architecture
from training.architectures.describe import describe as describe_architecture
from training.compare import corruptions
from training.compare import report as comparison_report
from training.compare.compare import compare as compare_models
from training.data import dataset
from training.data.scenes import SceneSource, open_scenes
from training.errors import DataError, RunError, TrainingError
from training.export.export import Export, check_exportable, next_version
from training.export.export import export as export_artifact
from training.export.scenes import SceneExport, export_scenes
from training.recipes import RECIPES, Recipe, find_recipe
from training.run import checkpoint as checkpoints
from training.run.checkpoint import Checkpoint
from training.run.distributed import is_first_process
from training.run.hardware import DeviceName, choose_device, use_allowed_processors
from training.run.progress import watch
from training.run.scene_lessons import check_scene_recipe, split
from training.run.sources import Source, check_lessons, find_source
from training.run.train import train as run_training

Command = Callable[..., Any]

SCORES = {"classification": "", "detection": "mAP at IoU 0.5 ", "segmentation": "IoU "}
"""What is measured on held-out pictures after an epoch; of classifiers, as of training images."""

ENOUGH_HELD_OUT = 99
"""The least number of held-out images from which a 99% set can leave out a class."""

ENOUGH_OF_A_CLASS = 230
"""The same of each class, for class-conditional sets."""

# A pipe has no width, and names may look like markup.
console = Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="The folder of the images.  "
    f"[default: ${dataset.DATA_DIR_VARIABLE}, or else ./{dataset.DEFAULT_DATA_DIR}]",
)
device_option = click.option(
    "--device", type=click.Choice(get_args(DeviceName)), default="auto", show_default=True
)
store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=Path("models_store"),
    show_default=True,
    help="The folder of the artifacts.",
)
views_option = click.option(
    "--views",
    type=click.Choice(["1", "2", "6"]),
    default="1",
    show_default=True,
    callback=lambda _context, _option, views: int(views),
    help="Views of each image to average the logits of: mirrored, and moved by a pixel.",
)
weights_option = click.option(
    "--weights",
    type=click.Choice(get_args(WeightFormat)),
    default="float32",
    show_default=True,
    help="The type that kernels and matrices are rounded to and stored in.",
)
strict_option = click.option(
    "--strict", is_flag=True, help="Refuse a folder of pictures of which anything is left out."
)
run_argument = click.argument("run", type=click.Path(path_type=Path))


def recipe_options(command: Command) -> Command:
    """Add an option for each field of a recipe; a given option overrides the field."""
    for name, field in reversed(Recipe.model_fields.items()):
        choices, words = get_args(field.annotation), name.replace("_", "-")
        if field.annotation is bool:
            option = click.option(f"--{words}/--no-{words}", default=None, help=field.description)
        else:
            option = click.option(
                f"--{words}",
                type=click.Choice(choices) if choices else field.annotation,
                help=field.description,
            )
        command = option(command)
    return command


class Commands(OneLineErrors):
    """Prints each of several faults of a folder in a line of its own."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.ClickException as exc:
            if not isinstance(exc.__cause__, DataError):
                raise
            lines = "\n".join(map(printable, exc.__cause__.lines))
            raise click.ClickException(lines) from exc


@click.group(cls=Commands, errors=TrainingError, context_settings={"max_content_width": 100})
def main() -> None:
    """Train classifiers, detectors and segmenters, measure them and export them for serving."""
    try:
        check_names(os.environ)
    except SettingsError as exc:
        raise click.ClickException(str(exc)) from exc
    use_allowed_processors()


@main.command("data")
@data_dir_option
@strict_option
def data_command(data_dir: Path | None, *, strict: bool) -> None:
    """Find the images and verify every file. Without any, download CIFAR-10."""
    place = dataset.place_of(data_dir)
    source = (open_scenes(place) if place.is_dir() else None) or dataset.find(data_dir)
    _tell_findings(source, strict=strict)
    _say(f"{source}, sha256 {source.sha256}")
    if isinstance(source, SceneSource):
        return
    images = source.load_train()
    console.print(f"{len(images):,} training images in {len(source.classes)} classes:", end=" ")
    console.print(", ".join(map(printable, source.classes)))


@main.command()
@click.argument("name", metavar="NAME")
@data_dir_option
@device_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME-seedN]"
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint.")
@click.option("--no-skips", is_flag=True, help="A U-Net without its skip connections.")
@strict_option
@recipe_options
def train(
    name: str,
    data_dir: Path | None,
    device: DeviceName,
    out: Path | None,
    resume: bool,
    no_skips: bool,
    strict: bool,
    **overrides: Any,
) -> None:
    """Train by the recipe NAME. An option overrides any of its fields."""
    given = {field: value for field, value in overrides.items() if value is not None}
    recipe = find_recipe(name).replace(**given)
    if no_skips:
        if f"{recipe.architecture}-no-skips" not in ARCHITECTURES:
            fitting = [name for name in RECIPES if f"{name}-no-skips" in ARCHITECTURES]
            raise click.UsageError(f"--no-skips is for {' and '.join(fitting)}")
        recipe = recipe.replace(architecture=f"{recipe.architecture}-no-skips")
        name = f"{name}-no-skips"
    run = out or Path("runs") / f"{name}-seed{recipe.seed}"
    task = find_architecture(recipe.architecture).task
    if task != "classification":
        check_scene_recipe(recipe, task, 1)  # before all pictures are read
    source = find_source(recipe.architecture, data_dir)
    check_lessons(recipe, source)
    console.quiet = not is_first_process()
    _say(f"{name} on {source} → {run}")
    _tell_findings(source, strict=strict, recipe=recipe)
    try:
        with watch(console, SCORES[task]) as reporter:
            last = run_training(recipe, source, run, reporter, device=device, resume=resume)
    except KeyboardInterrupt:
        raise RunError(
            f"interrupted; {run} has all finished epochs: continue with --resume"
        ) from None
    if not is_first_process():
        return
    report.draw_learning_curve(last.state.history, run / report.LEARNING_CURVE)
    _say(f"done: {last.path}")


@main.command("evaluate")
@run_argument
@data_dir_option
@device_option
@views_option
@weights_option
def evaluate_command(
    run: Path, data_dir: Path | None, device: DeviceName, views: Views, weights: WeightFormat
) -> None:
    """Measure the run RUN on the test images."""
    last = checkpoints.open_run(run)
    source = _data_of(last, data_dir)
    if isinstance(source, SceneSource):
        _refuse_views_and_weights(views, weights)
        evaluated = evaluate_scenes.evaluate_scenes(last, source)
        for table in report.object_tables(evaluated.evaluation):
            console.print(table)
        evaluate.save_evaluation(last, evaluated.evaluation)
        return
    found = evaluate.evaluate(last, source, choose_device(device), views, weights)
    for table in report.evaluation_tables(found, source):
        console.print(table)
    evaluate.save_evaluation(last, found)


@main.command()
@run_argument
@data_dir_option
@store_option
@click.option("--name", help="The model's name.  [default: the architecture's]")
@click.option("--version", help="The model's version.  [default: the next number]")
@views_option
@weights_option
@click.option("--int8", is_flag=True, help="Add an int8 graph, for CONVSCOPE_PRECISION=int8.")
def export(
    run: Path,
    data_dir: Path | None,
    store: Path,
    name: str | None,
    version: str | None,
    views: Views,
    weights: WeightFormat,
    *,
    int8: bool,
) -> None:
    """Export the run RUN as an artifact that the service can load, and prove it."""
    last = checkpoints.open_run(run)
    source = _data_of(last, data_dir)
    name = name or last.state.recipe.architecture
    version = version or next_version(store, name)
    check_exportable(last, source, store, name, version, int8=int8)
    if isinstance(source, SceneSource):
        _refuse_views_and_weights(views, weights)
        _say("measuring on the held-out and the test pictures")
        evaluated = evaluate_scenes.evaluate_scenes(last, source)
        what = SceneExport(last, evaluated, source, name, version, int8)
        made = export_scenes(what, store, _say)
        _say(f"exported: {made.path} ({report.short_figures(made.manifest)})")
        return
    found = evaluate.read_evaluation(last)
    if found is None or (found.views, found.weights) != (views, weights):
        _say("measuring on the held-out and the test images")
        found = evaluate.evaluate(last, source, choose_device("cpu"), views, weights)
        evaluate.save_evaluation(last, found)
    artifact = export_artifact(Export(last, found, source, name, version, int8), store, _say)
    figures = f"{found.test.accuracy:.2%}"
    if (graph := artifact.classifier.int8) is not None:
        figures += f", int8 {graph.test_accuracy:.2%}"
    _say(f"exported: {artifact.path} ({figures})")
    _tell_of_few(artifact.manifest.data.heldout)


@main.command("compare")
@store_option
@data_dir_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("comparison"),
    show_default=True,
    help="The folder for comparison.json, comparison.md and the plots.",
)
def compare_command(store: Path, data_dir: Path | None, out: Path) -> None:
    """Compare all artifacts of the store, and find the test images that they get wrong."""
    comparison = compare_models(store, partial(dataset.find, data_dir, download=False), _say)
    comparison_report.write_comparison(comparison, out)
    for table in comparison_report.comparison_tables(comparison):
        console.print(table)
    if comparison.errors.left_out:
        _say(comparison_report.left_out_note(comparison))
    _say(f"written: {out}")


@main.command("corruptions")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@data_dir_option
def corruptions_command(models: tuple[Path, ...], data_dir: Path | None) -> None:
    """Measure the models in the folders MODELS on corrupted test images."""
    source = dataset.find(data_dir, download=False)
    tests = corruptions.corrupted_tests(source)
    found = corruptions.measure_all(models, source, tests, _say)
    console.print(comparison_report.corruptions_table(found, len(tests[corruptions.CLEAN])))


@main.command("describe")
@click.argument("name", metavar="NAME")
def describe_command(name: str) -> None:
    """Print the layers of the architecture NAME, with their arithmetic."""
    console.print(report.description_table(describe_architecture(name)))


def _refuse_views_and_weights(views: Views, weights: WeightFormat) -> None:
    """Raise for what only a classifier has."""
    if views > 1:
        raise click.UsageError(f"--views {views}: only a classifier averages views")
    if weights != "float32":
        raise click.UsageError(f"--weights {weights}: only a classifier's can be stored so")


def _say(line: str) -> None:
    """Print a line, however long; a path in it may hold anything."""
    console.print(printable(line), soft_wrap=True)


def _tell_findings(source: Source, *, strict: bool, recipe: Recipe | None = None) -> None:
    """Print a folder's pictures by class, those that a recipe holds out, and what is left out.

    Raises:
        DataError: something is left out, and that is not allowed; or the recipe cannot hold out
            its part of a class.
    """
    if source.findings is None:
        return
    if isinstance(source, SceneSource):
        held_out = [] if recipe is None or source.val else split(recipe, source)[1]
        for table in report.scene_tables(source, held_out):
            console.print(table)
        for note in source.findings.notes:
            _say(note)
        repeated = source.findings.repeated
    else:
        for table in report.findings_tables(source, source.findings, _held_out(source, recipe)):
            console.print(table)
        repeated = source.findings.repeated
    if repeated:
        have = "image has" if repeated == 1 else "images have"
        _say(
            f"{repeated:,} test {have} the pixels of a training image, so the accuracy will look "
            "too high"
        )
    left_out = len(source.findings.left_out)
    if strict and left_out:
        one, many = "file is", "files are"
        if isinstance(source, SceneSource):
            one, many = "picture, mask or annotation is", "pictures, masks or annotations are"
        raise DataError(
            f"{printable(source.place)}: {left_out:,} {one if left_out == 1 else many} left out, "
            "and --strict allows none"
        )


def _held_out(source: dataset.Source, recipe: Recipe | None) -> list[int] | None:
    """Return the number of images that a recipe holds out, by label."""
    if recipe is None:
        return None
    images = source.load_train()
    _, held = dataset.split_distinct(images, recipe.holdout, recipe.split_seed)
    counts: list[int] = images.labels[held].bincount(minlength=len(source.classes)).tolist()
    return counts


def _tell_of_few(heldout: int) -> None:
    """Say what too few held-out images mean for an exported model."""
    if heldout == 0:
        _say("no images were held out: the model has no sets and no warnings")
    elif heldout < ENOUGH_HELD_OUT:
        images = "image decides" if heldout == 1 else "images decide"
        most = 100 * heldout // (heldout + 1)
        _say(
            f"{heldout} held-out {images} the thresholds: warnings are coarse, and sets of more "
            f"than {most}% hold every class; {ENOUGH_HELD_OUT} are enough for sets of 99%, and "
            f"{ENOUGH_OF_A_CLASS} of each class for class-conditional ones"
        )


def _data_of(run: Checkpoint, data_dir: Path | None) -> Source:
    """Find a run's data: in `data_dir`, else where the run found them.

    Raises:
        DataError: as `find_source`.
    """
    if data_dir is None and run.state.data_place:
        data_dir = Path(run.state.data_place)
        if not data_dir.is_dir():
            raise DataError(
                f"{printable(data_dir)}: no such folder, and {run.path} learned from the images in "
                "it; --data-dir names the folder where they are now"
            )
    return find_source(run.state.recipe.architecture, data_dir, download=False)


main.epilog = f"Recipes: {', '.join(RECIPES)}. Architectures: {', '.join(ARCHITECTURES)}."

if __name__ == "__main__":
    sys.exit(main())
