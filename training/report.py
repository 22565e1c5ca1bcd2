"""Tables and plots of one model or data set, for the terminal and as PNG. Measures nothing.

`training.compare.report` has the tables of several models.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from app.artifact.detection import DetectionEvaluation, DetectorManifest
from app.artifact.manifest import Evaluation, LayerRecord, Manifest
from app.artifact.segmentation import SegmentationEvaluation, SegmenterManifest
from app.commands import printable
from training.architectures.describe import Description, count_weights
from training.data.class_folders import first_told
from training.data.dataset import Findings, Source
from training.data.scenes import Scene, SceneSource
from training.errors import RunError
from training.run.checkpoint import EpochFigures

LEARNING_CURVE = "learning_curve.png"

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
    label_axes(loss, "epoch", "training loss")
    plot_accuracy(accuracy, history, "C0")
    accuracy.legend(frameon=False)
    try:
        figure.savefig(path, dpi=110)
    except OSError as exc:
        raise RunError(f"{path}: cannot be written: {exc}") from exc


def evaluation_tables(evaluation: Evaluation, source: Source) -> list[Table]:
    """Return tables of all figures, figures by class, and the worst confusions and mistakes.

    Args:
        evaluation: the figures.
        source: of the images. Those of a folder are named by their files, others by their index.
    """
    test = evaluation.test
    views = f", {evaluation.views} views of each" if evaluation.views > 1 else ""
    overall = make_table(
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
    by_class = make_table(
        "By class",
        ("class", "precision", "recall", "F1"),
        [
            (row.label, f"{row.precision:.1%}", f"{row.recall:.1%}", f"{row.f1:.1%}")
            for row in evaluation.per_class
        ],
    )
    confusions = make_table(
        "Most often confused",
        ("true", "predicted as", "images"),
        [(row.true, row.predicted, str(row.count)) for row in evaluation.top_confusions],
    )
    files = source.findings.test_files if source.findings else range(evaluation.images)
    mistakes = make_table(
        "Most confident mistakes",
        ("test image", "true", "predicted as", "confidence"),
        [
            (str(files[row.index]), row.true, row.predicted, f"{row.confidence:.2%}")
            for row in evaluation.confident_mistakes
        ],
    )
    return [overall, by_class, confusions, mistakes]


def description_table(description: Description) -> Table:
    """Return a table of a network's layers, with totals."""
    rows = [
        (
            layer.name,
            layer.kind,
            "×".join(map(str, layer.shape)),
            _weights_and_rest(layer),
            format_count(layer.macs),
            "image" if layer.receptive_field is None else str(layer.receptive_field),
        )
        for layer in description.layers
    ]
    rows.append(
        ("total", "", "", format_count(description.parameters), format_count(description.macs), "")
    )
    shape = "×".join(map(str, description.input))
    headings = ("layer", "kind", "output", "weights + rest", "MACs", "receptive field")
    return make_table(f"{description.name}, input {shape}", headings, rows)


def plot_accuracy(axes: Axes, history: Sequence[EpochFigures], color: str) -> None:
    """Plot accuracy in percent by epoch, on training and on held-out images."""
    train = [(each.epoch, each.train_accuracy) for each in history]
    heldout = [(each.epoch, each.heldout_accuracy) for each in history]
    for points, alpha, marker, label in (
        (train, 0.45, "", "training"),
        (heldout, 1.0, ".", "held out"),
    ):
        known = [(epoch, 100 * part) for epoch, part in points if part is not None]
        if known:
            axes.plot(
                *zip(*known, strict=True), color=color, alpha=alpha, marker=marker, label=label
            )
    is_accuracy = any(each.train_accuracy is not None for each in history)
    label_axes(axes, "epoch", "accuracy (%)" if is_accuracy else "held-out score (%)")


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes; draw a faint grid without a frame."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def findings_tables(
    source: Source, findings: Findings, held_out: Sequence[int] | None = None
) -> list[Table]:
    """Return tables of the number of images by class and, if any, of the files left out and why.

    Args:
        source: of the images.
        findings: in it.
        held_out: number of training images to hold out by label, if a recipe says how many.
    """
    left_out = Counter(item.class_name for item in findings.left_out)
    counts: dict[str, Sequence[int]] = {"training images": findings.train}
    if held_out is not None:
        counts["held out"] = held_out
    counts["test images"] = findings.test
    rows = [
        (name, *(f"{count:,}" for count in of_class), format_count(left_out[name]))
        for name, *of_class in zip(source.classes, *counts.values(), strict=True)
    ]
    blanks = [""] * len(counts)
    if left_out[""]:
        rows.append(("in no class", *blanks, f"{left_out['']:,}"))
    headings = ("class", *counts, "left out")
    by_class = make_table(f"{len(source.classes)} classes", headings, rows)
    if not findings.left_out:
        return [by_class]
    told = [(line,) for line in first_told(findings.left_out)]
    return [by_class, make_table("Left out", ("file and reason",), told)]


def short_figures(manifest: Manifest) -> str:
    """Return the test figures of a detector or segmenter in a line."""
    if isinstance(manifest, DetectorManifest):
        figures = f"mAP {manifest.test.map:.2%}, {manifest.test.map50:.2%} at IoU 0.5"
        if manifest.int8 is not None:
            figures += f"; int8 {manifest.int8.test_map:.2%}, {manifest.int8.test_map50:.2%}"
        return figures
    if isinstance(manifest, SegmenterManifest):
        figures = f"IoU {manifest.test.iou:.2%}"
        if manifest.test.instance_f1 is not None:
            figures += f", F1 of objects {manifest.test.instance_f1:.2%}"
        if manifest.int8 is not None:
            figures += f"; int8 {manifest.int8.test_iou:.2%}"
        return figures
    return ""


