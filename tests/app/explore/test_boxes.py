import itertools

import numpy as np
import pytest

from app.explore.boxes import LEAST_SIDE, Box, draw_boxes, find_place
from app.explore.palette import COLOURS, colour_of, ink_on, luminance
from tests.support.pictures import read_png

CLASSES = ("red cell", "white cell", "platelet")


def grey(height: int = 480, width: int = 640) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((height, width, 3), 128, np.uint8)


def test_box_is_drawn_where_the_object_is() -> None:
    drawn = read_png(draw_boxes(grey(), [Box((100, 80, 60, 40), 1, 0.9)], CLASSES))
    assert drawn.shape == (480, 640, 3)
    colour = np.array(colour_of(1))
    assert (drawn[80:120, 100] == colour).all()
    assert (drawn[80:120, 159] == colour).all()
    assert (drawn[119, 100:160] == colour).all()
    assert (drawn[90:110, 110:150] == 128).all()


def test_picture_without_objects_stays_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    assert (read_png(draw_boxes(picture, [], CLASSES)) == picture).all()


def test_small_picture_is_enlarged_by_a_whole_number() -> None:
    drawn = read_png(draw_boxes(grey(100, 70), [Box((10, 20, 30, 40), 0, 0.5)], CLASSES))
    assert drawn.shape == (500, 350, 3)
    assert max(drawn.shape) >= LEAST_SIDE
    assert (drawn[150, 50] == np.array(colour_of(0))).all()


@pytest.mark.parametrize("count", [5, 40, 150])
def test_labels_do_not_hide_each_other(count: int) -> None:
    generator = np.random.default_rng(count)
    size, picture = (90, 20), (640, 480)
    taken: list[tuple[int, int, int, int]] = []
    for _ in range(count):
        left, upper = (int(each) for each in generator.integers(0, (600, 440)))
        place = find_place(size, (left, upper, left + 40, upper + 40), taken, picture)
        if place is not None:
            taken.append(place)
    for first, second in itertools.combinations(taken, 2):
        apart = first[2] <= second[0] or second[2] <= first[0]
        assert apart or first[3] <= second[1] or second[3] <= first[1]
    for left, upper, right, lower in taken:
        assert 0 <= left < right <= picture[0]
        assert 0 <= upper < lower <= picture[1]
    assert len(taken) >= min(count, 40)


def test_many_objects_in_one_place_are_all_drawn() -> None:
    sides = range(20, 260, 4)
    boxes = [Box((300, 200, side, side), 0, 0.5) for side in sides]
    drawn = read_png(draw_boxes(grey(), boxes, CLASSES))
    for side in sides:
        edge = drawn[200 : 200 + side, 300 + side - 2 : 300 + side + 1]
        assert (edge == colour_of(0)).all(axis=2).any(axis=1).mean() > 0.2, (
            side
        )  # labels hide a part


@pytest.mark.parametrize(
    ("bbox", "row", "column"),
    [
        ((-5, 200, 10, 100), 250, 4),
        ((600, 200, 90, 100), 250, 600),
        ((100, 300, 80, 400), 440, 100),
        ((0, 0, 640, 480), 240, 0),
    ],
)
def test_box_at_the_border_is_drawn_as_far_as_it_goes(
    bbox: tuple[float, float, float, float], row: int, column: int
) -> None:
    drawn = read_png(draw_boxes(grey(), [Box(bbox, 0, 0.5)], CLASSES))
    near = drawn[row, max(column - 1, 0) : column + 2]
    assert (near == colour_of(0)).all(axis=1).any()


def test_box_without_an_area_is_drawn() -> None:
    without = read_png(draw_boxes(grey(), [], CLASSES))
    assert (read_png(draw_boxes(grey(), [Box((300, 300, 0, 0), 0, 0.5)], CLASSES)) != without).any()


def test_names_in_other_letters_are_drawn() -> None:
    names = ("Zelle", "白血球", "🩸")
    boxes = [Box((100 * index + 10, 100, 80, 80), index, 0.5) for index in range(3)]
    drawn = read_png(draw_boxes(grey(), boxes, names))
    assert drawn.shape == (480, 640, 3)
    labels = [drawn[70:100, 100 * index : 100 * index + 95] for index in range(3)]
    for index, label in enumerate(labels):
        ink = (label == ink_on(colour_of(index))).all(axis=2)
        assert ink.sum() > 20, names[index]


def test_picture_too_small_for_a_label_is_drawn_without_it() -> None:
    assert find_place((90, 20), (0, 0, 4, 4), [], (60, 480)) is None


def test_labels_are_readable_on_every_colour() -> None:
    for colour in COLOURS:
        lighter, darker = sorted((luminance(colour), luminance(ink_on(colour))), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG 2.2, 1.4.3


@pytest.mark.parametrize(
    "vision",
    [
        ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
        ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
        ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
    ],
    ids=["protan", "deutan", "tritan"],
)
def test_colours_differ_in_any_kind_of_colour_vision(
    vision: tuple[tuple[float, ...], ...],
) -> None:
    """Simulated after Machado et al. 2009, full severity, on linear light."""
    linear = (np.array(COLOURS) / 255) ** 2.2
    seen = np.clip(linear @ np.array(vision).T, 0, 1) ** (1 / 2.2) * 255
    for first, second in itertools.combinations(seen, 2):
        assert np.abs(first - second).max() > 25
