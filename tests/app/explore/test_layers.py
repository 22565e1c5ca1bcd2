import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from app.artifact.directory import Artifact, read_artifact
from app.artifact.examples import read_examples
from app.artifact.files import (
    CLASSIFIER,
    EXAMPLES,
    GOLDEN,
    LAYER_OUTPUTS,
    LAYERS,
    PIXELS,
    RESPONSES,
)
from app.artifact.strongest import read_strongest
from app.errors import ArtifactError, NothingToSee, UnknownLayer
from app.explore.layers import Insides, biases_of, find_layer
from app.inference.backends import open_backend, open_layers
from tests.support.artifacts import CLASSES, amend, copy_store
from tests.support.inside_artifacts import averaging_network, measured_images


@pytest.fixture
def artifact(inside_store: Path) -> Artifact:
    return read_artifact(inside_store / "averaging" / "1")


@pytest.fixture
def older(inside_store: Path) -> Artifact:
    """A model that was exported without anything to look at."""
    return read_artifact(inside_store / "colour" / "1")


@pytest.fixture
def damaged(inside_store: Path, tmp_path: Path) -> Path:
    """The path of an artifact that is the test's own to damage."""
    return copy_store(inside_store, tmp_path / "store") / "averaging" / "1"


def _rewrite(path: Path, file_name: str, **changes: object) -> Artifact:
    with np.load(path / file_name) as archive:
        arrays = dict(archive) | changes
    kept = {name: array for name, array in arrays.items() if array is not None}
    np.savez(path / file_name, **kept)
    return amend(path)


def test_graph_with_its_layers_predicts_as_the_one_that_serves(artifact: Artifact) -> None:
    images, _, _ = measured_images()
    serves, shows = open_backend(artifact, "onnx-cpu"), open_layers(artifact)
    expected = serves.predict(images[:3]).probabilities
    for image, row in zip(images, expected, strict=False):
        (fc,) = shows.outputs(image, ["fc"])
        odds = np.exp(fc / 2)  # the temperature
        np.testing.assert_allclose(odds / odds.sum(), row, atol=1e-5)


def test_several_layers_come_in_the_order_in_which_they_are_asked_for(artifact: Artifact) -> None:
    image = measured_images()[0][0]
    layers = open_layers(artifact)
    shapes = [values.shape for values in layers.outputs(image, ["relu2", "fc", PIXELS])]
    assert shapes == [(12, 16, 16), (6,), (3, 32, 32)]
    (relu2,) = layers.outputs(image, ["relu2"])
    assert (layers.features(image) == relu2).all()


def test_model_is_opened_once_however_many_ask_at_the_same_time(artifact: Artifact) -> None:
    insides, together = Insides(), threading.Barrier(4)

    def ask() -> int:
        together.wait(10)
        return id(insides.open(artifact))

    with ThreadPoolExecutor(4) as threads:
        found = [future.result(30) for future in [threads.submit(ask) for _ in range(4)]]
    assert len(set(found)) == 1


def test_classifier_is_the_last_layers_weights_by_class(artifact: Artifact) -> None:
    inside = Insides().open(artifact)
    expected = averaging_network().get_parameter("fc.weight").detach().numpy()
    for class_id in range(len(CLASSES)):
        np.testing.assert_array_equal(inside.weights_of(class_id), expected[class_id])


def test_layer_is_found_by_its_name_and_is_the_first_unless_named(artifact: Artifact) -> None:
    names = [find_layer(artifact, name).name for name in (None, "relu2", PIXELS)]
    assert names == ["conv1", "relu2", PIXELS]
    assert find_layer(artifact, PIXELS).shape == (3, 32, 32)
    assert find_layer(artifact, "fc").shape == (len(CLASSES),)
    assert Insides().open(artifact).first_convolution == "conv1"
    with pytest.raises(UnknownLayer, match=r"no layer 'xx'; there are: pixels, conv1, .*, fc$"):
        find_layer(artifact, "xx")
    with pytest.raises(UnknownLayer) as refused:
        find_layer(artifact, "x" * 1000)
    assert len(str(refused.value)) < 200


