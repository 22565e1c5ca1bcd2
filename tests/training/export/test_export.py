import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from app.artifact.directory import Artifact, read_artifact
from app.artifact.files import (
    EXAMPLES,
    GOLDEN,
    LAYERS,
    MANIFEST,
    ONNX_GRAPH,
    RESPONSES,
    TORCHSCRIPT_GRAPH,
)
from app.artifact.manifest import BackendName
from app.artifact.tensors import Images
from app.errors import ArtifactError
from app.inference.backends import open_backend, open_layers
from tests.support import sample
from tests.support.artifacts import amend, copy_store
from tests.support.tiny_networks import flat_network, write_graphs
from training.data import dataset
from training.data.foreign import foreign_images
from training.errors import DataError, ExportError
from training.evaluate import load_heldout, load_network, read_evaluation
from training.export import export
from training.export.export import Export
from training.export.graphs import ServedNetwork, onnx_graph
from training.export.inside import first_filters_and_kernels
from training.export.layer_outputs import outputs_of
from training.run.checkpoint import Checkpoint


@pytest.fixture
def what(trained: Checkpoint, source: dataset.Source) -> Export:
    found = read_evaluation(trained)
    assert found is not None
    return Export(trained, found, source, "tiny", "1")


def test_every_file_is_listed_with_its_size_and_hash(exported: Artifact) -> None:
    manifest = json.loads((exported.path / MANIFEST).read_text())
    on_disk = {path.name for path in exported.path.iterdir()} - {MANIFEST}
    assert on_disk == manifest["files"].keys()
    for name, record in manifest["files"].items():
        content = (exported.path / name).read_bytes()
        assert record == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_manifest_says_where_the_model_comes_from(
    exported: Artifact, trained: Checkpoint, source: dataset.Source
) -> None:
    manifest = exported.manifest
    assert manifest.recipe == trained.state.recipe.model_dump()
    assert (manifest.data.train, manifest.data.heldout, manifest.data.test) == (220, 20, 80)
    assert manifest.data.sha256 == source.sha256
    assert (manifest.parameters, manifest.macs) == (1_070_986, 6_654_464)
    assert manifest.classes == tuple(sample.class_names())
    assert manifest.libraries["torch"] == torch.__version__


def test_the_graph_takes_bytes_and_gives_logits_and_probabilities(exported: Artifact) -> None:
    graph = onnx.load_from_string((exported.path / ONNX_GRAPH).read_bytes()).graph
    shapes = {
        value.name: [
            dimension.dim_param or dimension.dim_value
            for dimension in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "image": ["N", 32, 32, 3],
        "logits": ["N", 10],
        "probabilities": ["N", 10],
        "ood_score": ["N"],
    }
    assert [spec.name for spec in exported.manifest.outputs] == list(shapes)[1:]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


@pytest.mark.parametrize("backend", ["onnx-cpu", "torch-cpu"])
@pytest.mark.parametrize("count", [1, 7, 80])
def test_both_graphs_answer_as_the_network_with_its_temperature(
    exported: Artifact, trained: Checkpoint, backend: BackendName, count: int
) -> None:
    images = sample.read("test")[0][:count]
    state = trained.state
    batch = dataset.normalize(torch.from_numpy(images), state.mean, state.deviation)
    with torch.inference_mode():
        logits = load_network(trained)(batch) / exported.classifier.temperature
    found = open_backend(exported, backend).predict(images).probabilities
    assert found.dtype == np.float32
    assert np.abs(found - logits.softmax(1).numpy()).max() < 1e-4


def test_golden_images_are_held_out_images(
    exported: Artifact, trained: Checkpoint, source: dataset.Source
) -> None:
    images = exported.arrays(GOLDEN)["images"]
    recipe = trained.state.recipe
    train = source.load_train()
    _, held = dataset.split_holdout(train.labels, recipe.holdout, recipe.split_seed)
    known = {image.tobytes() for image in train.images[held].numpy()}
    assert len(images) == 16
    assert {image.tobytes() for image in images} <= known


def test_filters_hold_every_convolutions_weights_in_order(
    exported: Artifact, trained: Checkpoint
) -> None:
    filters = exported.filters()
    network = load_network(trained)
    assert list(filters) == ["conv1", "conv2"]
    for name, weights in filters.items():
        expected = network.get_parameter(f"{name}.weight").detach().numpy()
        assert np.array_equal(weights, expected)


def test_a_fully_connected_first_layer_is_kept_as_pictures_of_the_input() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 5))
    weights = first_filters_and_kernels(network, (32, 32))
    assert list(weights) == ["1"]
    assert weights["1"].shape == (5, 3, 32, 32)
    linear = network[1]
    assert isinstance(linear, torch.nn.Linear)
    assert weights["1"][2, 1, 4, 7] == linear.weight[2, 1 * 1024 + 4 * 32 + 7]


