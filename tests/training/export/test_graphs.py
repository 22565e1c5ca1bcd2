"""The graphs of a network as it is served: their outputs are the eager network's."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from app.artifact.directory import Artifact
from app.artifact.files import LAYER_OUTPUTS, LAYERS, ONNX_GRAPH, PIXELS
from app.artifact.manifest import FEATURES, BackendName, Views
from app.artifact.tensors import OOD_SCORE
from app.inference.backends import open_backend, open_layers
from tests.support.tiny_networks import (
    DEVIATION,
    MEAN,
    TEMPERATURE,
    flat_network,
    some_images,
    tiny_network,
    write_graphs,
)
from training.architectures.rounding import rounded
from training.data import dataset
from training.export.confidence import fit_ood_score
from training.export.graphs import ServedNetwork, nodes_of_logits
from training.export.layer_outputs import outputs_of

Pair = tuple[ServedNetwork, Artifact]


def _serve(kind: str, views: Views = 1) -> ServedNetwork:
    """A network with its score; `tiny` averages its last feature map, `flat` has none."""
    network = flat_network() if kind == "flat" else tiny_network()
    parts = rounded(network) if kind == "half" else network, MEAN, DEVIATION, TEMPERATURE, views
    images = some_images()
    score = fit_ood_score(ServedNetwork(*parts).eval(), images[::2], images[1::2])
    return ServedNetwork(*parts, score).eval()


@pytest.fixture(
    scope="module",
    params=[("tiny", 1), ("tiny", 6), ("flat", 1), ("half", 2)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    kind, views = request.param
    served, store = _serve(kind, views), tmp_path_factory.mktemp("graphs")
    return served, write_graphs(served, store, half=kind == "half")


@pytest.mark.parametrize("backend", ["onnx-cpu", "torch-cpu"])
@pytest.mark.parametrize("count", [1, 9])
def test_both_graphs_give_the_networks_probabilities_and_scores(
    pair: Pair, backend: BackendName, count: int
) -> None:
    served, artifact = pair
    images = some_images()[-count:]
    expected, found = served.predict(images), open_backend(artifact, backend).predict(images)
    assert found.ood_scores is not None
    assert expected.ood_scores is not None
    assert found.ood_scores.shape == (count,)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(found.ood_scores, expected.ood_scores, atol=1e-3)
    assert count == 1 or np.ptp(expected.ood_scores) > 0.1


def test_every_layer_gives_what_the_network_gives_for_the_image_as_it_is(pair: Pair) -> None:
    served, artifact = pair
    names = [PIXELS, *(layer.name for layer in artifact.manifest.layers)]
    layers = open_layers(artifact)
    for image in some_images()[[3, 40]]:
        batch = torch.from_numpy(image[np.newaxis])
        with torch.inference_mode(), outputs_of(served.plain, names, 1) as expected:
            served.plain(dataset.normalize(batch, MEAN, DEVIATION))
        found = layers.outputs(image, names)
        for name, values in zip(names, found, strict=True):
            np.testing.assert_allclose(
                values, expected[name][0].numpy(), atol=1e-4, rtol=1e-4, err_msg=name
            )


def test_the_score_is_of_its_layers_maps_and_of_the_logits(pair: Pair) -> None:
    served, artifact = pair
    score, image = served.ood_score, some_images()[11]
    assert score is not None
    (maps,) = open_layers(artifact).outputs(image, [score.layer])
    outputs = open_backend(artifact, "onnx-cpu").predict(image[np.newaxis])
    with torch.no_grad():
        logits = served(torch.from_numpy(image[np.newaxis]))[0]
    expected = score(torch.from_numpy(maps[np.newaxis]), logits).item()
    assert outputs.ood_scores is not None
    assert outputs.ood_scores[0] == pytest.approx(expected, abs=1e-3)


def test_layers_can_be_asked_for_in_any_order_and_alone(pair: Pair) -> None:
    _, artifact = pair
    layers, image = open_layers(artifact), some_images()[0]
    names = [PIXELS, *(layer.name for layer in artifact.manifest.layers)]
    together = dict(zip(names, layers.outputs(image, names), strict=True))
    for name in reversed(names):
        (alone,) = layers.outputs(image, [name])
        assert np.array_equal(alone, together[name]), name


def test_the_shapes_are_those_that_the_records_name(pair: Pair) -> None:
    _, artifact = pair
    records = artifact.manifest.layers
    found = open_layers(artifact).outputs(some_images()[0], [layer.name for layer in records])
    assert [values.shape for values in found] == [layer.shape for layer in records]


def test_the_pixels_are_the_normalised_image(pair: Pair) -> None:
    image = some_images()[5]
    (pixels,) = open_layers(pair[1]).outputs(image, [PIXELS])
    np.testing.assert_allclose(
        pixels.transpose(1, 2, 0), (image / 255 - MEAN) / DEVIATION, atol=1e-5
    )


def test_features_are_what_is_averaged_where_a_network_ends_in_that(pair: Pair) -> None:
    served, artifact = pair
    averages = hasattr(served.plain, "average")
    assert (FEATURES in served.output_names) == averages
    if not averages:
        return
    image = some_images()[7]
    layers = open_layers(artifact)
    features = layers.features(image)
    (last_map,) = layers.outputs(image, ["relu2"])
    assert np.array_equal(features, last_map)
    weights = served.plain.get_parameter("fc.weight").detach().numpy()
    (logits,) = layers.outputs(image, ["fc"])
    bias = served.plain.get_parameter("fc.bias").detach().numpy()
    np.testing.assert_allclose(weights @ features.mean((1, 2)) + bias, logits, atol=1e-4)


def test_the_graph_that_predicts_has_no_layers_among_its_outputs(pair: Pair) -> None:
    served, artifact = pair
    graph = artifact.read(ONNX_GRAPH)
    more = artifact.arrays(LAYERS)[LAYER_OUTPUTS].tobytes()
    names = [output.name for output in onnx.load_from_string(graph).graph.output]
    assert names == list(served.output_names)
    whole = onnx.load_from_string(graph + more)
    onnx.checker.check_model(whole)
    layers = [f"layer.{name}" for name in (PIXELS, *(layer.name for layer in served.layers))]
    assert [output.name for output in whole.graph.output] == names + layers
    assert len(more) < 200 * (len(layers) + 1)  # names and shapes, no weights


def test_a_network_without_a_score_gives_none(tmp_path: Path) -> None:
    served = ServedNetwork(tiny_network(), MEAN, DEVIATION, TEMPERATURE).eval()
    assert OOD_SCORE not in served.output_names
    artifact = write_graphs(served, tmp_path)
    images = some_images(3)
    backends: tuple[BackendName, ...] = ("onnx-cpu", "torch-cpu")
    for backend in backends:
        found = open_backend(artifact, backend).predict(images)
        assert found.ood_scores is None
        expected = served.predict(images).probabilities
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)


def test_exporting_leaves_the_network_as_it_was(pair: Pair) -> None:
    plain = pair[0].plain
    assert all(relu.inplace for relu in plain.modules() if isinstance(relu, torch.nn.ReLU))
    for module in plain.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_score_of_a_network_in_float16_keeps_its_float32(pair: Pair) -> None:
    served, artifact = pair
    graph = onnx.load_from_string(artifact.read(ONNX_GRAPH))
    of_logits = {name for node in nodes_of_logits(graph) for name in node.input}
    for tensor in graph.graph.initializer:
        if tensor.name not in of_logits:
            assert tensor.data_type != onnx.TensorProto.FLOAT16, tensor.name
    precision = next(t for t in graph.graph.initializer if t.name.endswith("ood_score.precision"))
    assert served.ood_score is not None
    expected = served.ood_score.precision.numpy()
    assert np.array_equal(onnx.numpy_helper.to_array(precision), expected)
