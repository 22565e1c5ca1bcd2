from itertools import combinations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from training.compare.plots import PointLabel, place_labels

CROWD = [(1.0, 90.0), (1.05, 90.3), (1.1, 90.1), (1.02, 89.8), (9.0, 95.0), (0.2, 50.0)]


def _boxes(figure: Figure) -> list[Bbox]:
    figure.draw_without_rendering()
    texts = [child for child in figure.axes[0].get_children() if isinstance(child, Annotation)]
    assert {text.get_text() for text in texts} == {f"network-{n}/1" for n in range(len(CROWD))}
    return [text.get_window_extent() for text in texts]


def _drawn() -> Figure:
    figure = Figure(figsize=(7, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot(*zip(*CROWD, strict=True), "o")
    labels = [PointLabel(f"network-{n}/1", place, "k") for n, place in enumerate(CROWD)]
    place_labels(axes, labels, [[place] for place in CROWD])
    return figure


def test_labels_of_a_crowd_do_not_cover_one_another() -> None:
    assert not [pair for pair in combinations(_boxes(_drawn()), 2) if pair[0].overlaps(pair[1])]


def test_labels_cover_no_point_and_stay_in_the_plot() -> None:
    figure = _drawn()
    axes = figure.axes[0]
    points = axes.transData.transform(np.array(CROWD))
    for box in _boxes(figure):
        assert not [point for point in points if box.contains(*point)]
        assert axes.bbox.contains(*box.min)
        assert axes.bbox.contains(*box.max)
