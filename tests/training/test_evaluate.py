import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.artifact.manifest import Evaluation
from tests.support import sample
from training import evaluate
from training.data import dataset
from training.errors import DataError, RunError
from training.run.checkpoint import Checkpoint
from training.tasks import classification


@pytest.fixture(scope="module")
def found(trained: Checkpoint, source: dataset.Source) -> Evaluation:
    return evaluate.evaluate(trained, source, torch.device("cpu"))


@pytest.fixture(scope="module")
def probabilities(trained: Checkpoint, found: Evaluation) -> np.ndarray:
    """The test images' probabilities, computed here with numpy from the network's logits."""
    state = trained.state
    images = sample.read("test")[0] / 255
    normalized = (images - state.mean) / state.deviation
    batch = torch.from_numpy(normalized.transpose(0, 3, 1, 2)).float()
    with torch.inference_mode():
        logits = evaluate.load_network(trained)(batch).double().numpy()
    powers = np.exp(logits / found.temperature)
    result: np.ndarray = powers / powers.sum(1, keepdims=True)
    return result


def test_the_confusion_matrix_has_true_classes_in_its_rows(
    found: Evaluation, probabilities: np.ndarray
) -> None:
    labels = sample.read("test")[1]
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, probabilities.argmax(1)), 1)
    assert np.array_equal(found.confusion_matrix, expected)
    assert found.images == expected.sum() == 80


def test_accuracy_and_the_figures_by_class_follow_from_the_matrix(found: Evaluation) -> None:
    matrix = np.array(found.confusion_matrix)
    right = matrix.diagonal()
    assert found.test.accuracy == pytest.approx(right.sum() / matrix.sum())
    for index, row in enumerate(found.per_class):
        predicted, support = matrix[:, index].sum(), matrix[index].sum()
        precision = right[index] / predicted if predicted else 0
        recall = right[index] / support
        assert row.label == sample.class_names()[index]
        assert row.precision == pytest.approx(precision, abs=1e-6)
        assert row.recall == pytest.approx(recall, abs=1e-6)
        total = precision + recall
        assert row.f1 == pytest.approx(2 * precision * recall / total if total else 0, abs=1e-6)
        assert row.support == support


def test_cross_entropy_and_calibration_error_follow_their_definitions(
    found: Evaluation, probabilities: np.ndarray
) -> None:
    labels = sample.read("test")[1]
    of_truth = probabilities[np.arange(80), labels]
    assert found.test.cross_entropy_calibrated == pytest.approx(-np.log(of_truth).mean(), abs=1e-5)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    error = sum(
        abs(confidence[bins == index].mean() - right[bins == index].mean()) * (bins == index).mean()
        for index in np.unique(bins)
    )
    assert found.test.ece_calibrated == pytest.approx(error, abs=1e-5)


def test_the_worst_confusions_come_first_and_are_off_the_diagonal(found: Evaluation) -> None:
    counts = [confusion.count for confusion in found.top_confusions]
    matrix = np.array(found.confusion_matrix)
    np.fill_diagonal(matrix, 0)
    assert counts == sorted(matrix.flatten(), reverse=True)[:10]
    names = sample.class_names()
    for confusion in found.top_confusions:
        place = names.index(confusion.true), names.index(confusion.predicted)
        assert matrix[place] == confusion.count


def test_the_most_confident_mistakes_are_mistakes_by_their_test_index(
    found: Evaluation, probabilities: np.ndarray
) -> None:
    names, labels = sample.class_names(), sample.read("test")[1]
    assert len(found.confident_mistakes) == classification.CONFIDENT_MISTAKES
    confidences = [mistake.confidence for mistake in found.confident_mistakes]
    assert confidences == sorted(confidences, reverse=True)
    for mistake in found.confident_mistakes:
        row = probabilities[mistake.index]
        assert names[labels[mistake.index]] == mistake.true != mistake.predicted
        assert names[row.argmax()] == mistake.predicted
        assert row.max() == pytest.approx(mistake.confidence, abs=1e-5)


def test_without_a_holdout_the_temperature_is_one(
    trained: Checkpoint, source: dataset.Source
) -> None:
    recipe = trained.state.recipe.replace(holdout=0.0)
    whole = replace(trained, state=replace(trained.state, recipe=recipe))
    found = evaluate.evaluate(whole, source, torch.device("cpu"))
    assert found.temperature == 1
    assert found.test.ece_raw == found.test.ece_calibrated


def test_other_data_than_the_runs_are_refused(trained: Checkpoint, source: dataset.Source) -> None:
    with pytest.raises(DataError, match="was trained on"):
        evaluate.evaluate(trained, replace(source, sha256="0" * 64), torch.device("cpu"))


def test_an_evaluation_is_read_back_as_it_was_saved(
    trained: Checkpoint, found: Evaluation, tmp_path: Path
) -> None:
    checkpoint = replace(trained, path=tmp_path)
    assert evaluate.read_evaluation(checkpoint) is None
    evaluate.save_evaluation(checkpoint, found)
    assert evaluate.read_evaluation(checkpoint) == found


def test_a_damaged_evaluation_is_named(trained: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    shutil.copy(trained.path / path.name, path)
    for content in (path.read_text()[:-50], "{}"):
        path.write_text(content)
        with pytest.raises(RunError, match=f"{path}: not an evaluation: ") as caught:
            evaluate.read_evaluation(replace(trained, path=tmp_path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(20, range(0, 80, 4)), (30, [8 * i // 3 for i in range(30)]), (500, range(80))],
)
def test_spaced_test_images_are_of_all_classes(
    source: dataset.Source, count: int, chosen: Sequence[int]
) -> None:
    images, labels = sample.read("test")
    found = evaluate.spaced_test_images(source, count)
    assert (found.images.numpy() == images[list(chosen)]).all()
    assert (found.labels.numpy() == labels[list(chosen)]).all()
    assert set(found.labels.tolist()) == set(range(10))


def test_the_temperature_is_fitted_on_the_images_that_were_held_out(
    trained: Checkpoint, source: dataset.Source, found: Evaluation
) -> None:
    state, heldout = trained.state, evaluate.load_heldout(trained, source)
    network = evaluate.load_network(trained)
    with torch.inference_mode():
        logits = network(dataset.normalize(heldout.images, state.mean, state.deviation))
    assert len(heldout) == 20
    fitted = classification.fit_temperature(logits, heldout.labels)
    assert found.temperature == pytest.approx(fitted, rel=1e-4)
