"""Pictures of masks and bars."""

import io

import numpy as np
from PIL import Image

from app.explore.bars import draw_bars
from app.explore.masks import draw_masks, index_png
from app.explore.palette import colour_of
from tests.support.pictures import read_png


def test_palette_has_a_colour_for_each_of_255_classes() -> None:
    classes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    with Image.open(io.BytesIO(index_png(classes, 255))) as picture:
        assert picture.mode == "P"
        assert (np.asarray(picture) == classes).all()
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert tuple(colours[0]) == (0, 0, 0)
    assert tuple(colours[255]) == colour_of(254)


def test_line_separates_objects_of_one_colour() -> None:
    regions = np.zeros((500, 500), np.uint16)
    regions[100:200, 100:200] = 1
    regions[100:200, 200:300] = 2
    grey = np.full((500, 500, 3), 200, np.uint8)
    drawn = read_png(draw_masks(grey, regions, [3, 3]))
    row = drawn[150]
    assert (row[[199, 200]] == 0).all()
    assert (row[[198, 201]] == colour_of(3)).all()
    fill = np.rint(0.6 * 200 + 0.4 * np.array(colour_of(3)))
    assert (row[[150, 250]] == fill).all()
    assert (drawn[50] == 200).all()


def test_small_picture_is_enlarged() -> None:
    drawn = read_png(draw_masks(np.zeros((1, 50, 3), np.uint8), np.ones((1, 50), int), [0]))
    assert drawn.shape == (10, 500, 3)


def test_bars_are_as_long_as_their_values() -> None:
    drawn = read_png(draw_bars("IoU", ["cell", "platelet", "nothing"], [1.0, 0.5, 0.0]))
    lengths = [int((drawn == colour_of(index)).all(axis=2).sum(axis=1).max()) for index in range(3)]
    assert abs(lengths[0] - 2 * lengths[1]) < 4
    assert lengths[2] < 3
