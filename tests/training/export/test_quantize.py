import json
import os
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import nn

from app.artifact.directory import Artifact, record_file
from app.artifact.files import GOLDEN, INT8_GRAPH, MANIFEST, ONNX_GRAPH
from app.errors import ArtifactError
from app.inference.backends import open_backend
from tests.support import sample
from training.architectures.efficientnet import SqueezeExcitation
from training.cli import main
from training.data import dataset
from training.errors import ExportError
from training.evaluate import answer, load_heldout, load_network, read_evaluation
from training.export import quantize
from training.export.export import Export, export
from training.export.graphs import ServedNetwork, onnx_graph
from training.run.checkpoint import Checkpoint
from training.tasks.classification import fit_temperature

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def what(trained: Checkpoint, source: dataset.Source) -> Export:
    found = read_evaluation(trained)
    assert found is not None
    return Export(trained, found, source, "tiny", "1", int8=True)


@pytest.fixture
def _any_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the sample's 20 held-out images, one is five points."""
    monkeypatch.setattr(quantize, "MOST_LOST", 1.0)


@pytest.fixture(scope="module")
def both(what: Export, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny run's artifact with both graphs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "MOST_LOST", 1.0)
        return export(what, tmp_path_factory.mktemp("store"))


def test_the_int8_graph_answers_nearly_as_the_network(both: Artifact, trained: Checkpoint) -> None:
    images = sample.read("test")[0]
    state, record = trained.state, both.classifier.int8
    assert record is not None
    assert record.temperature is not None
    batch = dataset.normalize(torch.from_numpy(images), state.mean, state.deviation)
    with torch.inference_mode():
        logits = load_network(trained)(batch) / record.temperature
    found = open_backend(both, "onnx-cpu", precision="int8").predict(images).probabilities
    difference = np.abs(found - logits.softmax(1).numpy()).max()
    assert 1e-4 < difference < 0.1


@pytest.mark.parametrize("count", [1, 7])
def test_the_batch_is_free(both: Artifact, count: int) -> None:
    backend = open_backend(both, "onnx-cpu", precision="int8")
    images = sample.read("test")[0]
    one_by_one = np.concatenate(
        [backend.predict(image[None]).probabilities for image in images[:count]]
    )
    np.testing.assert_allclose(backend.predict(images[:count]).probabilities, one_by_one, atol=1e-6)


def _int8_weights(graph: bytes) -> dict[str, NDArray[np.int64]]:
    """Return a graph's kernels and matrices that are in int8, by their names in the network."""
    return {
        tensor.name.removeprefix("served.network."): onnx.numpy_helper.to_array(tensor).astype(int)
        for tensor in onnx.load_from_string(graph).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    }


def test_products_of_two_weights_do_not_overflow_without_vnni(both: Artifact) -> None:
    weights = _int8_weights(both.read(INT8_GRAPH))
    assert list(weights) == [
        "conv1.weight_quantized",
        "conv2.weight_quantized",
        "fc1.weight_quantized",
    ]
    for name, values in weights.items():
        assert 2 * 255 * np.abs(values).max() < 1 << 15, name


def test_pixels_and_logits_are_not_rounded(both: Artifact) -> None:
    graph = onnx.load_from_string(both.read(INT8_GRAPH)).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types["served.network.fc2.weight"] == onnx.TensorProto.FLOAT
    order = [node.op_type for node in graph.node]
    first = order.index("QuantizeLinear")
    assert max(order.index("Mul"), order.index("Sub")) < first
    last = len(order) - 1 - order[::-1].index("QuantizeLinear")
    assert last < order.index("Gemm", order.index("Gemm") + 1)


def test_what_is_made_of_an_images_means_is_not_rounded() -> None:
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 8, 3, padding=1),
            gated=SqueezeExcitation(8, 2),
            conv2=nn.Conv2d(8, 8, 3, padding=1),
            average=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(8, 10),
        )
    )
    images = sample.read("train")[0][:50]
    served = ServedNetwork(network.eval(), [0.5] * 3, [0.25] * 3, 1.0, 1).eval()
    int8 = _int8_weights(quantize.quantize(onnx_graph(served, images)[0], images))
    assert int8.keys() == {"conv1.weight_quantized", "conv2.weight_quantized"}


def test_normalisation_is_part_of_the_int8_layers(both: Artifact) -> None:
    kinds = {node.op_type for node in onnx.load_from_string(both.read(INT8_GRAPH)).graph.node}
    assert "Conv" in kinds
    assert "BatchNormalization" not in kinds


