"""Thresholds and figures of confidence, on made answers whose chances are known."""

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta

from app.artifact.manifest import Confidence, SetMethod
from app.artifact.tensors import Images, Outputs
from app.tasks.classification import class_scores, find_threshold, prediction_sets
from tests.support.tiny_networks import (
    DEVIATION,
    MEAN,
    TEMPERATURE,
    flat_network,
    some_images,
    tiny_network,
)
from training.cli import ENOUGH_OF_A_CLASS
from training.evaluate import Answered
from training.export import confidence
from training.export.confidence import auroc, fit_ood_score, measure_confidence
from training.export.graphs import ServedNetwork

Scores = NDArray[np.float32]
METHODS = get_args(SetMethod)


def _pairwise(known: Scores, foreign: Scores) -> float:
    """The part of pairs in which the foreign image has the higher score, by looking at each."""
    higher = (foreign[:, None] > known).mean()
    return float(higher + (foreign[:, None] == known).mean() / 2)


@pytest.mark.parametrize("levels", [3, 40, 100_000])
def test_auroc_is_how_many_pairs_are_told_apart(levels: int) -> None:
    random = np.random.default_rng(levels)
    known = random.integers(0, levels, 211).astype(np.float32)
    foreign = (random.integers(0, levels, 97) * 1.3).astype(np.int64).astype(np.float32)
    assert auroc(known, foreign) == pytest.approx(_pairwise(known, foreign), abs=1e-6)


def test_auroc_is_one_for_all_above_and_half_for_all_alike() -> None:
    known, foreign = np.zeros(7, np.float32), np.ones(3, np.float32)
    assert auroc(known, foreign) == 1
    assert auroc(foreign, known) == 0
    assert auroc(known, known[:3]) == 0.5


def _answered(count: int, seed: int) -> Answered:
    """Answers of five classes, right as often as they say, and scores of no pattern."""
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet([0.3] * 5, count)
    labels = np.array([random.choice(5, p=row) for row in probabilities])
    images = random.integers(0, 256, (count, 4, 4, 3), np.uint8)
    scores = random.normal(size=count).astype(np.float32)
    return Answered(images, labels, Outputs.of_classes(probabilities.astype(np.float32), scores))


def _by_brightness(images: Images) -> Outputs:
    """A graph whose score is -2 for black images and 2 for white ones."""
    scores = images.mean(axis=(1, 2, 3)).astype(np.float32) * np.float32(4 / 255) - 2
    return Outputs.of_classes(np.full((len(images), 5), 0.2, np.float32), scores)


def _grey(levels: list[int]) -> Images:
    return np.array(levels, np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)


FOREIGN = {"bright": _grey([250, 240, 128] * 200), "dark": _grey([5])}
HELDOUT, TEST = _answered(4000, 0), _answered(4000, 1)


@pytest.fixture(scope="module")
def found() -> Confidence:
    return measure_confidence(HELDOUT, TEST, FOREIGN, _by_brightness)


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_sets_hold_the_true_class_of_test_images_as_often_as_asked(
    found: Confidence, method: SetMethod
) -> None:
    measured = [item for item in found.conformal.measured if item.method == method]
    assert [item.wanted for item in measured] == [0.9, 0.95, 0.99]
    for item in measured:
        assert item.found == pytest.approx(item.wanted, abs=0.015)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_measured_is_what_the_written_thresholds_do(
    found: Confidence, method: SetMethod
) -> None:
    for item in (item for item in found.conformal.measured if item.method == method):
        threshold = find_threshold(found.conformal, item.wanted, method)
        assert threshold is not None
        sets = prediction_sets(TEST.outputs.probabilities, TEST.images, method, threshold)
        assert item.found == pytest.approx(sets[np.arange(4000), TEST.labels].mean(), abs=1e-6)
        assert item.classes == pytest.approx(sets.sum(1).mean(), abs=1e-6)
        assert item.empty == pytest.approx((~sets.any(1)).mean(), abs=1e-6)
        held = [sets[TEST.labels == label, label].mean() for label in range(5)]
        assert item.worst_class == pytest.approx(min(held), abs=1e-6)
        assert min(held) < item.found


def test_thresholds_of_a_class_are_of_its_heldout_images(found: Confidence) -> None:
    scores = 1 - HELDOUT.outputs.probabilities.astype(np.float64)
    assert len(found.conformal.class_conditional) == 5
    for label, thresholds in enumerate(found.conformal.class_conditional):
        own = scores[HELDOUT.labels == label, label]
        assert list(thresholds) == sorted(thresholds)
        held = (own <= thresholds[89]).sum()
        assert beta.sf(0.9, held, len(own) - held + 1) >= 0.9
        assert beta.sf(0.9, held - 1, len(own) - held + 2) < 0.9


def test_thresholds_of_nine_classes_in_ten_cover_as_often_as_they_promise() -> None:
    images, chance = np.zeros((2000, 1, 1, 3), np.uint8), np.random.default_rng(0).random(2000)
    answers = np.stack([chance, 1 - chance], axis=1).astype(np.float32)
    labels = np.arange(2000) % 2
    covered = []
    for part in np.array_split(np.arange(2000), 20):
        few = Answered(
            images[part], labels[part], Outputs.of_classes(answers[part], answers[part, 0])
        )
        found = measure_confidence(few, few, {}, _by_brightness)
        (first, second) = (each[79] for each in found.conformal.class_conditional)
        covered += [first, second]  # a score is uniform, so a threshold is the part it covers
    assert np.mean(np.array(covered) >= 0.8) >= 0.85
    assert np.mean(covered) < 0.9


