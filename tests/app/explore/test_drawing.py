"""app.explore.drawing, by the pixels of the pictures that it returns."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.explore.drawing import (
    Normalization,
    confusion_matrix,
    filter_grid,
    normalized,
    single_filter,
)

GREY = (128, 128, 128)
COUNTS = np.array([[8, 2, 0], [0, 0, 0], [5, 0, 15]])
LABELS = ("cat", "dog", "frog")


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB"))


def weights(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def test_grid_has_a_place_and_a_gap_for_each_filter() -> None:
    picture = pixels(filter_grid(weights(5, 3, 3, 3), scale=4, columns=3))
    assert picture.shape == ((2 * 4 + 1) * 4, (3 * 4 + 1) * 4, 3)
    for gap in (picture[:4], picture[16:20], picture[:, :4], picture[:, 16:20]):
        assert (gap == GREY).all()
    # The sixth place is empty.
    assert (picture[20:, 36:] == GREY).all()


def test_grid_is_not_wider_than_its_filters() -> None:
    assert pixels(filter_grid(weights(2, 3, 3, 3), scale=1, columns=8)).shape == (5, 9, 3)


def test_each_filter_goes_from_its_own_smallest_to_its_own_largest_value() -> None:
    values = weights(2, 3, 3, 3)
    values[1] *= 100
    for index in range(2):
        tile = pixels(single_filter(values, index, scale=1))
        span = values[index].max() - values[index].min()
        expected = (values[index] - values[index].min()) / span * 255
        assert np.abs(tile.transpose(2, 0, 1) - expected).max() <= 0.51


def test_grid_shows_the_same_pixels_as_single_filters() -> None:
    values = weights(4, 3, 5, 2)
    grid = pixels(filter_grid(values, scale=2, columns=2))
    tile = pixels(single_filter(values, 3, scale=2))
    np.testing.assert_array_equal(grid[14:24, 8:12], tile)


def test_weights_are_enlarged_without_blending() -> None:
    tile = pixels(single_filter(weights(1, 3, 2, 2), 0, scale=5))
    assert tile.shape == (10, 10, 3)
    np.testing.assert_array_equal(tile, tile[::5, ::5].repeat(5, 0).repeat(5, 1))


def test_other_channel_counts_show_the_mean_absolute_weight() -> None:
    values = np.zeros((1, 2, 1, 3), np.float32)
    values[0, :, 0] = [[0, -1, 4], [0, 1, 0]]
    assert pixels(single_filter(values, 0, scale=1))[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_filter_of_one_value_is_mid_grey() -> None:
    assert (pixels(single_filter(np.full((1, 3, 3, 3), 9, np.float32), 0, scale=1)) == 128).all()


@pytest.mark.parametrize("index", [-1, 4])
def test_filter_that_does_not_exist_is_named(index: int) -> None:
    with pytest.raises(IndexError, match=f"filter {index} does not exist; there are 4"):
        single_filter(weights(4, 3, 3, 3), index, scale=1)


def test_scale_columns_and_shapes_without_a_picture_are_refused() -> None:
    with pytest.raises(ValueError, match="scale is 0"):
        filter_grid(weights(1, 3, 3, 3), scale=0, columns=1)
    with pytest.raises(ValueError, match="columns is 0"):
        filter_grid(weights(1, 3, 3, 3), scale=1, columns=0)
    with pytest.raises(ValueError, match="scale is 0"):
        single_filter(weights(1, 3, 3, 3), 0, scale=0)
    with pytest.raises(ValueError, match=r"\(0, 3, 3, 3\)"):
        filter_grid(weights(0, 3, 3, 3), scale=1, columns=1)


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
    assert pixels(confusion_matrix(empty, LABELS, normalize)).shape[0] > 400


def cells(png: bytes, classes: int) -> NDArray[np.int64]:
    """The fill of every cell, uint8 [C,C,3], read just inside its upper left corner."""
    picture = pixels(png).astype(np.int64)
    # The square of the matrix is where the title's left edge is: find it by its first cell.
    column = int(np.flatnonzero((picture[90] != 255).any(axis=1))[0])
    row = 84
    end = int(np.flatnonzero((picture[row] != 255).any(axis=1))[-1]) + 2
    step = (end - column) // classes
    places = np.arange(classes) * step + 2
    return picture[np.ix_(row + places, column + places)]


def test_rows_are_true_classes_and_darker_cells_hold_more() -> None:
    counts = np.array([[9, 4], [1, 0]])
    light = cells(confusion_matrix(counts, ("a", "b"), None), 2).sum(axis=2)
    assert light[0, 0] < light[0, 1] < light[1, 0] < light[1, 1]


def test_numbers_are_light_on_dark_cells_and_dark_on_light_ones() -> None:
    picture = pixels(confusion_matrix(np.array([[9, 1], [1, 9]]), ("a", "b"), None))
    middle = slice(84 + 80, 84 + 140)
    left = int(np.flatnonzero((picture[90] != 255).any(axis=1))[0])
    assert picture[middle, left + 80 : left + 140].min(axis=2).max() == 255
    assert picture[middle, left + 300 : left + 360].max(axis=2).min() < 60


def test_picture_of_a_matrix_is_the_same_each_time() -> None:
    assert confusion_matrix(COUNTS, LABELS, "true") == confusion_matrix(COUNTS, LABELS, "true")


@pytest.mark.parametrize("classes", [1, 2, 10, 100])
@pytest.mark.parametrize("name", ["x", "a class with a very long name that does not end"])
def test_any_number_of_classes_and_long_names_fit(classes: int, name: str) -> None:
    counts = np.random.default_rng(0).integers(0, 99_999, (classes, classes))
    picture = pixels(confusion_matrix(counts, [name] * classes, None))
    border = [picture[:4], picture[-4:], picture[:, :4], picture[:, -4:]]
    assert all((edge == 255).all() for edge in border)
    assert max(picture.shape) < 6000


def test_matrix_and_labels_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(3, 3\) for 2 labels"):
        confusion_matrix(COUNTS, ("a", "b"), None)


def test_long_names_are_cut_where_the_picture_stays_readable() -> None:
    counts = np.eye(2, dtype=np.int64)
    first = confusion_matrix(counts, ("n" * 60, "b"), None)
    assert first == confusion_matrix(counts, ("n" * 24 + "z", "b"), None)
    assert first != confusion_matrix(counts, ("n" * 24, "b"), None)
