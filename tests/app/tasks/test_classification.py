import numpy as np
import pytest
from numpy.typing import NDArray

from app.artifact.manifest import SetMethod
from app.artifact.tensors import Images
from app.tasks.classification import class_scores, fit_threshold, prediction_sets

METHODS: tuple[SetMethod, ...] = ("lac", "aps")
CLASSES = 5


def _drawn(count: int, seed: int) -> tuple[NDArray[np.float32], Images, NDArray[np.int64]]:
    """Probabilities of five classes, images, and classes that are drawn with these chances."""
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet([0.3] * 5, count).astype(np.float32)
    images = random.integers(0, 256, (count, 4, 4, 3), np.uint8)
    labels = np.array([random.choice(5, p=row / row.sum()) for row in probabilities.astype(float)])
    return probabilities, images, labels


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95, 0.99])
def test_sets_hold_the_true_class_as_often_as_asked(method: SetMethod, coverage: float) -> None:
    probabilities, images, labels = _drawn(5000, 0)
    scores = class_scores(probabilities, images, method)
    threshold = fit_threshold(scores[np.arange(len(labels)), labels], coverage)

    probabilities, images, labels = _drawn(5000, 1)
    sets = prediction_sets(probabilities, images, method, threshold)

    found = sets[np.arange(len(labels)), labels].mean()
    likeliest = (probabilities.argmax(1) == labels).mean()
    if method == "aps" and coverage < likeliest:
        assert likeliest <= found < likeliest + 0.02
    else:
        assert found == pytest.approx(coverage, abs=0.02)


def test_aps_holds_the_likeliest_class_of_every_picture() -> None:
    probabilities, images, _ = _drawn(500, 4)
    scores = class_scores(probabilities, images, "aps")
    for threshold in (0.01, 0.9):
        sets = prediction_sets(probabilities, images, "aps", threshold)
        assert sets[np.arange(500), probabilities.argmax(1)].all()
        assert (sets.sum(1) == np.maximum((scores <= threshold).sum(1), 1)).all()


def test_lac_takes_every_class_that_is_likely_enough() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.34, 0.33, 0.33]], np.float32)
    images = np.zeros((2, 4, 4, 3), np.uint8)
    sets = prediction_sets(probabilities, images, "lac", 0.7 + 1e-6)
    assert sets.tolist() == [[True, True, False], [True, True, True]]
    assert not prediction_sets(probabilities, images, "lac", 0.3).any()


def test_aps_takes_likelier_classes_first_and_says_the_same_of_the_same_picture() -> None:
    probabilities, images, _ = _drawn(200, 2)
    for threshold in (0.3, 0.8):
        sets = prediction_sets(probabilities, images, "aps", threshold)
        assert np.array_equal(sets, prediction_sets(probabilities, images, "aps", threshold))
        for row, members in zip(probabilities, sets, strict=True):
            ranked = members[np.argsort(-row, kind="stable")]
            assert not (np.diff(ranked.astype(int)) > 0).any()


def test_thresholds_of_each_class_hold_each_as_often_as_asked() -> None:
    probabilities, images, labels = _drawn(20_000, 3)
    # Of the first class, the network is less sure than it should be; of the last, more.
    bent = probabilities * np.array([0.3, 1, 1, 1, 2], np.float32)
    bent /= bent.sum(1, keepdims=True)
    fitted, asked = slice(0, 10_000), slice(10_000, None)
    scores = class_scores(bent, images, "class-conditional")
    true = scores[np.arange(len(labels)), labels]
    thresholds = np.array(
        [fit_threshold(true[fitted][labels[fitted] == label], 0.8) for label in range(CLASSES)]
    )
    sets = prediction_sets(bent[asked], images[asked], "class-conditional", thresholds)
    held = sets[np.arange(10_000), labels[asked]]
    for label in range(CLASSES):
        assert held[labels[asked] == label].mean() == pytest.approx(0.8, abs=0.03)
    marginal = prediction_sets(bent[asked], images[asked], "lac", fit_threshold(true[fitted], 0.8))
    assert marginal[np.arange(10_000), labels[asked]][labels[asked] == 0].mean() < 0.7


def test_a_threshold_is_the_next_higher_rank() -> None:
    scores = np.arange(1, 10) / 10
    assert fit_threshold(scores, 0.5) == 0.5
    assert fit_threshold(scores, 0.51) == 0.6
    assert fit_threshold(scores, 0.9) == 0.9
    assert fit_threshold(scores, 0.95) == 1.0  # too few for that


def test_sets_at_the_highest_threshold_hold_every_class() -> None:
    logits = np.random.default_rng(5).normal(size=(2000, 10)) * 6
    odds = np.exp(logits).astype(np.float32)
    probabilities = odds / odds.sum(1, keepdims=True)
    images = np.random.default_rng(6).integers(0, 256, (2000, 4, 4, 3), np.uint8)
    for method in METHODS:
        assert prediction_sets(probabilities, images, method, fit_threshold(np.ones(3), 0.9)).all()
