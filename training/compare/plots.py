"""Plots of a comparison as PNG: learning curves, classes, the cost of accuracy, shared errors.

Measures nothing. Tables are in `training.compare.report`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from app.explore.lettering import SHIPPED, write_labels
from app.images import RgbImage
from training.compare.compare import ModelFigures, Point, pareto_front
from training.compare.overlap import MistakeGroup, Overlap
from training.report import label_axes, plot_accuracy

DPI = 110
PANELS_A_ROW = 4
PICTURES = 16
"""The number of images on a contact sheet."""

_SHEET = (4, 4)
_FONT = "DejaVu Sans"
"""matplotlib's own. It has every letter of the shipped font and of Pillow's own."""

_HARDWARE_MARKERS = "os^Dv"
_COLORS = [to_hex(colormaps["tab20"](i)) for i in (*range(0, 20, 2), *range(1, 20, 2))]
"""Ten dark colours, then the same ten pale."""

_LABEL_FONT_SIZE = 8
_DISTANCES = (9, 14, 20, 32, 46, 62)
_ANGLES = tuple(math.radians(degrees) for degrees in range(0, 360, 30))
_NEAR = 14
"""A label further from its point than this many pixels is joined to it by a line."""

_STEP = 4
"""Pixels between the sampled places of a line."""

_LABEL_COST, _LINE_COST, _OUTSIDE_COST = 1000.0, 15.0, 5000.0
"""The cost of covering another label, a place of a line or the frame, in pixels of distance."""

Pixels = NDArray[np.float64]
Line = Sequence[tuple[float, float]]


def draw_learning_curves(models: Sequence[ModelFigures], path: Path) -> None:
    """Draw accuracy by epoch, in a panel for each model."""
    columns = min(PANELS_A_ROW, len(models))
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for index, (axes, model) in enumerate(zip(panels, models, strict=False)):
        plot_accuracy(axes, model.history, _color(index))
        axes.axhline(100 * model.accuracy, color="0.4", linewidth=0.8, linestyle=":", label="test")
        axes.set_title(model.model)
        if index % columns:
            axes.set_ylabel("")
        axes.legend(frameon=False, loc="best")
    for axes in panels[len(models) :]:
        axes.remove()
    figure.savefig(path, dpi=DPI)


def draw_accuracy_by_class(models: Sequence[ModelFigures], path: Path) -> None:
    """Draw the recall of each class, in a row for each model and a column for each class."""
    labels = list(dict.fromkeys(label for model in models for label in model.recall_by_class))
    values = np.array(
        [[100 * model.recall_by_class.get(label, np.nan) for label in labels] for model in models]
    )
    names = _lettering(labels)
    longest = max(map(len, names.texts.values()))
    size = (max(6, 0.75 * len(labels) + 2.5), 0.34 * len(models) + 0.055 * longest + 0.85)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    _heat_map(axes, values, [model.model for model in models], [*names.texts.values()], ".1f")
    for label in axes.get_xticklabels():
        label.set_fontfamily(names.fonts)
    axes.set_title("recognised (%)", fontsize=10)
    figure.savefig(path, dpi=DPI)


def draw_accuracy_and_cost(models: Sequence[ModelFigures], path: Path) -> None:
    """Draw accuracy against latency and against training time, each with its Pareto front."""
    accuracy_and_cost(models).savefig(path)


def accuracy_and_cost(models: Sequence[ModelFigures]) -> Figure:
    """Return the figure of `draw_accuracy_and_cost`: latency, then training time."""
    figure = Figure(figsize=(15, 7.8), layout="constrained", dpi=DPI)
    latency, training = figure.subplots(1, 2, sharey=True)
    label_axes(latency, "latency of one image, one thread (ms)", "test accuracy (%)")
    label_axes(training, "training time (minutes)", "")
    for axes in (latency, training):
        axes.set_xscale("log")
    lines = [_plot_latency(latency, models), _plot_training_time(training, models)]
    for axes, columns in ((latency, 3), (training, 1)):  # names of machines are long
        axes.margins(0.12, 0.08)
        _mark_decades(axes)
        axes.legend(
            frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=9
        )
    starts = (
        [_latency_point(model) for model in models],
        [_training_point(model) for model in models],
    )
    for axes, places, covered in zip((latency, training), starts, lines, strict=True):
        labels = [
            PointLabel(model.model, place, _color(index))
            for index, (model, place) in enumerate(zip(models, places, strict=True))
        ]
        place_labels(axes, labels, covered)
    return figure


def draw_error_overlap(overlap: Overlap, pictures: dict[int, RgbImage], path: Path) -> None:
    """Draw the part of errors that each pair of models shares, and images that all models miss.

    Args:
        overlap: of at least two models.
        pictures: the images that `overlap` names, by index, uint8 `[H,W,3]`.
        path: of the PNG.
    """
    sheets = [(f"wrong by all {len(overlap.models)} models", overlap.by_all)]
    if overlap.by_fully_connected is not None:
        sheets.append(("wrong by the fully connected network alone", overlap.by_fully_connected))
    side = max(4.5, 0.52 * len(overlap.models) + 1.6)
    figure = Figure(figsize=(side + 5.2 * len(sheets), max(6.2, side)), layout="constrained")
    ratios = [side, *[5.2] * len(sheets)]
    matrix, *places = figure.subfigures(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    axes = matrix.subplots()
    _heat_map(axes, 100 * np.array(overlap.shared), overlap.models, overlap.models, ".0f")
    axes.set_aspect("equal")
    matrix.suptitle("errors shared by two models, % of the errors of either", fontsize=10)
    shown = [example for _, group in sheets for example in group.examples]
    names = _lettering([*dict.fromkeys(name for e in shown for name in (e.true, e.predicted))])
    for place, (title, group) in zip(places, sheets, strict=True):
        _draw_sheet(place, title, group, pictures, names)
    figure.savefig(path, dpi=DPI)


@dataclass(frozen=True)
class _Lettering:
    """How names of classes are written.

    Attributes:
        texts: by name; two names never look the same.
        fonts: families that have all letters of the texts.
    """

    texts: Mapping[str, str]
    fonts: Sequence[str]


def _lettering(names: Sequence[str]) -> _Lettering:
    labels = write_labels(names, _LABEL_FONT_SIZE)
    files = dict.fromkeys(label.font.path for label in labels)
    others = [_family(file) for file in files if isinstance(file, str) and file != SHIPPED]
    texts = dict(zip(names, (label.text for label in labels), strict=True))
    return _Lettering(texts, [_FONT, *others])


@lru_cache
def _family(file: str) -> str:
    """Let matplotlib use a font of the system, and return the name of its family."""
    fontManager.addfont(file)
    return FT2Font(file).family_name


def _plot_latency(axes: Axes, models: Sequence[ModelFigures]) -> list[list[Point]]:
    """Plot float32 filled and int8 hollow; return all lines drawn."""
    lines: list[list[Point]] = []
    for index, model in enumerate(models):
        color = _color(index)
        line = [_latency_point(model)]
        axes.plot(*line[0], "o", color=color, zorder=3)
        if model.int8 is not None:
            line.append((model.int8.latency_ms, 100 * model.int8.accuracy))
            axes.plot(*line[1], "o", color=color, zorder=3, markerfacecolor="white")
            axes.plot(*zip(*line, strict=True), color=color, linewidth=0.8, zorder=2)
        lines.append(line)
    axes.plot([], [], "o", color="0.3", label="float32")
    axes.plot([], [], "o", color="0.3", markerfacecolor="white", label="int8")
    front = pareto_front([point for line in lines for point in line])
    return [*lines, _plot_front(axes, front, "Pareto front")]


def _plot_training_time(axes: Axes, models: Sequence[ModelFigures]) -> list[list[Point]]:
    """Plot markers and a front for each hardware: times of two machines do not compare."""
    lines: list[list[Point]] = []
    hardware = list(dict.fromkeys(model.training_hardware for model in models))
    for number, name in enumerate(hardware):
        marker = _HARDWARE_MARKERS[number % len(_HARDWARE_MARKERS)]
        points = []
        for index, model in enumerate(models):
            if model.training_hardware == name:
                points.append(_training_point(model))
                axes.plot(*points[-1], marker, color=_color(index), zorder=3)
        axes.plot([], [], marker, color="0.3", label=name)
        of_each = "Pareto front" if len(hardware) == 1 else "Pareto front of each machine"
        label = of_each if name == hardware[-1] else ""
        front = _plot_front(axes, pareto_front(points), label)
        lines += [*([point] for point in points), front]
    return lines


def _plot_front(axes: Axes, front: Sequence[Point], label: str) -> list[Point]:
    """Draw a Pareto front as a step line, and return its corners."""
    corners = [front[0]]
    for (_, gain), (cost, better) in pairwise(front):
        corners += [(cost, gain), (cost, better)]
    axes.plot(*zip(*corners, strict=True), "--", color="0.6", linewidth=1, zorder=1, label=label)
    return corners


def _mark_decades(axes: Axes) -> None:
    """Number 1, 2 and 5 of every decade, as plain numbers."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _latency_point(model: ModelFigures) -> Point:
    return model.latency_ms, 100 * model.accuracy


