import numpy as np
import pytest
from numpy.typing import NDArray

from training.tasks.segmentation_metrics import (
    Counts,
    boundary_f1,
    count_objects,
    count_pixels,
    mean_overlap,
    overlaps,
)


def square(upper: int, left: int, side: int, number: int = 1) -> NDArray[np.int64]:
    numbers = np.zeros((40, 60), np.int64)
    numbers[upper : upper + side, left : left + side] = number
    return numbers


def test_overlap_is_of_all_pixels_that_count() -> None:
    truth, found = square(0, 0, 10), square(0, 5, 10)
    truth[30:] = -1
    found[30:] = 1
    matrix = count_pixels(truth, found, 2)
    assert matrix.sum() == 30 * 60
    assert overlaps(matrix)[1] == pytest.approx(50 / 150)


def test_class_that_is_nowhere_is_no_part_of_the_mean() -> None:
    matrix = np.array([[50, 0, 0], [0, 20, 0], [0, 0, 0]])
    assert np.isnan(overlaps(matrix)[2])
    assert mean_overlap(matrix) == 1
    assert mean_overlap(np.diag([9, 0, 0])) == 0


def test_objects_are_shared_if_they_overlap_by_more_than_half() -> None:
    truth = square(0, 0, 10) + square(20, 20, 10, 2) + square(20, 40, 10, 3)
    found = square(0, 2, 10, 5) + square(20, 24, 10, 4)
    assert count_objects(truth, found) == Counts(both=1, found_alone=1, missed=2)
    assert Counts(both=1, found_alone=1, missed=2).f1 == pytest.approx(2 / 5)


def test_one_region_over_two_objects_is_none_of_them() -> None:
    truth = square(0, 0, 10) + square(0, 10, 10, 2)
    found = np.minimum(truth, 1)
    assert count_objects(truth, found) == Counts(both=0, found_alone=1, missed=2)


def test_pictures_without_objects_agree() -> None:
    assert count_objects(square(0, 0, 0), square(0, 0, 0)) == Counts()
    assert Counts().f1 == 1


def test_border_may_lie_two_pixels_away_and_not_three() -> None:
    truth = square(10, 10, 20) > 0
    assert boundary_f1(truth, square(10, 12, 20) > 0) == 1
    apart = boundary_f1(truth, square(10, 13, 20) > 0)
    assert apart is not None
    assert 0.5 < apart < 0.8
    half = boundary_f1(truth, (square(10, 10, 20) > 0) & (np.arange(60) < 20))
    assert half is not None
    assert 0.5 < half < 0.8


def test_border_of_nothing_is_unknown_and_missing_one_is_zero() -> None:
    nothing = np.zeros((40, 60), np.bool_)
    assert boundary_f1(nothing, nothing) is None
    assert boundary_f1(square(0, 0, 9) > 0, nothing) == 0
