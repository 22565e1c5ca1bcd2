"""Tables and plots, for the terminal, for Markdown and as PNG. Measures nothing."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from app.contract import Evaluation
from training import durable
from training.checkpoint import EpochFigures
from training.compare import ModelFigures
from training.describe import Description, Layer
from training.errors import RunError

LEARNING_CURVE = "learning_curve.png"
COMPARISON_JSON = "comparison.json"
COMPARISON_MARKDOWN = "comparison.md"
LEARNING_CURVES = "learning_curves.png"
ACCURACY_BY_CLASS = "accuracy_by_class.png"
ACCURACY_AND_COST = "accuracy_and_cost.png"

Row = tuple[str, ...]


def draw_learning_curve(history: Sequence[EpochFigures], path: Path) -> None:
    """Draw a run's loss and accuracy by epoch as PNG.

    Raises:
        RunError: the file cannot be written.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [figures.epoch for figures in history]
    loss.plot(epochs, [figures.loss for figures in history], color="C0", marker=".")
    _label(loss, "epoch", "training loss")
    _plot_accuracy(accuracy, history, "C0")
    accuracy.legend(frameon=False)
    try:
        figure.savefig(path, dpi=110)
    except OSError as exc:
        raise RunError(f"{path}: cannot be written: {exc}") from exc


def evaluation_tables(evaluation: Evaluation) -> list[Table]:
    """Return the figures, those by class, and the worst confusions and mistakes as tables."""
    test = evaluation.test
    views = f", {evaluation.views} views of each" if evaluation.views > 1 else ""
    overall = _table(
        f"{evaluation.images:,} test images{views}, temperature {evaluation.temperature:.3f}",
        ("", "raw", "calibrated"),
        [
            ("accuracy", f"{test.accuracy:.2%}", f"{test.accuracy:.2%}"),
            (
                "cross-entropy",
                f"{test.cross_entropy_raw:.4f}",
                f"{test.cross_entropy_calibrated:.4f}",
            ),
            ("ECE, 15 bins", f"{test.ece_raw:.2%}", f"{test.ece_calibrated:.2%}"),
        ],
    )
    by_class = _table(
        "By class",
        ("class", "precision", "recall", "F1"),
        [
            (row.label, f"{row.precision:.1%}", f"{row.recall:.1%}", f"{row.f1:.1%}")
            for row in evaluation.per_class
        ],
    )
    confusions = _table(
        "Most often confused",
        ("true", "predicted as", "images"),
        [(row.true, row.predicted, str(row.count)) for row in evaluation.top_confusions],
    )
    mistakes = _table(
        "Most confident mistakes",
        ("test image", "true", "predicted as", "confidence"),
        [
            (str(row.index), row.true, row.predicted, f"{row.confidence:.2%}")
            for row in evaluation.confident_mistakes
        ],
    )
    return [overall, by_class, confusions, mistakes]


def description_table(description: Description) -> Table:
    """Return a network's layers as a table with its totals."""
    rows = [
        (
            layer.name,
            layer.kind,
            "×".join(map(str, layer.output)),
            _weights_and_rest(layer),
            _count(layer.macs),
            "image" if layer.receptive_field is None else str(layer.receptive_field),
        )
        for layer in description.layers
    ]
    rows.append(("total", "", "", _count(description.parameters), _count(description.macs), ""))
    shape = "×".join(map(str, description.input))
    headings = ("layer", "kind", "output", "weights + rest", "MACs", "receptive field")
    return _table(f"{description.name}, input {shape}", headings, rows)


def comparison_table(models: Sequence[ModelFigures]) -> Table:
    """Return the comparison as a table, a row a figure and a column a model."""
    heading, *rows = _comparison_rows(models)
    return _table("Models side by side", heading, rows)