def object_tables(evaluation: DetectionEvaluation | SegmentationEvaluation) -> list[Table]:
    """Return tables of a detector's or segmenter's figures, by class too, and its confusions."""
    if isinstance(evaluation, DetectionEvaluation):
        return _detection_tables(evaluation)
    return _segmentation_tables(evaluation)


def _segmentation_tables(evaluation: SegmentationEvaluation) -> list[Table]:
    test = evaluation.test
    rows: list[Row] = [
        ("IoU, mean over classes", "", f"{test.iou:.2%}"),
        ("F1 of borders, 2 pixels", "", f"{test.boundary_f1:.2%}"),
        ("ECE of pixels, 15 bins", f"{test.ece_raw:.2%}", f"{test.ece_calibrated:.2%}"),
    ]
    if test.instance_f1 is not None:
        rows.insert(1, ("F1 of objects at IoU 0.5", "", f"{test.instance_f1:.2%}"))
    title = f"{evaluation.images:,} test pictures"
    headings: Row = ("class", "IoU", "F1 of borders", "pictures")
    if test.instance_f1 is not None:
        title = f"{evaluation.objects:,} objects in {title}"
        headings = ("class", "IoU", "F1 of borders", "F1 of objects", "objects")
    by_class = make_table(
        "By class",
        headings,
        [
            (
                row.label,
                f"{row.iou:.1%}",
                f"{row.boundary_f1:.1%}",
                *([] if row.instance_f1 is None else [f"{row.instance_f1:.1%}"]),
                f"{row.objects:,}",
            )
            for row in evaluation.per_class
        ],
    )
    return [make_table(title, ("", "raw", "calibrated"), rows), by_class]


def _detection_tables(evaluation: DetectionEvaluation) -> list[Table]:
    test = evaluation.test
    overall = make_table(
        f"{evaluation.objects:,} objects in {evaluation.images:,} test pictures",
        ("", "raw", "calibrated"),
        [
            ("mAP at IoU 0.5 to 0.95", "", f"{test.map:.2%}"),
            ("mAP at IoU 0.5", "", f"{test.map50:.2%}"),
            ("detection ECE, 15 bins", f"{test.ece_raw:.2%}", f"{test.ece_calibrated:.2%}"),
        ],
    )
    by_class = make_table(
        "By class",
        ("class", "AP", "AP at IoU 0.5", "objects"),
        [
            (row.label, f"{row.ap:.1%}", f"{row.ap50:.1%}", f"{row.objects:,}")
            for row in evaluation.per_class
        ],
    )
    rows = zip(evaluation.labels, evaluation.confusion_matrix, strict=True)
    confusions = make_table(
        f"Boxes with a score of {evaluation.score_threshold:g} or more",
        ("true, and found as", *evaluation.labels),
        [(label, *(f"{count:,}" for count in counts)) for label, counts in rows],
    )
    return [overall, by_class, confusions]


def scene_tables(source: SceneSource, held_out: Sequence[Scene] = ()) -> list[Table]:
    """Return tables of the number of pictures and objects by split, and of what is left out.

    Args:
        source: of the pictures.
        held_out: those of its training pictures that a recipe holds out.
    """
    findings = source.findings
    held = Counter(label for scene in held_out for label in scene.objects.labels.tolist())
    held_by_label = [held[label] for label in range(len(source.classes))]
    train = np.array(findings.objects["train"]) - held_by_label
    columns: dict[str, tuple[int, Sequence[int]]] = {
        "train": (findings.pictures["train"] - len(held_out), train.tolist())
    }
    if held_out:
        columns["held out"] = len(held_out), held_by_label
    for name in ("val", "test"):
        if findings.pictures[name]:
            columns[name] = findings.pictures[name], findings.objects[name]
    rows = [
        (name, *(f"{counts[label]:,}" for _, counts in columns.values()))
        for label, name in enumerate(source.classes)
    ]
    rows.append(("all pictures", *(f"{pictures:,}" for pictures, _ in columns.values())))
    title = "Objects by class" if source.instances else "Pictures by class"
    tables = [make_table(title, ("class", *columns), rows)]
    if findings.left_out:
        told = [(line,) for line in first_told(findings.left_out)]
        tables.append(make_table("Left out", ("what and reason",), told))
    return tables


def make_table(title: str, headings: Row, rows: Sequence[Row]) -> Table:
    """Return a table for the terminal, with numbers aligned to the right.

    Names in it may hold anything; what is not printable is escaped.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, heading in enumerate(headings):
        # Folded, not cut: a number without its last digits is another number.
        table.add_column(
            printable(heading), justify="left" if index == 0 else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(printable, row))
    return table


def format_count(number: int) -> str:
    """Return a number with thousands separators, or a dash for 0."""
    return f"{number:,}" if number else "-"


def format_duration(seconds: float) -> str:
    """Return seconds as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def _weights_and_rest(layer: LayerRecord) -> str:
    """Return the size of kernel or matrix, then that of biases and normalisation."""
    weights = count_weights(layer)
    parts = [weights, layer.parameters - weights]
    return " + ".join(f"{part:,}" for part in parts if part) or "-"
