"""app.explore.confusion_matrix, by the pixels of the pictures that it returns."""

import numpy as np
import pytest
from numpy.typing import NDArray

from app.explore.confusion_matrix import Normalization, contact_sheet, draw_matrix, normalized
from tests.support.pictures import read_png

COUNTS = np.array([[8, 2, 0], [0, 0, 0], [5, 0, 15]])
LABELS = ("cat", "dog", "frog")


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        (None, [[8, 2, 0], [0, 0, 0], [5, 0, 15]]),
        ("true", [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]]),
        ("pred", [[8 / 13, 1, 0], [0, 0, 0], [5 / 13, 0, 1]]),
        ("all", [[8 / 30, 2 / 30, 0], [0, 0, 0], [5 / 30, 0, 0.5]]),
    ],
)
def test_normalization_is_that_of_scikit_learn(
    normalize: Normalization | None, expected: list[list[float]]
) -> None:
    found = normalized(COUNTS, normalize)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("normalize", [None, "true", "pred", "all"])
def test_matrix_without_images_stays_zero(normalize: Normalization | None) -> None:
    empty = np.zeros((3, 3), np.int64)
    assert (normalized(empty, normalize) == 0).all()
    assert read_png(draw_matrix(empty, LABELS, normalize)).shape[0] > 400


def cells(png: bytes, classes: int) -> NDArray[np.int64]:
    """The fill of every cell, uint8 [C,C,3], read just inside its upper left corner."""
    picture = read_png(png).astype(np.int64)
    # The square of the matrix is where the title's left edge is: find it by its first cell.
    column = int(np.flatnonzero((picture[90] != 255).any(axis=1))[0])
    row = 84
    end = int(np.flatnonzero((picture[row] != 255).any(axis=1))[-1]) + 2
    step = (end - column) // classes
    places = np.arange(classes) * step + 2
    return picture[np.ix_(row + places, column + places)]


def test_rows_are_true_classes_and_darker_cells_hold_more() -> None:
    counts = np.array([[9, 4], [1, 0]])
    light = cells(draw_matrix(counts, ("a", "b"), None), 2).sum(axis=2)
    assert light[0, 0] < light[0, 1] < light[1, 0] < light[1, 1]


def test_numbers_are_light_on_dark_cells_and_dark_on_light_ones() -> None:
    picture = read_png(draw_matrix(np.array([[9, 1], [1, 9]]), ("a", "b"), None))
    middle = slice(84 + 80, 84 + 140)
    left = int(np.flatnonzero((picture[90] != 255).any(axis=1))[0])
    assert picture[middle, left + 80 : left + 140].min(axis=2).max() == 255
    assert picture[middle, left + 300 : left + 360].max(axis=2).min() < 60


def test_picture_of_a_matrix_is_the_same_each_time() -> None:
    assert draw_matrix(COUNTS, LABELS, "true") == draw_matrix(COUNTS, LABELS, "true")


@pytest.mark.parametrize("classes", [1, 2, 10, 100])
@pytest.mark.parametrize("name", ["x", "a class with a very long name that does not end"])
def test_any_number_of_classes_and_long_names_fit(classes: int, name: str) -> None:
    counts = np.random.default_rng(0).integers(0, 99_999, (classes, classes))
    picture = read_png(draw_matrix(counts, [name] * classes, None))
    border = [picture[:4], picture[-4:], picture[:, :4], picture[:, -4:]]
    assert all((edge == 255).all() for edge in border)
    assert max(picture.shape) < 6000


def test_matrix_and_labels_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(3, 3\) for 2 labels"):
        draw_matrix(COUNTS, ("a", "b"), None)


def test_long_names_are_cut_where_the_picture_stays_readable() -> None:
    counts = np.eye(2, dtype=np.int64)
    first = draw_matrix(counts, ("n" * 60, "b"), None)
    assert first == draw_matrix(counts, ("n" * 24 + "z", "b"), None)
    assert first != draw_matrix(counts, ("n" * 24, "b"), None)


def test_names_in_any_letters_make_pictures_of_their_own() -> None:
    counts = np.eye(2, dtype=np.int64)
    names = ["cat", "grün", "grin", "猫", "犬", "قط", "🐈"]
    pictures = {draw_matrix(counts, (name, "dog"), None) for name in names}
    assert len(pictures) == len(names)


def test_names_in_several_fonts_stand_on_one_line() -> None:
    counts = np.eye(2, dtype=np.int64)
    picture = read_png(draw_matrix(counts, ("x", "ẋ"), None))
    below = picture[530:570].max(axis=2) < 128  # the cells end at 84 + 440
    middle = picture.shape[1] // 2
    left, right = np.argwhere(below[:, :middle]), np.argwhere(below[:, middle:])
    assert left[:, 0].max() == right[:, 0].max()
    assert left[:, 0].min() > right[:, 0].min()


def test_images_of_a_cell_stand_six_in_a_row() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
    picture = read_png(contact_sheet(images, 2))
    assert picture.shape == (2 * (2 * 5 + 1), 2 * (6 * 5 + 1), 3)
    np.testing.assert_array_equal(picture[2:10:2, 2:10:2], images[0])
    np.testing.assert_array_equal(picture[12:20:2, 12:20:2], images[7])


def test_cell_without_images_is_a_grey_square() -> None:
    picture = read_png(contact_sheet(np.zeros((0, 32, 32, 3), np.uint8), 3))
    assert picture.shape == (30, 30, 3)
    assert (picture == 128).all()
