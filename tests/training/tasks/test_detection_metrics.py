from dataclasses import dataclass

import numpy as np
import pytest

from training.data.annotated import Objects, objects_of
from training.tasks.detection_metrics import Found, confusions, match, measure


@dataclass
class Picture:
    objects: Objects
    height: int = 100
    width: int = 200


def found(*rows: tuple[float, float, float, float, float, int]) -> Found:
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Found(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


TWO = objects_of([[10, 10, 40, 40], [100, 20, 30, 60]], [0, 1], [False, False], None)


def test_boxes_at_their_objects_have_a_precision_of_one() -> None:
    boxes = found((10, 10, 40, 40, 0.9, 0), (100, 20, 30, 60, 0.4, 1))
    precision = measure([boxes], [Picture(TWO)], 2)
    assert (precision.map, precision.map50) == (1, 1)
    assert precision.curves.min() == 1


def test_a_box_that_overlaps_by_three_quarters_counts_up_to_that_overlap() -> None:
    boxes = found((10, 10, 40, 30, 0.9, 0))
    one = objects_of([[10, 10, 40, 40]], [0], [False], None)
    precision = measure([boxes], [Picture(one)], 1)
    assert precision.map50 == 1
    assert precision.map == pytest.approx(0.6)  # 0.5, 0.55, … 0.75 of ten overlaps


def test_a_better_wrong_box_halves_the_precision() -> None:
    boxes = found((150, 60, 20, 20, 0.9, 0), (10, 10, 40, 40, 0.5, 0))
    one = objects_of([[10, 10, 40, 40]], [0], [False], None)
    assert measure([boxes], [Picture(one)], 1).map50 == pytest.approx(0.5)


def test_a_class_without_objects_is_no_part_of_the_mean() -> None:
    boxes = found((10, 10, 40, 40, 0.9, 0))
    one = objects_of([[10, 10, 40, 40]], [0], [False], None)
    precision = measure([boxes], [Picture(one)], 2)
    assert precision.map == 1
    assert np.isnan(precision.by_class[1])


def test_no_boxes_have_a_precision_of_zero() -> None:
    assert measure([found()], [Picture(TWO)], 2).map == 0


def test_an_object_is_found_once_by_the_best_box_of_its_class() -> None:
    boxes = found((10, 10, 40, 40, 0.5, 0), (11, 10, 40, 40, 0.8, 0), (100, 20, 30, 60, 0.9, 0))
    right, counts = match(boxes, TWO)
    assert right.tolist() == [False, True, False]
    assert counts.all()


def test_a_box_in_a_crowd_counts_for_nothing() -> None:
    crowd = objects_of([[0, 0, 100, 100], [120, 0, 20, 20]], [0, 0], [True, False], None)
    boxes = found((30, 30, 20, 20, 0.9, 0), (120, 0, 20, 20, 0.8, 0), (150, 60, 20, 20, 0.7, 0))
    right, counts = match(boxes, crowd)
    assert right.tolist() == [False, True, False]
    assert counts.tolist() == [False, True, True]
    assert confusions(boxes, crowd, 1, 0.5).tolist() == [[1, 0], [1, 0]]


def test_confusions_count_classes_background_and_what_is_missed() -> None:
    boxes = found((10, 10, 40, 40, 0.9, 1), (160, 0, 20, 20, 0.8, 0), (100, 20, 30, 60, 0.2, 1))
    matrix = confusions(boxes, TWO, 2, threshold=0.5)
    assert matrix.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
