"""Figures of several models for the terminal, as JSON and as Markdown. Measures nothing.

`training.compare.plots` draws the plots.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from app.commands import printable
from app.tasks.classification import DEFAULT_SETS
from training.compare import corruptions, plots
from training.compare.compare import Comparison, ModelFigures, ObjectFigures
from training.compare.corruptions import Answers
from training.compare.overlap import MistakeGroup, Overlap
from training.errors import RunError
from training.report import Row, format_count, format_duration, make_table
from training.run import durable

COMPARISON_JSON = "comparison.json"
COMPARISON_MARKDOWN = "comparison.md"
LEARNING_CURVES = "learning_curves.png"
ACCURACY_BY_CLASS = "accuracy_by_class.png"
ACCURACY_AND_COST = "accuracy_and_cost.png"
ERROR_OVERLAP = "error_overlap.png"

NONE = "-"
_COST = {
    "parameters",
    "MACs",
    "file MB",
    "MB, all files",
    "ms float32",
    "ms int8",
    "images/s float32",
    "images/s int8",
}
"""Columns with a table of their own in the terminal, which is narrower than a page."""

Grid = list[Row]


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return the comparison for the terminal, with a row for each model."""
    models = comparison.models
    grids = _classifier_grids(comparison) if models else {}
    if comparison.objects:
        grid = _objects_grid(comparison.objects)
        grids["Boxes and masks"] = _without(grid, _COST)
        kept = {*grid[0][1:]} - _COST
        grids["Boxes and masks: size and speed, one thread"] = _without(grid, kept)
    return [make_table(title, grid[0], grid[1:]) for title, grid in grids.items()]


def _classifier_grids(comparison: Comparison) -> dict[str, Grid]:
    models = comparison.models
    figures = list(_figures(models[0]))
    grids = {
        "Accuracy and training": _grid(models, [name for name in figures if name not in _COST]),
        "Size and speed, one thread": _grid(models, [name for name in figures if name in _COST]),
        "Recognised by class": _class_grid(models),
    }
    if any(model.confidence for model in models):
        grids["Prediction sets: coverage, classes"] = _sets_grid(models)
        grids["AUROC against foreign images"] = _foreign_grid(models)
    if comparison.errors.overlap is not None:
        grids["Errors in common"] = _histogram_grid(comparison.errors.overlap)
    return grids


def _objects_grid(models: Sequence[ObjectFigures]) -> Grid:
    """Return the grid of detectors and segmenters."""
    rows: Grid = [
        (
            "model",
            "data",
            "parameters",
            "MACs",
            "MB, all files",
            "training",
            "scores",
            "int8",
            "ms float32",
            "ms int8",
        )
    ]
    rows += [
        (
            model.model,
            model.data,
            f"{model.parameters:,}",
            format_count(model.macs),
            f"{model.bytes / 1e6:.1f}",
            format_duration(model.training_seconds),
            _told(model.scores),
            _told(model.int8_scores),
            f"{model.latency_ms:.1f}",
            NONE if model.int8_latency_ms is None else f"{model.int8_latency_ms:.1f}",
        )
        for model in models
    ]
    return rows


def _without(grid: Grid, headings: Collection[str]) -> Grid:
    """Return a grid without the columns of these headings."""
    kept = [place for place, heading in enumerate(grid[0]) if heading not in headings]
    return [tuple(row[place] for place in kept) for row in grid]


