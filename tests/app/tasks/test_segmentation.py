"""Objects told apart: seeds, floods, and the parts without a seed."""

import numpy as np
import pytest
from numpy.typing import NDArray

from app.artifact.segmentation import Instances
from app.tasks import segmentation
from app.tasks.segmentation import classify_objects, number_objects

RULE = Instances(least_probability=0.5, seed_depth=0.5, least_area=1)


def maps(foreground: list[str]) -> NDArray[np.float32]:
    """Probabilities of background and one class; each digit is a tenth."""
    found = np.array([[int(digit) for digit in row] for row in foreground], np.float32) / 10
    return np.stack([1 - found, found]).astype(np.float32)


def depths(rows: list[str]) -> NDArray[np.float32]:
    return (np.array([[int(digit) for digit in row] for row in rows]) / 10).astype(np.float32)


def test_touching_objects_meet_where_they_are_shallow() -> None:
    found = number_objects(maps(["9999999", "9999999"]), depths(["3832493", "2721382"]), RULE)
    assert (found[:, :3] == 1).all()
    assert (found[:, 4:] == 2).all()
    assert set(found[:, 3].tolist()) <= {1, 2}


def test_part_without_a_seed_is_an_object() -> None:
    found = number_objects(maps(["990990999"]), depths(["800100908"]), RULE)
    assert found.tolist() == [[1, 1, 0, 4, 4, 0, 2, 2, 3]]


def test_corners_do_not_connect() -> None:
    found = number_objects(maps(["90", "09"]), depths(["90", "09"]), RULE)
    assert found.tolist() == [[1, 0], [0, 2]]
    without_seed = number_objects(maps(["90", "09"]), depths(["90", "00"]), RULE)
    assert without_seed.tolist() == [[1, 0], [0, 2]]


def test_deep_background_is_no_seed() -> None:
    assert not number_objects(maps(["4444"]), depths(["9999"]), RULE).any()
    assert number_objects(maps(["949"]), depths(["999"]), RULE).tolist() == [[1, 0, 2]]


@pytest.mark.parametrize(("least", "left"), [(1, 3), (2, 2), (3, 1), (4, 0)])
def test_small_objects_are_left_out_and_the_others_numbered(least: int, left: int) -> None:
    rule = RULE.model_copy(update={"least_area": least})
    found = number_objects(maps(["909909990"]), depths(["909909990"]), rule)
    assert sorted(set(found.ravel().tolist()) - {0}) == list(range(1, left + 1))


def test_class_is_the_most_probable_over_all_pixels() -> None:
    probabilities = np.array([[[0.1, 0.1, 0.1]], [[0.5, 0.5, 0.1]], [[0.4, 0.4, 0.8]]], np.float32)
    labels, scores = classify_objects(probabilities, np.array([[1, 1, 1]], np.int32))
    assert labels.tolist() == [1]
    assert scores == pytest.approx([1.6 / 3])


def test_no_objects_have_no_classes() -> None:
    labels, scores = classify_objects(maps(["00"]), np.zeros((1, 2), np.int32))
    assert (labels.shape, scores.shape) == ((0,), (0,))


def test_object_grows_into_its_surroundings_alone() -> None:
    numbers = np.array([[0, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0]], np.uint16)
    outside = np.ones((3, 4), np.bool_)
    outside[1, 2] = False  # of an object that was left out
    grown = segmentation._grown(numbers, outside)
    assert grown.tolist() == [[1, 1, 1, 2], [1, 1, 0, 2], [1, 1, 1, 2]]