@pytest.mark.parametrize(("percent", "enough"), [(90, 22), (99, ENOUGH_OF_A_CLASS)])
def test_enough_images_of_a_class_let_sets_leave_it_out(percent: int, enough: int) -> None:
    for count, leaves_out in ((enough, True), (enough - 1, False)):
        labels = np.arange(2 * count) % 2
        answers = np.full((2 * count, 2), 0.5, np.float32)
        images, scores = np.zeros((2 * count, 1, 1, 3), np.uint8), np.zeros(2 * count, np.float32)
        few = Answered(images, labels, Outputs.of_classes(answers, scores))
        found = measure_confidence(few, few, {}, _by_brightness)
        for thresholds in found.conformal.class_conditional:
            assert (thresholds[percent - 1] < 1) == leaves_out


def test_too_few_images_of_a_class_put_it_into_every_set() -> None:
    few = _answered(60, 2)
    found = measure_confidence(few, TEST, FOREIGN, _by_brightness)
    assert [thresholds[98] for thresholds in found.conformal.class_conditional] == [1.0] * 5
    last = found.conformal.measured[-1]
    assert (last.method, last.wanted, last.classes) == ("class-conditional", 0.99, 5)


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize("percent", [1, 50, 90, 99])
def test_a_threshold_stands_at_the_place_of_its_percent(
    found: Confidence, method: SetMethod, percent: int
) -> None:
    thresholds = getattr(found.conformal, method)
    assert len(thresholds) == 99
    assert list(thresholds) == sorted(thresholds)
    scores = class_scores(HELDOUT.outputs.probabilities, HELDOUT.images, method)
    held = int((scores[np.arange(4000), HELDOUT.labels] <= thresholds[percent - 1]).sum())
    assert held == int(np.ceil(4001 * percent / 100))  # the images that decided, and one more


def test_one_known_image_in_twenty_is_taken_for_foreign(found: Confidence) -> None:
    record = found.out_of_distribution
    assert found.heldout_images == 4000
    assert record.heldout_false_alarms == pytest.approx(0.05, abs=1 / 4000)
    assert record.test_false_alarms == pytest.approx(0.05, abs=0.015)
    known = TEST.outputs.ood_scores
    assert known is not None
    assert record.test_false_alarms == pytest.approx(np.mean(known > record.threshold), abs=1e-6)


def test_foreign_images_are_measured_by_kind_against_the_test_images(found: Confidence) -> None:
    record, known = found.out_of_distribution, TEST.outputs.ood_scores
    assert known is not None
    for kind, images in FOREIGN.items():
        scores = _by_brightness(images).ood_scores
        assert scores is not None
        assert record.auroc[kind] == pytest.approx(_pairwise(known, scores), abs=1e-6)
    assert record.detected == pytest.approx({"bright": 2 / 3, "dark": 0}, abs=1e-6)
    assert record.auroc["bright"] > 0.8 > 0.2 > record.auroc["dark"]


def test_a_graph_without_scores_is_refused() -> None:
    bare = Answered(TEST.images, TEST.labels, Outputs.of_classes(TEST.outputs.probabilities))
    with pytest.raises(ValueError, match="gives no out-of-distribution scores"):
        measure_confidence(HELDOUT, bare, FOREIGN, _by_brightness)


def _scored(network_score: ServedNetwork, images: Images) -> Scores:
    scores = network_score.predict(images).ood_scores
    assert scores is not None
    return scores


@pytest.fixture(scope="module")
def photographs() -> Images:
    return some_images(80)


def test_the_score_of_a_network_is_fitted_to_the_images_that_it_learned_from(
    photographs: Images,
) -> None:
    parts = tiny_network(), MEAN, DEVIATION, TEMPERATURE
    score = fit_ood_score(ServedNetwork(*parts).eval(), photographs[::2], photographs[1::2])
    assert score.layer == "relu2"
    served = ServedNetwork(*parts, 1, score).eval()
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    known = _scored(served, photographs[1::2])
    assert np.median(known) == pytest.approx(0, abs=0.5)
    assert np.quantile(known, 0.95) == pytest.approx(1, abs=0.5)
    assert auroc(known, _scored(served, noise)) > 0.95


def test_a_network_without_convolutions_is_scored_by_the_pixels(photographs: Images) -> None:
    parts = flat_network(), MEAN, DEVIATION, TEMPERATURE
    score = fit_ood_score(ServedNetwork(*parts).eval(), photographs[::2], photographs[1::2])
    assert score.layer == "pixels"
    normalised = (photographs[::2] / 255 - MEAN) / DEVIATION
    expected = np.concatenate([normalised.mean((0, 1, 2)), normalised.std((1, 2)).mean(0)])
    np.testing.assert_allclose(score.mean.numpy(), expected, atol=1e-4)


def test_the_score_does_not_hang_on_how_images_are_batched(
    photographs: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = ServedNetwork(tiny_network(), MEAN, DEVIATION, TEMPERATURE, 2).eval()
    whole = fit_ood_score(served, photographs, photographs)
    monkeypatch.setattr(confidence, "SERVED_BATCH", 7)
    batched = fit_ood_score(served, photographs, photographs)
    np.testing.assert_allclose(whole.mean.numpy(), batched.mean.numpy(), rtol=1e-4)
    np.testing.assert_allclose(whole.usual.numpy(), batched.usual.numpy(), rtol=1e-3)
    np.testing.assert_allclose(whole.spread.numpy(), batched.spread.numpy(), rtol=1e-3)
