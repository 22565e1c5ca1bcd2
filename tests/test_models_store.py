"""The committed models: sound, as good as they say, and after the recipes that they name."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.artifact.directory import Artifact, read_artifact
from app.artifact.files import EXAMPLES, FILTERS
from app.artifact.manifest import Int8Record, Precision
from app.inference.backends import open_backend
from training.data import dataset
from training.evaluate import answer_test, outputs_for
from training.recipes import Recipe, find_recipe

STORE = Path(__file__).parents[1] / "models_store"
RECIPES = {
    "simple-cnn/1": "simple-cnn",
    "simple-cnn/3": "simple-cnn-taught",
    "fc/1": "fc",
    "fc/2": "fc-augmented",
    "efficientnet-b0/2": "efficientnet-b0",
    "fast/4": "fast-refined",
    "resnet18/2": "resnet18-taught",
    "resnet20/2": "resnet20",
    "speednet/3": "speednet-95-degraded",
    "speednet-96/3": "speednet-96",
}
LEAST_ACCURACY = {
    "simple-cnn/1": 0.70,
    "simple-cnn/3": 0.865,
    "fc/1": 0.50,
    "fc/2": 0.59,
    "efficientnet-b0/2": 0.885,
    "fast/4": 0.925,
    "resnet18/2": 0.93,
    "resnet20/2": 0.91,
    "speednet/3": 0.94,
    "speednet-96/3": 0.96,
}
LEARNED_FROM_MODELS = {
    "resnet18/2": {"start": "models_store/resnet18/1", "teacher": "models_store/speednet/3"},
}
"""Where a recipe names runs, these name the models that were exported from such runs."""

LIGHT = 100e6  # multiply-accumulates with which a model is asked about all test images
MANY = 300
LARGEST_ECE = {
    "fc/1": 0.036,  # overfitted by the exercise's recipe
    "fc/2": 0.022,  # of sound probabilities of 60%, 10,000 images give 0.012 by chance
}


@pytest.fixture(params=RECIPES)
def artifact(request: pytest.FixtureRequest) -> Artifact:
    return read_artifact(STORE / request.param)


@pytest.mark.slow
def test_every_file_has_its_hash_and_both_graphs_give_the_golden_answers(
    artifact: Artifact,
) -> None:
    artifact.verify()
    for backend in ("onnx-cpu", "torch-cpu"):
        open_backend(artifact, backend)


def test_the_recipe_is_the_named_one_with_seed_0(artifact: Artifact) -> None:
    recipe = find_recipe(RECIPES[artifact.ref])
    written = Recipe.model_validate(artifact.manifest.recipe)  # older ones have fewer fields
    models = LEARNED_FROM_MODELS.get(artifact.ref, {})
    assert written == recipe.replace(seed=0, precision=written.precision, **models)
    sizes = artifact.manifest.data
    heldout = round(50_000 * recipe.holdout)
    assert (sizes.train, sizes.heldout, sizes.test) == (50_000 - heldout, heldout, 10_000)


def test_document_says_how_it_was_made(artifact: Artifact) -> None:
    reference, manifest = artifact.ref, artifact.classifier
    document = (STORE.parent / "docs" / "training.md").read_text()
    (row,) = (line for line in document.splitlines() if line.startswith(f"| {reference} | "))
    assert row.split(" | ")[1] == f"`{RECIPES[reference]}`"
    assert ("--int8" in row) == (manifest.int8 is not None)
    assert (f"--views {manifest.views}" in row) == (manifest.views > 1)
    assert (f"--weights {manifest.weights}" in row) == (manifest.weights == "float16")
    assert (f"--name {manifest.name}" in row) == (manifest.name != RECIPES[reference])


def test_the_manifest_repeats_the_evaluation(artifact: Artifact) -> None:
    evaluation = artifact.evaluation()
    assert artifact.classifier.test == evaluation.test
    assert artifact.classifier.temperature == evaluation.temperature
    matrix = np.array(evaluation.confusion_matrix)
    assert evaluation.test.accuracy == pytest.approx(np.trace(matrix) / matrix.sum())
    assert evaluation.test.accuracy >= LEAST_ACCURACY[artifact.ref]


def test_the_first_filters_are_pictures_of_three_channels(artifact: Artifact) -> None:
    first, *_ = artifact.filters().values()
    assert first.shape[1] == 3
    assert FILTERS not in artifact.manifest.files  # they lie in the graph


@pytest.fixture
def int8(artifact: Artifact) -> Int8Record:
    assert artifact.classifier.int8 is not None, f"{artifact.ref}: export it with --int8"
    return artifact.classifier.int8


@pytest.mark.slow
def test_the_int8_graph_gives_its_golden_answers(artifact: Artifact, int8: Int8Record) -> None:
    assert int8.golden_tolerance <= 0.01
    open_backend(artifact, "onnx-cpu", precision="int8")


def test_int8_lost_no_more_than_it_may(artifact: Artifact, int8: Int8Record) -> None:
    assert int8.heldout_accuracy >= int8.heldout_accuracy_float32 - 0.003 - 1e-9
    assert int8.test_accuracy >= LEAST_ACCURACY[artifact.ref]


@pytest.mark.slow
def test_the_pictures_behind_the_confusion_matrix_are_answered_as_it_says(
    artifact: Artifact, real_cifar10: dataset.Source
) -> None:
    examples = artifact.arrays(EXAMPLES)
    chosen = np.linspace(0, len(examples["index"]) - 1, MANY).astype(int)
    test = real_cifar10.load_test()
    index = examples["index"][chosen]
    assert (test.labels.numpy()[index] == examples["true"][chosen]).all()
    backend = open_backend(artifact, "onnx-cpu")
    found = outputs_for(backend.predict, test.images.numpy()[index]).probabilities
    assert (found.argmax(1) == examples["predicted"][chosen]).all()
    assert np.abs(found.max(1) - examples["confidence"][chosen]).max() < 1e-3


def _needs_light(artifact: Artifact) -> None:
    if artifact.manifest.macs > LIGHT:
        pytest.skip(f"{artifact.ref} takes minutes for all test images")


def _confusion_matrix(
    artifact: Artifact, source: dataset.Source, precision: Precision
) -> NDArray[np.int64]:
    backend = open_backend(artifact, "onnx-cpu", precision=precision)
    answered = answer_test(backend.predict, source)
    found = np.zeros((10, 10), np.int64)
    np.add.at(found, (answered.labels, answered.predicted), 1)
    return found


@pytest.mark.slow
def test_the_whole_test_split_gives_the_accuracy_and_the_matrix_that_are_written(
    artifact: Artifact, real_cifar10: dataset.Source
) -> None:
    _needs_light(artifact)
    found = _confusion_matrix(artifact, real_cifar10, "float32")
    expected = np.array(artifact.evaluation().confusion_matrix)
    assert np.abs(found - expected).sum() <= 2  # one image may fall on the other side
    assert artifact.manifest.data.sha256 == real_cifar10.sha256


@pytest.mark.slow
def test_the_whole_test_split_gives_the_int8_accuracy_that_is_written(
    artifact: Artifact, int8: Int8Record, real_cifar10: dataset.Source
) -> None:
    _needs_light(artifact)
    found = _confusion_matrix(artifact, real_cifar10, "int8")
    assert np.trace(found) / found.sum() == pytest.approx(int8.test_accuracy, abs=2e-4)


def test_prediction_sets_hold_the_truth_as_often_as_is_asked(artifact: Artifact) -> None:
    for confidence in artifact.classifier.confidence.values():
        for measured in confidence.conformal.measured:
            if measured.method == "aps":  # holds the likeliest class, and so more than is asked
                likeliest = artifact.classifier.test.accuracy
                assert measured.empty == 0
                assert measured.wanted - 0.01 <= measured.found
                assert measured.found <= max(measured.wanted, likeliest) + 0.07
            elif measured.method == "class-conditional":  # allows for chance in each class
                assert measured.worst_class is not None
                assert measured.wanted - 0.03 <= measured.worst_class
                assert measured.wanted - 0.01 <= measured.found
            else:
                assert measured.found == pytest.approx(measured.wanted, abs=0.01)


def test_probabilities_are_calibrated(artifact: Artifact, int8: Int8Record) -> None:
    limit = LARGEST_ECE.get(artifact.ref, 0.015)
    assert max(artifact.classifier.test.ece_calibrated, int8.test_ece) <= limit


def test_document_has_the_figures_of_the_manifest(artifact: Artifact) -> None:
    """In `docs/confidence.md`, whose tables are those of `compare`."""
    confidence = artifact.classifier.confidence["float32"]
    aps = [item for item in confidence.conformal.measured if item.method == "aps"]
    sets = (f"{item.found:.1%}, {item.classes:.2f}" for item in aps)
    foreign = confidence.out_of_distribution
    kinds = (f"{value:.3f}" for value in foreign.auroc.values())
    document = (STORE.parent / "docs" / "confidence.md").read_text()
    assert f"| {artifact.ref} | {' | '.join(sets)} |" in document
    row = f"| {artifact.ref} | {foreign.test_false_alarms:.1%} | {' | '.join(kinds)} |"
    assert row in document