def write_comparison(models: Sequence[ModelFigures], folder: Path) -> None:
    """Write the comparison as JSON, as Markdown and as plots.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps([asdict(model) for model in models], indent=1)
        durable.write_text(folder / COMPARISON_JSON, content + "\n")
        durable.write_text(folder / COMPARISON_MARKDOWN, _comparison_markdown(models))
        _draw_learning_curves(models, folder / LEARNING_CURVES)
        _draw_accuracy_by_class(models, folder / ACCURACY_BY_CLASS)
        _draw_accuracy_and_cost(models, folder / ACCURACY_AND_COST)
    except OSError as exc:
        raise RunError(f"{folder}: cannot be written: {exc}") from exc


def _comparison_rows(models: Sequence[ModelFigures]) -> list[Row]:
    rows: list[Row] = [
        ("", *(model.model for model in models)),
        ("test accuracy", *(f"{model.accuracy:.2%}" for model in models)),
        ("cross-entropy", *(f"{model.cross_entropy:.3f}" for model in models)),
        ("ECE", *(f"{model.ece:.2%}" for model in models)),
        ("parameters", *(_count(model.parameters) for model in models)),
        ("MACs an image", *(_count(model.macs) for model in models)),
        ("ONNX file", *(f"{model.onnx_bytes / 1e6:.2f} MB" for model in models)),
        ("TorchScript file", *(f"{model.torchscript_bytes / 1e6:.2f} MB" for model in models)),
        ("epochs", *(str(model.epochs) for model in models)),
        ("training time", *(_duration(model.training_seconds) for model in models)),
        ("latency, 1 image", *(f"{model.latency_ms:.3f} ms" for model in models)),
        ("throughput, batch 64", *(f"{model.images_per_second:,.0f}/s" for model in models)),
    ]
    labels = dict.fromkeys(label for model in models for label in model.recall_by_class)
    for label in labels:
        recalls = (model.recall_by_class.get(label) for model in models)
        rows.append((label, *("" if part is None else f"{part:.1%}" for part in recalls)))
    return rows


def _comparison_markdown(models: Sequence[ModelFigures]) -> str:
    heading, *rows = _comparison_rows(models)
    lines = [
        "| " + " | ".join(heading) + " |",
        "|---" + "|---:" * len(models) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "Accuracy, cross-entropy (nats) and expected calibration error (15 bins) are on the test "
        "images, with the calibrated probabilities that are served; the rows of classes say which "
        "part of a class is recognised. Latency and throughput are the ONNX graph's on one "
        "thread.",
        "",
        f"![Learning curves]({LEARNING_CURVES})",
        "",
        f"![Accuracy by class]({ACCURACY_BY_CLASS})",
        "",
        f"![Accuracy and cost]({ACCURACY_AND_COST})",
        "",
    ]
    return "\n".join(lines)


def _draw_learning_curves(models: Sequence[ModelFigures], path: Path) -> None:
    figure = Figure(figsize=(4 * len(models), 3.4), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for index, (axes, model) in enumerate(zip(panels, models, strict=True)):
        _plot_accuracy(axes, model.history, f"C{index}")
        axes.axhline(100 * model.accuracy, color="0.4", linewidth=0.8, linestyle=":", label="test")
        axes.set_title(model.model)
        axes.label_outer()
        axes.legend(frameon=False, loc="best")
    figure.savefig(path, dpi=110)


def _draw_accuracy_by_class(models: Sequence[ModelFigures], path: Path) -> None:
    labels = list(dict.fromkeys(label for model in models for label in model.recall_by_class))
    figure = Figure(figsize=(max(7, 0.9 * len(labels) + 2), 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(models)
    for index, model in enumerate(models):
        offset = (index - (len(models) - 1) / 2) * width
        heights = [100 * model.recall_by_class.get(label, 0) for label in labels]
        places = [place + offset for place in range(len(labels))]
        axes.bar(places, heights, width * 0.92, label=model.model, color=f"C{index}")
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    _label(axes, "", "recognised (%)")
    axes.set_ylim(0, 100)
    figure.legend(frameon=False, ncols=len(models), loc="outside upper center")
    figure.savefig(path, dpi=110)


def _draw_accuracy_and_cost(models: Sequence[ModelFigures], path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    costs = (
        ("latency of one image (ms)", [model.latency_ms for model in models]),
        ("training time (minutes)", [model.training_seconds / 60 for model in models]),
    )
    for axes, (title, values) in zip(panels, costs, strict=True):
        for index, (value, model) in enumerate(zip(values, models, strict=True)):
            axes.plot(value, 100 * model.accuracy, "o", color=f"C{index}", label=model.model)
        _label(axes, title, "test accuracy (%)" if axes is panels[0] else "")
        axes.margins(0.2)
        axes.set_xlim(left=0)
    panels[1].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def _plot_accuracy(axes: Axes, history: Sequence[EpochFigures], color: str) -> None:
    epochs = [figures.epoch for figures in history]
    train = [100 * figures.train_accuracy for figures in history]
    axes.plot(epochs, train, color=color, alpha=0.45, label="training")
    heldout = [figures.heldout_accuracy for figures in history]
    known = [100 * accuracy for accuracy in heldout if accuracy is not None]
    if len(known) == len(epochs):
        axes.plot(epochs, known, color=color, marker=".", label="held out")
    _label(axes, "epoch", "accuracy (%)")


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _table(title: str, headings: Row, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, heading in enumerate(headings):
        # Folded and not cut: a number without its last digits is another number.
        table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _weights_and_rest(layer: Layer) -> str:
    """Kernel or matrix, then biases and normalisation, which formulas count apart."""
    parts = [layer.weights, layer.parameters - layer.weights]
    return " + ".join(f"{part:,}" for part in parts if part) or "-"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
