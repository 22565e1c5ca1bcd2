import pytest
import torch

from training.architectures import find_architecture
from training.describe import Layer, describe
from training.errors import RecipeError


def _layers(name: str) -> dict[str, Layer]:
    return {layer.name: layer for layer in describe(name).layers}


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("simple-cnn", 1_070_986, 6_654_464), ("fc", 820_874, 820_480)],
)
def test_the_exercises_networks_have_the_exercises_size(
    name: str, parameters: int, macs: int
) -> None:
    description = describe(name)
    assert (description.parameters, description.macs) == (parameters, macs)
    network = find_architecture(name).build(10, 0.0)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_vgg16_reproduces_the_articles_arithmetic() -> None:
    description = describe("vgg16-imagenet")
    layers = _layers("vgg16-imagenet")
    assert description.parameters == 138_357_544
    assert layers["features.0"].weights == 64 * 3 * 3 * 3 == 1_728
    assert layers["features.0"].parameters == 3 * 3 * 3 * 64 + 64
    assert layers["classifier.3"].weights == 4096 * 4096 == 16_777_216
    convolutions = [layer for layer in description.layers if layer.kind.startswith("Conv2d")]
    connected = [layer for layer in description.layers if layer.kind.startswith("Linear")]
    assert (len(convolutions), len(connected)) == (13, 3)
    assert sum(layer.parameters for layer in connected) > description.parameters / 2


def test_vgg16s_last_pool_sees_212_pixels() -> None:
    assert _layers("vgg16-imagenet")["features.30"].receptive_field == 212


@pytest.mark.parametrize(("layer", "pixels"), [("conv1", 3), ("pool1", 4), ("conv2", 8)])
def test_receptive_fields_are_as_wide_as_gradients_reach(layer: str, pixels: int) -> None:
    torch.manual_seed(0)
    network = find_architecture("simple-cnn").build(10, 0.0).eval()
    image = output = torch.rand(1, 3, 32, 32, requires_grad=True)
    for name, child in network.named_children():
        if "pool" in name:
            output = torch.nn.functional.avg_pool2d(output, 2)  # unlike a maximum, sees all four
        elif "relu" not in name:
            output = child(output)
        if name == layer:
            break
    output[0, :, 7, 7].sum().backward()
    assert image.grad is not None
    assert len(image.grad[0].abs().sum((0, 2)).nonzero()) == pixels
    assert _layers("simple-cnn")[layer].receptive_field == pixels


def test_a_fully_connected_layer_sees_the_whole_image() -> None:
    assert _layers("simple-cnn")["fc1"].receptive_field is None


def test_an_unknown_architecture_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="no architecture 'lenet'; there are simple-cnn"):
        describe("lenet")
