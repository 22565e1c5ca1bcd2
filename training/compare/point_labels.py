"""Names beside the points of a plot, placed where they cover neither points nor one another.

Greedy: from the highest point down, each label takes the free place nearest to its point. Knows
nothing of models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

FONT_SIZE = 8
_DISTANCES = (9, 14, 20, 32, 46, 62)
_ANGLES = tuple(math.radians(degrees) for degrees in range(0, 360, 30))
_NEAR = 14
"""Pixels between point and label from which on a line joins them."""

_STEP = 4
"""Pixels between the places of a line that a label must not cover."""

_LABEL_COST, _LINE_COST, _OUTSIDE_COST = 1000.0, 15.0, 5000.0
"""What covering another label, a place of a line or the frame costs, in pixels of distance."""

Pixels = NDArray[np.float64]
Path = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class PointLabel:
    """A text for the point at `place`, in the plot's own units."""

    text: str
    place: tuple[float, float]
    color: str


def place_labels(axes: Axes, labels: Sequence[PointLabel], lines: Sequence[Path]) -> None:
    """Write every label beside its point; the plot's limits must not change any more.

    Args:
        axes: of a figure that has its final size and layout.
        labels: what to write.
        lines: what the labels should not cover: paths in the plot's own units; a path of one
            place is a marker.
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
            fontsize=FONT_SIZE,
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
    """Return the cheapest place for a text and its distance from the point, in pixels."""

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


def _along(axes: Axes, line: Path) -> Pixels:
    """Return places in pixels, close to one another, on a path in the plot's own units."""
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