def test_bias_is_there_where_a_convolution_has_one(artifact: Artifact, older: Artifact) -> None:
    expected = averaging_network().get_parameter("conv1.bias").detach().numpy()
    np.testing.assert_array_equal(biases_of(artifact, "conv1"), expected)
    assert biases_of(artifact, "conv2") is None
    assert biases_of(older, "conv1") is None


def test_model_without_the_files_says_which_it_is(older: Artifact) -> None:
    with pytest.raises(NothingToSee, match="colour/1 was exported without its layers"):
        Insides().open(older)
    with pytest.raises(NothingToSee, match="colour/1 was exported without the pictures"):
        read_examples(older, 0, 0)
    with pytest.raises(NothingToSee, match="no strongest patches of the layer conv1"):
        read_strongest(older, "conv1")


def test_layer_that_is_no_convolution_has_no_responses(artifact: Artifact) -> None:
    with pytest.raises(NothingToSee, match="no strongest patches of the layer relu1"):
        read_strongest(artifact, "relu1")


def test_layers_that_do_not_fit_the_graph_do_not_open(damaged: Path) -> None:
    broken = _rewrite(damaged, LAYERS, **{LAYER_OUTPUTS: np.full(64, 255, np.uint8)})
    with pytest.raises(ArtifactError, match="does not load"):
        Insides().open(broken)


def test_graph_that_answers_otherwise_with_its_layers_is_not_looked_into(damaged: Path) -> None:
    images, _, _ = measured_images()
    wrong = np.full((4, len(CLASSES)), 1 / len(CLASSES), np.float32)
    broken = _rewrite(damaged, GOLDEN, images=images[:4], probabilities=wrong)
    with pytest.raises(ArtifactError, match="differs from the golden probabilities"):
        Insides().open(broken)


def test_layers_that_were_changed_on_disk_do_not_open(damaged: Path) -> None:
    before = read_artifact(damaged)
    (damaged / LAYERS).write_bytes((damaged / LAYERS).read_bytes()[:-1] + b"x")
    insides = Insides()
    with pytest.raises(ArtifactError, match=r"layers\.npz: sha256 is"):
        insides.open(before)


def test_missing_classifier_is_the_artifacts_fault(damaged: Path) -> None:
    inside = Insides().open(_rewrite(damaged, LAYERS, **{CLASSIFIER: None}))
    with pytest.raises(ArtifactError, match=r"layers\.npz: holds no classifier"):
        inside.weights_of(0)


def test_sheet_that_is_no_webp_is_the_artifacts_fault(damaged: Path) -> None:
    broken = _rewrite(damaged, RESPONSES, **{"conv1.sheet": np.zeros(50, np.uint8)})
    with pytest.raises(ArtifactError, match=r"responses\.npz: holds no picture"):
        read_strongest(broken, "conv1")
    broken = _rewrite(damaged, EXAMPLES, sheet=np.frombuffer(b"\x89PNG\r\n\x1a\n", np.uint8))
    with pytest.raises(ArtifactError, match=r"examples\.npz: holds no picture"):
        read_examples(broken, 0, 0)


def test_examples_of_a_cell_are_the_pixels_of_the_test_images(artifact: Artifact) -> None:
    images, labels, probabilities = measured_images()
    blue = CLASSES.index("blue")
    found = read_examples(artifact, blue, blue)
    assert len(found.images) == 10
    assert (labels[found.index] == blue).all()
    assert (found.images == images[found.index]).all()
    assert (np.diff(found.confidence) < 0).all()
    np.testing.assert_allclose(found.confidence, probabilities[found.index].max(1))
    assert (found.true == blue).all()
    assert (found.predicted == blue).all()