def test_a_fully_connected_first_layer_is_read_out_of_the_graph(tmp_path: Path) -> None:
    served = ServedNetwork(flat_network(), [0.5] * 3, [0.25] * 3, 1.0).eval()
    artifact = write_graphs(served, tmp_path)
    (name, weights), *others = artifact.filters().items()
    assert (name, weights.shape, others) == ("fc", (6, 3, 32, 32), [])
    expected = served.plain.get_parameter("fc.weight").detach().numpy()
    assert np.array_equal(weights.reshape(6, 3072), expected)


def test_every_weight_is_stored_once(exported: Artifact) -> None:
    model = onnx.load(str(exported.path / ONNX_GRAPH), load_external_data=False)
    large = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) * 4 >= 1024]
    assert len(large) > 4
    assert {tensor.data_location for tensor in large} == {onnx.TensorProto.EXTERNAL}
    places = {entry.value for t in large for entry in t.external_data if entry.key == "location"}
    assert places == {TORCHSCRIPT_GRAPH}


def test_other_programs_find_the_weights_of_the_graph(exported: Artifact) -> None:
    path = str(exported.path / ONNX_GRAPH)
    whole = onnx.load_from_string(exported.read_graph(ONNX_GRAPH))
    found = onnx.load(path)
    for tensor, expected in zip(found.graph.initializer, whole.graph.initializer, strict=True):
        assert tensor.raw_data == expected.raw_data
    golden = exported.arrays(GOLDEN)
    (probabilities,) = ort.InferenceSession(path).run(
        ["probabilities"], {"image": golden["images"]}
    )
    assert np.abs(probabilities - golden["probabilities"]).max() < 1e-4


