import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from app.explore import lettering
from tests.support.fonts import TWO_LETTERS, forget
from tests.support.pictures import read_png
from training.compare.compare import ModelFigures
from training.compare.overlap import MistakeGroup, Overlap, SharedMistake
from training.compare.plots import (
    PointLabel,
    draw_accuracy_by_class,
    draw_error_overlap,
    place_labels,
)

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


@pytest.fixture(autouse=True)
def _look_for_fonts_again() -> Iterator[None]:
    yield
    forget()


NAMES = [
    *("cat", "grün", "gran", "łódź", "кот", "קוף", "ףוק", "قط", "猫", "犬", "हाथी", "🐈", "🐕"),
    *("$a$", "a", "$\\x$", "a\nb", "a b", "a\u200bb", "\ud800", "n" * 30),
]


def _model(recall_by_class: dict[str, float]) -> ModelFigures:
    return ModelFigures(
        model="net/1",
        architecture="fc",
        parameters=1,
        macs=1,
        views=1,
        onnx_bytes=1,
        torchscript_bytes=1,
        training_seconds=1.0,
        training_hardware="cpu",
        epochs=1,
        training_images=1,
        accuracy=0.5,
        cross_entropy=1.0,
        ece=0.1,
        recall_by_class=recall_by_class,
        latency_ms=1.0,
        images_per_second=1.0,
        int8=None,
        confidence=None,
        history=(),
    )


def _overlap(names: Sequence[str]) -> Overlap:
    mistakes = tuple(SharedMistake(0, true, predicted) for true, predicted in pairwise(names))
    group = MistakeGroup(len(mistakes), mistakes)
    return Overlap(("a/1", "b/1"), 1, (1, 1), (0, 0, 1), ((1.0, 1.0), (1.0, 1.0)), group, None)


def _drawn_names(path: Path, names: Sequence[str]) -> bytes:
    """Return the pixels of a picture of the recall of these classes."""
    draw_accuracy_by_class([_model(dict.fromkeys(names, 0.5))], path)
    return read_png(path.read_bytes()).tobytes()


def test_names_of_different_classes_look_different(tmp_path: Path) -> None:
    """matplotlib's warning of a letter that its fonts lack is an error."""
    pictures = {_drawn_names(tmp_path / "a.png", ["dog", name]) for name in NAMES}
    assert len(pictures) == len(NAMES)


def _drawn_errors(path: Path, names: Sequence[str]) -> bytes:
    """Return the pixels of a picture of errors whose classes are these."""
    draw_error_overlap(_overlap(names), {0: np.zeros((8, 8, 3), np.uint8)}, path)
    return read_png(path.read_bytes()).tobytes()


def test_errors_name_classes_of_any_letters(tmp_path: Path) -> None:
    pictures = {_drawn_errors(tmp_path / "a.png", ["dog", name]) for name in NAMES}
    assert len(pictures) == len(NAMES)


@pytest.mark.skipif(sys.platform != "linux", reason="the folder of fonts is set with XDG_DATA_HOME")
def test_font_of_the_system_is_used_for_letters_that_others_lack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    escaped = _drawn_names(tmp_path / "a.png", ["字", "cat"])
    (tmp_path / "fonts").mkdir()
    shutil.copy(TWO_LETTERS, tmp_path / "fonts" / lettering.SYSTEM[0])
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    forget()
    written = _drawn_names(tmp_path / "b.png", ["字", "cat"])
    assert len(written) < len(escaped)
    assert _drawn_errors(tmp_path / "c.png", ["cat", "字"])  # without a warning
