import numpy as np
import pytest

from training.tasks.calibration import best_threshold, calibration_error, fit_scores


def test_scores_that_are_too_high_are_lowered_for_their_class_alone() -> None:
    random = np.random.default_rng(0)
    scores = random.uniform(0.05, 0.95, 4000)
    labels = random.integers(0, 2, 4000)
    truth = np.where(labels == 0, scores, scores / 2)
    right = random.random(4000) < truth
    slope, intercept = fit_scores(scores, right, labels, 2)
    logits = np.log(scores / (1 - scores)) * slope.numpy()[labels] + intercept.numpy()[labels]
    fitted = 1 / (1 + np.exp(-logits))
    assert calibration_error(scores, right) > 0.08
    assert calibration_error(fitted, right) < 0.03
    assert slope[0].item() == pytest.approx(1, abs=0.1)


def test_class_without_boxes_keeps_its_scores() -> None:
    slope, intercept = fit_scores(np.array([0.9]), np.array([True]), np.array([0]), 2)
    assert (slope[1].item(), intercept[1].item()) == (1, 0)


def test_better_boxes_keep_higher_scores_even_if_they_are_wrong() -> None:
    scores = np.linspace(0.05, 0.95, 200)
    right = scores < 0.5
    slope, intercept = fit_scores(scores, right, np.zeros(200, np.int64), 1)
    assert slope.item() > 0
    logits = np.log(scores / (1 - scores)) * slope.item() + intercept.item()
    assert calibration_error(1 / (1 + np.exp(-logits)), right) < 0.1
    assert calibration_error(scores, right) > 0.4


def test_error_is_the_distance_of_score_and_part_that_is_right() -> None:
    assert calibration_error(np.full(10, 0.7), np.arange(10) < 4) == pytest.approx(0.3)
    assert calibration_error(np.zeros(0), np.zeros(0, np.bool_)) == 0


def test_threshold_lies_below_the_last_box_that_pays() -> None:
    scores = np.array([0.9, 0.8, 0.3, 0.2])
    assert best_threshold(scores, np.array([True, True, False, False]), 2) == 0.55
    assert best_threshold(scores, np.array([False] * 4), 2) == 0.5


def test_threshold_keeps_the_last_box_that_pays_and_not_the_next() -> None:
    scores = np.array([0.5006, 0.5005, 0.1])
    threshold = best_threshold(scores, np.array([True, False, False]), 1)
    assert 0.5005 < threshold <= 0.5006