def test_weights_that_lie_in_a_damaged_file_are_not_read(
    exported: Artifact, tmp_path: Path
) -> None:
    path = copy_store(exported.path.parent.parent, tmp_path / "store") / "tiny" / "1"
    data = bytearray((path / TORCHSCRIPT_GRAPH).read_bytes())
    data[len(data) // 2] ^= 1
    (path / TORCHSCRIPT_GRAPH).write_bytes(data)
    for read in (lambda artifact: artifact.filters(), lambda a: open_backend(a, "onnx-cpu")):
        with pytest.raises(ArtifactError, match=r"model\.ts: sha256 is"):
            read(read_artifact(path))


def test_a_graph_that_refers_to_a_file_that_is_not_listed_is_not_read(
    exported: Artifact, tmp_path: Path
) -> None:
    path = copy_store(exported.path.parent.parent, tmp_path / "store") / "tiny" / "1"
    graph = (path / ONNX_GRAPH).read_bytes().replace(b"model.ts", b"/etc/fst")
    (path / ONNX_GRAPH).write_bytes(graph)
    with pytest.raises(ArtifactError, match="/etc/fst: not listed in"):
        amend(path).read_graph(ONNX_GRAPH)


@pytest.mark.slow
def test_other_weights_in_the_graph_than_in_the_network_are_not_exported(
    what: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others(network: nn.Module, image_size: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
        weights = first_filters_and_kernels(network, image_size)
        return weights | {"conv2": weights["conv2"] * 2}

    monkeypatch.setattr(export, "first_filters_and_kernels", others)
    with pytest.raises(ExportError, match="conv2: other weights are read out of the graph"):
        export.export(what, tmp_path)


@pytest.mark.parametrize("plot", ["confusion_matrix.png", "filters.png", "learning_curve.png"])
def test_the_plots_stand_beside_the_figures(exported: Artifact, plot: str) -> None:
    assert (exported.path / plot).read_bytes().startswith(b"\x89PNG")


def test_a_place_that_is_taken_is_not_touched(exported: Artifact, what: Export) -> None:
    store = exported.path.parent.parent
    before = (exported.path / MANIFEST).read_bytes()
    with pytest.raises(ExportError, match="exists already"):
        export.export(what, store)
    assert (exported.path / MANIFEST).read_bytes() == before


def test_the_next_version_follows_the_highest(exported: Artifact, tmp_path: Path) -> None:
    assert export.next_version(exported.path.parent.parent, "tiny") == "2"
    assert export.next_version(tmp_path, "tiny") == "1"


@pytest.mark.slow
def test_graphs_that_disagree_with_the_network_are_not_exported(
    what: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def graph_of_another_temperature(served: ServedNetwork, images: Images) -> tuple[bytes, bytes]:
        other = copy.deepcopy(served)
        other.temperature *= 2
        return onnx_graph(other, images)

    monkeypatch.setattr(export, "onnx_graph", graph_of_another_temperature)
    with pytest.raises(ExportError, match="differs from the golden probabilities"):
        export.export(what, tmp_path)
    assert list(tmp_path.glob("*/*")) == []


def test_an_unfinished_run_is_not_exported(what: Export, tmp_path: Path) -> None:
    state = what.checkpoint.state
    early = replace(what.checkpoint, state=replace(state, history=state.history[:1]))
    with pytest.raises(ExportError, match="is epoch 1 of 2"):
        export.export(replace(what, checkpoint=early), tmp_path)


@pytest.mark.slow
def test_too_many_other_predictions_on_the_test_images_are_not_exported(
    what: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LEAST_AGREEMENT", 1.01)
    with pytest.raises(ExportError, match="of the test images; the limit is"):
        export.export(what, tmp_path)
    assert list(tmp_path.glob("*/*")) == []


@pytest.mark.parametrize("change", [{"name": "../tiny"}, {"name": "Tiny"}, {"version": "v1"}])
def test_a_name_that_is_not_allowed_is_refused(
    what: Export, tmp_path: Path, change: dict[str, str]
) -> None:
    store = tmp_path / "store"
    with pytest.raises(ExportError):
        export.export(replace(what, **change), store)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_other_data_than_the_runs_are_refused(what: Export, tmp_path: Path) -> None:
    other = replace(what, source=replace(what.source, sha256="0" * 64))
    with pytest.raises(DataError):
        export.export(other, tmp_path)


def test_the_layers_are_recorded_and_the_graph_gives_what_the_network_does(
    exported: Artifact, trained: Checkpoint
) -> None:
    names = [layer.name for layer in exported.manifest.layers]
    network = load_network(trained)
    passing = {"flatten", "dropout1", "dropout2"}
    assert names == [name for name, _ in network.named_children() if name not in passing]
    state, image = trained.state, sample.read("test")[0][0]
    batch = dataset.normalize(torch.from_numpy(image[None]), state.mean, state.deviation)
    with torch.inference_mode(), outputs_of(network, names, 1) as expected:
        network(batch)
    for name, values in zip(names, open_layers(exported).outputs(image, names), strict=True):
        np.testing.assert_allclose(values, expected[name][0].numpy(), atol=1e-4, err_msg=name)


def test_biases_lie_beside_the_kernels_and_nothing_is_said_of_a_classifier(
    exported: Artifact, trained: Checkpoint
) -> None:
    arrays = exported.arrays(LAYERS)
    assert arrays.keys() == {"outputs", "conv1.bias", "conv2.bias"}
    bias = load_network(trained).get_parameter("conv2.bias").detach().numpy()
    assert np.array_equal(arrays["conv2.bias"], bias)


def test_responses_and_examples_are_of_the_test_split(
    exported: Artifact, trained: Checkpoint
) -> None:
    images, labels = sample.read("test")
    responses, shown = exported.arrays(RESPONSES), exported.arrays(EXAMPLES)
    assert responses["conv2.images"].shape == (64, 9)
    image = responses["conv1.images"][3, 0]
    state = trained.state
    batch = dataset.normalize(torch.from_numpy(images[[image]]), state.mean, state.deviation)
    with torch.inference_mode():
        highest = load_network(trained).get_submodule("conv1")(batch)[0, 3].max().item()
    assert responses["conv1.values"][3, 0] == pytest.approx(highest, abs=1e-5)
    assert np.array_equal(shown["true"], labels[shown["index"]])
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (shown["true"], shown["predicted"]), 1)
    assert np.array_equal(matrix, exported.evaluation().confusion_matrix)  # of all 80 images


def test_confidence_is_fitted_on_the_held_out_images(
    exported: Artifact, trained: Checkpoint, source: dataset.Source
) -> None:
    assert list(exported.classifier.confidence) == ["float32"]
    found = exported.classifier.confidence["float32"]
    heldout = load_heldout(trained, source)
    outputs = open_backend(exported, "onnx-cpu").predict(heldout.images.numpy())
    true = outputs.probabilities[np.arange(20), heldout.labels.numpy()]
    assert found.heldout_images == 20
    assert found.conformal.lac[49] == pytest.approx(np.sort(1 - true)[10], abs=1e-5)
    assert found.out_of_distribution.auroc.keys() == foreign_images().keys()
    assert outputs.ood_scores is not None
    threshold = found.out_of_distribution.threshold
    assert threshold == pytest.approx(np.quantile(outputs.ood_scores, 0.95), abs=1e-4)


@pytest.mark.slow
def test_without_held_out_images_nothing_is_said_of_confidence(
    what: Export, tmp_path: Path
) -> None:
    recipe = what.checkpoint.state.recipe.replace(holdout=0.0)
    state = replace(what.checkpoint.state, recipe=recipe)
    checkpoint = replace(what.checkpoint, state=state)
    artifact = export.export(replace(what, checkpoint=checkpoint), tmp_path)
    assert artifact.classifier.confidence == {}
    assert [output.name for output in artifact.manifest.outputs] == ["logits", "probabilities"]
    assert "confidence" not in json.loads((artifact.path / MANIFEST).read_text())
    backend = open_backend(artifact, "onnx-cpu")
    assert backend.predict(sample.read("test")[0]).ood_scores is None
    assert artifact.manifest.layers
