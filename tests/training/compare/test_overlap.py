"""Which images several models get wrong together."""

import numpy as np
import pytest

from training.compare.overlap import Labels, SharedMistake, find_overlap

CLASSES = ("cat", "dog", "ship")


def _labels(*values: int) -> Labels:
    return np.array(values, np.int64)


def test_overlap_counts_how_many_models_get_an_image_wrong() -> None:
    labels = _labels(0, 0, 1, 1, 2)
    predictions = {
        "a": _labels(0, 1, 1, 0, 0),  # wrong: 1, 3, 4
        "b": _labels(0, 0, 1, 0, 1),  # wrong: 3, 4
        "c": _labels(0, 0, 2, 1, 1),  # wrong: 2, 4
    }
    found = find_overlap(labels, predictions, CLASSES)
    assert (found.models, found.images) == (("a", "b", "c"), 5)
    assert found.errors == (3, 2, 2)
    assert found.histogram == (1, 2, 1, 1)
    assert found.shared == ((1, 0.6667, 0.25), (0.6667, 1, 0.3333), (0.25, 0.3333, 1))
    assert found.by_all.images == 1
    assert found.by_all.examples == (SharedMistake(4, "ship", "dog"),)


def test_the_fully_connected_networks_own_errors_are_those_that_no_other_model_makes() -> None:
    labels = _labels(0, 0, 0, 0, 0)
    predictions = {
        "fc/1": _labels(1, 1, 2, 0, 1),
        "cnn/1": _labels(0, 1, 0, 0, 0),
        "fc/2": _labels(2, 2, 2, 1, 0),
        "vgg/1": _labels(0, 0, 0, 0, 0),
    }
    found = find_overlap(labels, predictions, CLASSES, {"fc/1", "fc/2"}).by_fully_connected
    assert found is not None
    assert found.images == 2
    assert found.examples == (SharedMistake(0, "cat", "dog"), SharedMistake(2, "cat", "ship"))


@pytest.mark.parametrize("dense", [set(), {"a", "b"}])
def test_without_models_of_both_kinds_nothing_is_the_fully_connected_networks_own(
    dense: set[str],
) -> None:
    predictions = {"a": _labels(0, 1), "b": _labels(1, 1)}
    assert find_overlap(_labels(0, 0), predictions, CLASSES, dense).by_fully_connected is None


def test_models_that_never_err_share_all_of_their_errors() -> None:
    found = find_overlap(_labels(0, 1), dict.fromkeys("ab", _labels(0, 1)), CLASSES, {"a"})
    assert found.shared == ((1, 1), (1, 1))
    assert found.histogram == (2, 0, 0)
    assert found.by_all.examples == ()
    assert found.by_fully_connected is not None
    assert found.by_fully_connected.images == 0


def test_a_long_group_is_counted_whole_and_listed_in_part() -> None:
    found = find_overlap(_labels(*[0] * 250), {"a": _labels(*[1] * 250)}, CLASSES).by_all
    assert found.images == 250
    assert [example.index for example in found.examples] == list(range(100))