def _training_point(model: ModelFigures) -> Point:
    return model.training_seconds / 60, 100 * model.accuracy


def _heat_map(
    axes: Axes,
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    spec: str,
) -> None:
    """Draw percentages as colours with their numbers; a missing number has no colour."""
    axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(
        range(len(columns)),
        columns,
        rotation=45,
        ha="right",
        rotation_mode="anchor",
        parse_math=False,
    )
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "white" if value > 55 else "0.15"
            axes.text(
                column, row, f"{value:{spec}}", ha="center", va="center", color=color, fontsize=8
            )


def _draw_sheet(
    place: SubFigure,
    title: str,
    group: MistakeGroup,
    pictures: dict[int, RgbImage],
    names: _Lettering,
) -> None:
    """Draw the first images of a group, with their class and the predicted class."""
    shown = group.examples[:PICTURES]
    part = f", the first {len(shown)}" if len(shown) < group.images else ""
    place.suptitle(f"{title}: {group.images:,} images{part}", fontsize=10)
    panels = place.subplots(*_SHEET).flatten()
    for axes, example in zip(panels, shown, strict=False):
        axes.imshow(pictures[example.index])
        true, predicted = names.texts[example.true], names.texts[example.predicted]
        axes.set_xlabel(
            f"{true}\n\N{LEFT-TO-RIGHT MARK}→ {predicted}",
            fontsize=8,
            fontfamily=names.fonts,
            labelpad=2,
            parse_math=False,
        )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