def test_the_record_says_what_was_measured(
    both: Artifact, trained: Checkpoint, source: dataset.Source
) -> None:
    record = both.classifier.int8
    assert record is not None
    images, labels = sample.read("test")
    probabilities = open_backend(both, "onnx-cpu", precision="int8").predict(images).probabilities
    right = probabilities.argmax(1) == labels
    assert record.test_accuracy == pytest.approx(right.mean())
    of_truth = probabilities[np.arange(len(labels)), labels]
    assert record.test_cross_entropy == pytest.approx(-np.log(of_truth).mean(), abs=1e-5)
    confidence = probabilities.max(1)
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [abs((confidence - right)[bins == index].sum()) for index in range(15)]
    assert record.test_ece == pytest.approx(sum(gaps) / len(labels), abs=1e-5)

    held = load_heldout(trained, source)
    backends = [open_backend(both, "onnx-cpu"), open_backend(both, "onnx-cpu", precision="int8")]
    found = [
        np.mean(backend.predict(held.images.numpy()).probabilities.argmax(1) == held.labels.numpy())
        for backend in backends
    ]
    assert found == [record.heldout_accuracy_float32, record.heldout_accuracy]
    assert record.calibration_images == 220


def test_each_graph_has_the_thresholds_of_its_own_answers(
    both: Artifact, trained: Checkpoint, source: dataset.Source
) -> None:
    confidence = both.classifier.confidence
    assert list(confidence) == ["float32", "int8"]
    images = load_heldout(trained, source).images.numpy()
    for precision, record in confidence.items():
        outputs = open_backend(both, "onnx-cpu", precision=precision).predict(images)
        assert outputs.ood_scores is not None
        threshold = record.out_of_distribution.threshold
        assert threshold == pytest.approx(np.quantile(outputs.ood_scores, 0.95), abs=1e-3)
        assert record.heldout_images == len(images) == 20
    assert confidence["float32"].conformal.lac != confidence["int8"].conformal.lac


def test_the_score_is_computed_in_float32(both: Artifact) -> None:
    graph = onnx.load_from_string(both.read(INT8_GRAPH)).graph
    makers = {name: node for node in graph.node for name in node.output}
    matrix = next(node for node in graph.node if "served.ood_score.precision" in node.input)
    sources = [makers[name].op_type for name in matrix.input if name in makers]
    assert sources == ["Sub"]


def test_float32_is_the_same_with_int8_beside_it(both: Artifact, exported: Artifact) -> None:
    assert both.read_graph(ONNX_GRAPH) == exported.read_graph(ONNX_GRAPH)
    with_int8, without = both.arrays(GOLDEN), exported.arrays(GOLDEN)
    assert with_int8.keys() - without.keys() == {"probabilities_int8", "ood_scores_int8"}
    for name, array in without.items():
        assert np.array_equal(with_int8[name], array)
    assert both.classifier.test == exported.classifier.test
    assert both.manifest.golden_tolerance == exported.manifest.golden_tolerance


def test_without_the_option_there_is_no_trace_of_int8(exported: Artifact) -> None:
    manifest = json.loads((exported.path / MANIFEST).read_text())
    assert "int8" not in manifest
    assert INT8_GRAPH not in manifest["files"]
    assert not (exported.path / INT8_GRAPH).exists()


def test_calibration_uses_images_that_were_trained_on_and_the_same_ones_again(
    trained: Checkpoint, source: dataset.Source
) -> None:
    chosen = quantize.choose_training_images(trained, source, 50).images.numpy()
    assert chosen.shape == (50, 32, 32, 3)
    train, recipe = source.load_train(), trained.state.recipe
    kept, _ = dataset.split_holdout(train.labels, recipe.holdout, recipe.split_seed)
    known = {image.tobytes() for image in train.images[kept].numpy()}
    assert {image.tobytes() for image in chosen} <= known
    assert len({image.tobytes() for image in chosen}) == 50
    again = quantize.choose_training_images(trained, source, 50)
    assert np.array_equal(chosen, again.images.numpy())


@pytest.mark.parametrize(
    ("int8", "refused"), [(0.8450, False), (0.8448, True), (0.9, False), (0.5, True)]
)
def test_int8_may_cost_three_tenths_of_a_point(int8: float, refused: bool) -> None:
    if not refused:
        quantize.check_loss(0.848, int8, 5000)
        return
    with pytest.raises(ExportError) as caught:
        quantize.check_loss(0.848, int8, 5000)
    lost = (0.848 - int8) * 100
    assert str(caught.value) == (
        f"int8 classifies {int8:.2%} of the 5000 held-out images correctly, float32 84.80%: "
        f"it loses {lost:.2f} points; the limit is 0.30"
    )


