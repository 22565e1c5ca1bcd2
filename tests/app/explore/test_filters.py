"""app.explore.filters, by the pixels of the pictures that it returns."""

import numpy as np
import pytest
from numpy.typing import NDArray

from app.explore.filters import filter_grid, filter_tiles
from tests.support.pictures import read_png

GREY = (128, 128, 128)


def weights(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def test_grid_has_a_place_and_a_gap_for_each_filter() -> None:
    picture = read_png(filter_grid(weights(5, 3, 3, 3), scale=4, columns=3))
    assert picture.shape == ((2 * 4 + 1) * 4, (3 * 4 + 1) * 4, 3)
    for gap in (picture[:4], picture[16:20], picture[:, :4], picture[:, 16:20]):
        assert (gap == GREY).all()
    # The sixth place is empty.
    assert (picture[20:, 36:] == GREY).all()


def test_grid_is_not_wider_than_its_filters() -> None:
    assert read_png(filter_grid(weights(2, 3, 3, 3), scale=1, columns=8)).shape == (5, 9, 3)


def test_each_filter_goes_from_its_own_smallest_to_its_own_largest_value() -> None:
    values = weights(2, 3, 3, 3)
    values[1] *= 100
    for filter_values, tile in zip(values, filter_tiles(values), strict=True):
        span = filter_values.max() - filter_values.min()
        expected = (filter_values - filter_values.min()) / span * 255
        assert np.abs(tile.transpose(2, 0, 1) - expected).max() <= 0.51


def test_grid_shows_each_weight_as_a_square_without_blending() -> None:
    values = weights(4, 3, 5, 2)
    grid = read_png(filter_grid(values, scale=2, columns=2))
    tile = filter_tiles(values)[3]
    assert tile.shape == (5, 2, 3)
    np.testing.assert_array_equal(grid[14:24, 8:12], tile.repeat(2, 0).repeat(2, 1))


def test_other_channel_counts_show_the_mean_absolute_weight() -> None:
    values = np.zeros((1, 2, 1, 3), np.float32)
    values[0, :, 0] = [[0, -1, 4], [0, 1, 0]]
    assert filter_tiles(values)[0, 0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_filter_of_one_value_is_mid_grey() -> None:
    assert (filter_tiles(np.full((1, 3, 3, 3), 9, np.float32)) == 128).all()


def test_scale_columns_and_shapes_without_a_picture_are_refused() -> None:
    with pytest.raises(ValueError, match="scale is 0"):
        filter_grid(weights(1, 3, 3, 3), scale=0, columns=1)
    with pytest.raises(ValueError, match="columns is 0"):
        filter_grid(weights(1, 3, 3, 3), scale=1, columns=0)
    with pytest.raises(ValueError, match=r"\(0, 3, 3, 3\)"):
        filter_grid(weights(0, 3, 3, 3), scale=1, columns=1)