def _told(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {score:.1%}" for name, score in scores.items()) or NONE


def corruptions_table(models: Mapping[str, Mapping[str, Answers]], images: int) -> Table:
    """Return each model's accuracy after each corruption, and the part that it marks as foreign.

    Args:
        models: their answers by name.
        images: the number of test images that they were asked about.
    """
    rows = [
        (name, *(str(found[name]) for found in models.values())) for name in corruptions.CORRUPTIONS
    ]
    means = (f"{corruptions.mean_accuracy(found):.1%}" for found in models.values())
    title = f"{images:,} test images: right, marked as foreign"
    return make_table(title, ("", *models), [*rows, ("mean of the corrupted", *means)])


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the comparison as JSON, as Markdown and as plots.

    Raises:
        RunError: the folder cannot be written.
    """
    models, errors = comparison.models, comparison.errors
    content = {
        "models": [asdict(model) for model in models],
        "overlap": asdict(errors.overlap) if errors.overlap else None,
        "left_out": errors.left_out,
        "timed_on": comparison.timed_on,
        "objects": [asdict(model) for model in comparison.objects],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        durable.write_text(folder / COMPARISON_JSON, json.dumps(content, indent=1) + "\n")
        durable.write_text(folder / COMPARISON_MARKDOWN, _markdown(comparison))
        if models:
            plots.draw_learning_curves(models, folder / LEARNING_CURVES)
            plots.draw_accuracy_by_class(models, folder / ACCURACY_BY_CLASS)
            plots.draw_accuracy_and_cost(models, folder / ACCURACY_AND_COST)
        if errors.overlap is None:
            (folder / ERROR_OVERLAP).unlink(missing_ok=True)  # of another comparison
        else:
            plots.draw_error_overlap(errors.overlap, errors.pictures, folder / ERROR_OVERLAP)
    except OSError as exc:
        raise RunError(f"{folder}: cannot be written: {exc}") from exc


def left_out_note(comparison: Comparison) -> str:
    """Return a sentence with the models whose errors are not compared; empty without any."""
    names = ", ".join(comparison.errors.left_out)
    return f"Trained on other data, so their errors are not compared: {names}." if names else ""


def _figures(model: ModelFigures) -> dict[str, str]:
    """Return a model's cells, by heading."""
    int8 = model.int8
    return {
        "test accuracy": f"{model.accuracy:.2%}",
        "int8": f"{int8.accuracy:.2%}" if int8 else NONE,
        "cross-entropy": f"{model.cross_entropy:.3f}",
        "ECE": f"{model.ece:.2%}",
        "parameters": format_count(model.parameters),
        "MACs": format_count(model.macs),
        "file MB": f"{model.onnx_bytes / 1e6:.2f}",
        "views": str(model.views),
        "images": format_count(model.training_images),
        "epochs": str(model.epochs),
        "training time": format_duration(model.training_seconds),
        "ms float32": f"{model.latency_ms:.3f}",
        "ms int8": f"{int8.latency_ms:.3f}" if int8 else NONE,
        "images/s float32": f"{model.images_per_second:,.0f}",
        "images/s int8": f"{int8.images_per_second:,.0f}" if int8 else NONE,
    }


def _grid(models: Sequence[ModelFigures], headings: Sequence[str]) -> Grid:
    """Return a heading and a row for each model, without columns that are empty for all."""
    rows = [_figures(model) for model in models]
    empty = {"views": {"1"}}
    kept = [
        heading
        for heading in headings
        if not {row[heading] for row in rows} <= empty.get(heading, {NONE})
    ]
    cells = [
        (model.model, *(row[name] for name in kept))
        for model, row in zip(models, rows, strict=True)
    ]
    return [("model", *kept), *cells]


def _class_grid(models: Sequence[ModelFigures]) -> Grid:
    labels = list(dict.fromkeys(label for model in models for label in model.recall_by_class))
    rows = [
        (
            model.model,
            *(
                f"{model.recall_by_class[label]:.1%}" if label in model.recall_by_class else NONE
                for label in labels
            ),
        )
        for model in models
    ]
    return [("model", *labels), *rows]


def _sets_grid(models: Sequence[ModelFigures]) -> Grid:
    known = [(model.model, model.confidence) for model in models if model.confidence]
    rows = [
        (
            name,
            *(
                f"{found:.1%}, {confidence.classes[wanted]:.2f}"
                for wanted, found in confidence.found.items()
            ),
        )
        for name, confidence in known
    ]
    return [("model", *known[0][1].found), *rows]


def _foreign_grid(models: Sequence[ModelFigures]) -> Grid:
    known = [(model.model, model.confidence) for model in models if model.confidence]
    kinds = list(dict.fromkeys(kind for _, confidence in known for kind in confidence.auroc))
    rows = [
        (
            name,
            f"{confidence.false_alarms:.1%}",
            *(
                f"{confidence.auroc[kind]:.3f}" if kind in confidence.auroc else NONE
                for kind in kinds
            ),
        )
        for name, confidence in known
    ]
    return [("model", "false alarms", *kinds), *rows]


def _histogram_grid(overlap: Overlap) -> Grid:
    rows = [
        (str(count), f"{images:,}", f"{images / overlap.images:.2%}")
        for count, images in enumerate(overlap.histogram)
    ]
    return [("models that are wrong", "test images", "part"), *rows]


def _shared_grid(overlap: Overlap) -> Grid:
    rows = [
        (model, f"{errors:,}", *(f"{part:.1%}" for part in shared))
        for model, errors, shared in zip(
            overlap.models, overlap.errors, overlap.shared, strict=True
        )
    ]
    return [("", "errors", *overlap.models), *rows]


def _markdown(comparison: Comparison) -> str:
    lines = _classifiers_markdown(comparison) if comparison.models else []
    if comparison.objects:
        lines += [
            *_markdown_table(_objects_grid(comparison.objects)),
            "Detectors and segmenters. Scores are on the test pictures: the mean average precision "
            "at IoU 0.5 to 0.95 (mAP) and at 0.5 (mAP50), the mean IoU of the classes, and the F1 "
            f"of objects at IoU 0.5. `ms` is the latency of one picture on one thread of "
            f"{comparison.timed_on}.",
            "",
        ]
    return "\n".join(lines)


def _classifiers_markdown(comparison: Comparison) -> list[str]:
    models = comparison.models
    lines = [
        *_markdown_table(_grid(models, list(_figures(models[0])))),
        "Accuracy, cross-entropy (nats) and expected calibration error (15 bins) are on the test "
        "images, with the calibrated probabilities that are served. `images` are those trained "
        "on, and `epochs` those of the last run; `training time` includes the runs before it, "
        "without a teacher's. `ms` is the latency of one image and `images/s` the throughput at "
        f"batch 64, both of the ONNX graph on one thread of {comparison.timed_on}. "
        f"{_training_note(models)}",
        "",
        f"![Accuracy and cost]({ACCURACY_AND_COST})",
        "",
        "The part of each class's test images that is recognised:",
        "",
        *_markdown_table(_class_grid(models)),
        f"![Accuracy by class]({ACCURACY_BY_CLASS})",
        "",
        f"![Learning curves]({LEARNING_CURVES})",
        "",
    ]
    if any(model.confidence for model in models):
        lines += _confidence_markdown(models)
    if comparison.errors.overlap is not None:
        lines += _overlap_markdown(comparison.errors.overlap)
    if comparison.errors.left_out:
        lines += [left_out_note(comparison), ""]
    return lines


def _confidence_markdown(models: Sequence[ModelFigures]) -> list[str]:
    return [
        f"Prediction sets ({DEFAULT_SETS.upper()}) that are to hold the true class of 90, 95 and "
        "99% of the images: the part of the test images whose set does, and the mean number of "
        "classes in a set:",
        "",
        *_markdown_table(_sets_grid(models)),
        "Test images that are marked as foreign, and how well the score tells each kind of foreign "
        "images from them (area under the ROC curve; 0.5 is chance):",
        "",
        *_markdown_table(_foreign_grid(models)),
    ]


def _training_note(models: Sequence[ModelFigures]) -> str:
    places: dict[str, list[str]] = {}
    for model in models:
        places.setdefault(model.training_hardware, []).append(model.model)
    if len(places) == 1:
        return f"All were trained on {models[0].training_hardware}."
    parts = (f"{', '.join(names)} on {hardware}" for hardware, names in places.items())
    fronts = "each machine has a front of its own"
    return f"Trained: {'; '.join(parts)}; the times of two do not compare, so {fronts}."


def _overlap_markdown(overlap: Overlap) -> list[str]:
    groups = [("Every model gets", overlap.by_all)]
    if overlap.by_fully_connected is not None:
        groups.append(("The fully connected network alone gets", overlap.by_fully_connected))
    return [
        f"How many of the {overlap.images:,} test images 0, 1, ... all models get wrong:",
        "",
        *_markdown_table(_histogram_grid(overlap)),
        "Images that two models both get wrong, as a part of those that either gets wrong:",
        "",
        *_markdown_table(_shared_grid(overlap)),
        *(line for start, group in groups for line in (_group_sentence(start, group), "")),
        f"![Error overlap]({ERROR_OVERLAP})",
        "",
    ]


def _group_sentence(start: str, group: MistakeGroup) -> str:
    shown = group.examples[: plots.PICTURES]
    indices = ", ".join(str(example.index) for example in shown)
    more = " ..." if len(shown) < group.images else ""
    return f"{start} {group.images:,} images wrong{': ' if shown else ''}{indices}{more}."


def _markdown_table(grid: Grid) -> list[str]:
    heading, *rows = ("| " + " | ".join(map(_cell, row)) + " |" for row in grid)
    return [heading, "|---" + "|---:" * (len(grid[0]) - 1) + "|", *rows, ""]


def _cell(text: str) -> str:
    """Return the text of a cell: neither a bar nor the end of a line in a name ends it."""
    return printable(text).replace("|", r"\|")