@dataclass(frozen=True)
class PointLabel:
    """A text for the point at `place`, in the plot's units."""

    text: str
    place: tuple[float, float]
    color: str


def place_labels(axes: Axes, labels: Sequence[PointLabel], lines: Sequence[Line]) -> None:
    """Write every label at the free place nearest to its point.

    Args:
        axes: of a figure with its final size, layout and limits.
        labels: the texts.
        lines: lines in the plot's units that the labels should not cover; a line of one place is a
            marker.
    """
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    obstacles = np.concatenate([_along(axes, line) for line in lines])
    taken: list[Bbox] = []
    for label in sorted(labels, key=lambda label: -label.place[1]):
        text = axes.annotate(
            label.text,
            label.place,
            (0, 0),
            textcoords="offset pixels",
            ha="center",
            va="center",
            fontsize=_LABEL_FONT_SIZE,
            color=label.color,
        )
        text.set_in_layout(False)
        point = axes.transData.transform(label.place)
        box, distance = _best_box(text.get_window_extent(), point, axes.bbox, obstacles, taken)
        centre = ((box.x0 + box.x1) / 2 - point[0], (box.y0 + box.y1) / 2 - point[1])
        text.set_position(centre)
        if distance > _NEAR:
            _join(axes, label, point, box)
        taken.append(box)


def _best_box(
    size: Bbox, point: Pixels, frame: Bbox, obstacles: Pixels, taken: Sequence[Bbox]
) -> tuple[Bbox, float]:
    """Return the place of least cost for a text, and its distance from the point, in pixels."""

    def cost(candidate: tuple[Bbox, float]) -> float:
        box, distance = candidate
        inside = (obstacles > box.min).all(1) & (obstacles < box.max).all(1)
        covered = sum(box.overlaps(other) for other in taken)
        outside = not (frame.contains(*box.min) and frame.contains(*box.max))
        return (
            distance
            + _LINE_COST * int(inside.sum())
            + _LABEL_COST * covered
            + _OUTSIDE_COST * outside
        )

    return min(_candidates(size, point), key=cost)


def _candidates(size: Bbox, point: Pixels) -> list[tuple[Bbox, float]]:
    found = []
    for distance in _DISTANCES:
        for angle in _ANGLES:
            x = point[0] + math.cos(angle) * (size.width / 2 + distance)
            y = point[1] + math.sin(angle) * (size.height / 2 + distance)
            corner = (x - size.width / 2, y - size.height / 2)
            found.append((Bbox.from_bounds(*corner, size.width, size.height), float(distance)))
    return found


def _along(axes: Axes, line: Line) -> Pixels:
    """Return places on a line, in pixels and close together; the line is in the plot's units."""
    corners = axes.transData.transform(np.array(line, dtype=np.float64))
    parts = [corners[:1]]
    for start, end in pairwise(corners):
        count = max(2, int(np.hypot(*(end - start)) / _STEP))
        parts.append(np.linspace(start, end, count))
    return np.concatenate(parts)


def _join(axes: Axes, label: PointLabel, point: Pixels, box: Bbox) -> None:
    """Draw a thin line from a point to the nearest place of its label."""
    nearest = np.clip(point, box.min, box.max)
    line = axes.transData.inverted().transform([point, nearest])
    axes.plot(*line.T, color=label.color, linewidth=0.5, alpha=0.6, scalex=False, scaley=False)