def _of_another_temperature(graph: bytes, factor: float) -> bytes:
    """Multiply the temperature; by -1, the likeliest class becomes the least likely."""
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        if "logits" in node.output:
            divisor = node.input[1]
    for tensor in model.graph.initializer:
        if tensor.name == divisor:
            values = np.float32(factor) * onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, divisor))
    return bytes(model.SerializeToString())


@pytest.mark.usefixtures("_any_loss")
def test_the_temperature_is_fitted_anew(
    what: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = quantize.quantize
    monkeypatch.setattr(
        quantize, "quantize", lambda *given: _of_another_temperature(sound(*given), 3)
    )
    unsure = export(what, tmp_path)
    heldout = load_heldout(what.checkpoint, what.source)
    found = answer(open_backend(unsure, "onnx-cpu", precision="int8").predict, heldout)
    logits = torch.from_numpy(found.outputs.probabilities).log()
    assert fit_temperature(logits, heldout.labels) == pytest.approx(1, abs=0.01)


def test_a_graph_that_loses_too_much_on_the_held_out_images_is_not_exported(
    what: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heldout = load_heldout(what.checkpoint, what.source)
    sound = quantize.quantize
    monkeypatch.setattr(
        quantize, "quantize", lambda *given: _of_another_temperature(sound(*given), -1)
    )
    with pytest.raises(ExportError, match=rf"of the {len(heldout)} held-out .* limit is 0\.30$"):
        export(what, tmp_path)
    assert not list(tmp_path.glob("*/*"))


def test_the_held_out_images_decide_before_the_test_images_are_read(
    both: Artifact, what: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_too_early() -> dataset.Split:
        raise AssertionError("the test split was read")

    path = _copy(both, tmp_path)
    monkeypatch.setattr(quantize, "MOST_LOST", -2.0)
    with pytest.raises(ExportError, match="the limit is -200"):
        quantize.add_int8(
            Artifact(path, both.manifest),
            what.checkpoint,
            replace(what.source, load_test=read_too_early),
        )


def test_a_run_without_held_out_images_has_nothing_to_prove_int8_with(
    what: Export, tmp_path: Path
) -> None:
    recipe = what.checkpoint.state.recipe.replace(holdout=0.0)
    state = replace(what.checkpoint.state, recipe=recipe)
    whole = replace(what, checkpoint=replace(what.checkpoint, state=state))
    with pytest.raises(
        ExportError, match=r"holdout is 0 and holds out nothing; .* export without --int8"
    ):
        export(whole, tmp_path / "store")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_any_loss")
def test_golden_images_tell_an_int8_graph_of_another_temperature(
    both: Artifact, what: Export, tmp_path: Path
) -> None:
    path = _copy(both, tmp_path)
    images = quantize.choose_training_images(what.checkpoint, what.source, 1000).images.numpy()
    graph = quantize.quantize(_of_another_temperature(both.read_graph(ONNX_GRAPH), 1.5), images)
    (path / INT8_GRAPH).write_bytes(graph)
    files = both.manifest.files | {INT8_GRAPH: record_file(path / INT8_GRAPH)}
    changed = Artifact(path, both.manifest.model_copy(update={"files": files}))
    with pytest.raises(ArtifactError, match="differs from the golden probabilities"):
        open_backend(changed, "onnx-cpu", precision="int8")


def test_a_graph_without_layers_is_refused_in_one_line() -> None:
    node = onnx.helper.make_node("Relu", ["image"], ["probabilities"])
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3])
        for name in ("image", "probabilities")
    ]
    graph = onnx.helper.make_graph([node], "none", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    with pytest.raises(ExportError, match="cannot quantise the graph: it has no Conv or"):
        quantize.quantize(model.SerializeToString(), np.zeros((1, 1, 1, 3), np.uint8))


@pytest.mark.usefixtures("_any_loss")
def test_the_option_of_the_command_adds_the_graph(
    trained: Checkpoint, image_folder: Path, tmp_path: Path
) -> None:
    run, store = trained.path.parent, tmp_path / "store"
    arguments = ["export", run, "--int8", "--data-dir", image_folder, "--store", store]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert ", int8 " in result.output
    assert (store / "simple-cnn" / "1" / INT8_GRAPH).is_file()


def test_telemetry_is_off_before_the_quantiser_is_imported() -> None:
    program = (
        "import os, sys, training.export.quantize\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime.quantization' in sys.modules)"
    )
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ORT_")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "1 False\n", done.stderr


def _copy(artifact: Artifact, place: Path) -> Path:
    for name in (*artifact.manifest.files, MANIFEST):
        (place / name).write_bytes((artifact.path / name).read_bytes())
    return place
