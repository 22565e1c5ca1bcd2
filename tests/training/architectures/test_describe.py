from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.artifact.manifest import LayerRecord, Window
from training.architectures import find_architecture
from training.architectures.describe import (
    averaged_layer,
    changing_layers,
    count_weights,
    describe,
    layers_of,
)
from training.errors import RecipeError


def _layers(name: str) -> dict[str, LayerRecord]:
    return {layer.name: layer for layer in describe(name).layers}


def _records(name: str) -> dict[str, LayerRecord]:
    return {record.name: record for record in changing_layers(describe(name).layers)}


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
    assert count_weights(layers["features.0"]) == 64 * 3 * 3 * 3 == 1_728
    assert layers["features.0"].parameters == 3 * 3 * 3 * 64 + 64
    assert count_weights(layers["classifier.3"]) == 4096 * 4096 == 16_777_216
    convolutions = [layer for layer in description.layers if layer.kind.startswith("Conv2d")]
    connected = [layer for layer in description.layers if layer.kind.startswith("Linear")]
    assert (len(convolutions), len(connected)) == (13, 3)
    assert sum(layer.parameters for layer in connected) > description.parameters / 2


@pytest.mark.parametrize("name", ["simple-cnn", "fc", "speednet-96", "efficientnet-b0", "vgg16"])
def test_the_weights_of_a_layer_are_those_of_its_kernel_or_matrix(name: str) -> None:
    network = find_architecture(name).build(10, 0.0)
    for layer in describe(name).layers:
        weight = getattr(network.get_submodule(layer.name), "weight", None)
        expected = weight.numel() if weight is not None and weight.ndim > 1 else 0
        assert count_weights(layer) == expected, layer.name


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


def test_the_records_of_simple_cnn_are_its_layers_in_their_order() -> None:
    records = _records("simple-cnn")
    blocks = [[f"{kind}{number}" for kind in ("conv", "bn", "relu", "pool")] for number in (1, 2)]
    chain = [*blocks[0], *blocks[1], "fc1", "relu3", "fc2"]
    assert list(records) == chain  # what only passes numbers on is left out
    assert [record.source for record in records.values()] == ["pixels", *chain[:-1]]
    assert records["conv1"] == LayerRecord(
        name="conv1",
        kind="Conv2d 3→32, 3×3",
        source="pixels",
        shape=(32, 32, 32),
        parameters=896,
        macs=884_736,
        receptive_field=3,
        effective_padding=1,
        window=Window(kernel=3, stride=1, padding=1),
    )
    assert records["pool1"].window == Window(kernel=2, stride=2)
    assert (records["fc1"].window, records["fc1"].shape) == (None, (256,))
    convolutions = [name for name, record in records.items() if record.is_convolution]
    assert convolutions == ["conv1", "conv2"]


def test_the_records_of_a_residual_network_know_where_branches_meet() -> None:
    records = _records("resnet20")
    assert records["conv"].source == "pixels"
    first = records["block1_1.residual.conv1"]
    assert (first.source, first.receptive_field) == ("relu", 5)
    assert records["block1_1.residual.conv2"].source == "block1_1.residual.relu"
    assert records["block1_1.relu"].source is None
    assert records["block1_2.residual.conv1"].source == "block1_1.relu"
    halving = records["block2_1.residual.conv1"]
    assert halving.window == Window(kernel=3, stride=2, padding=1)
    assert (halving.shape, halving.receptive_field) == ((32, 16, 16), 17)
    # The wider branch counts: two more convolutions at half size.
    assert records["block2_1.residual.conv2"].receptive_field == 17 + 2 * 2
    assert records["fc"].receptive_field is None
    assert records["fc"].source == "average"


def test_a_depthwise_convolution_sees_one_channel_with_each_filter() -> None:
    records = _records("efficientnet-b0")
    depthwise = records["block2_1.layers.depthwise"]
    assert depthwise.window == Window(kernel=3, stride=2, padding=1, groups=96)
    assert (depthwise.shape, depthwise.parameters) == ((96, 16, 16), 96 * 9)
    assert records["block2_1.layers.expand"].window == Window(kernel=1, stride=1)
    # A gate between the two multiplies what is projected, so no one layer is before it.
    assert records["block2_1.layers.project"].source is None
    squeeze = records["block2_1.layers.excite.gate.squeeze"]
    assert (squeeze.receptive_field, squeeze.shape) == (None, (4, 1, 1))


@pytest.mark.parametrize(
    "name", ["simple-cnn", "fc", "fast", "speednet-96", "alexnet", "vgg16", "resnet18"]
)
def test_every_record_names_a_layer_of_the_network_once(name: str) -> None:
    network = find_architecture(name).build(10, 0.0)
    layers = changing_layers(describe(name).layers)
    names = [layer.name for layer in layers]
    assert len(set(names)) == len(names)
    for index, layer in enumerate(layers):
        network.get_submodule(layer.name)
        assert layer.source in (None, "pixels", *names[:index])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "block4_2.relu"),
        ("resnet20", "block3_3.relu"),
        ("vgg16", None),  # has one pixel left before it
        ("efficientnet-b0", "block7_1.layers.bn3"),
        ("simple-cnn", None),
        ("fc", None),
        ("fast", None),  # takes the highest value of each channel
    ],
)
def test_the_averaged_layer_is_the_one_before_global_average_pooling(
    name: str, layer: str | None
) -> None:
    found = averaged_layer(changing_layers(describe(name).layers))
    assert found == layer


@pytest.mark.parametrize(("side", "averaged"), [(1, "conv"), (2, None)])
def test_an_average_over_parts_of_the_image_is_not_one_over_all(
    side: int, averaged: str | None
) -> None:
    network = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3),
            average=nn.AdaptiveAvgPool2d(side),
            flatten=nn.Flatten(),
            fc=nn.Linear(4 * side**2, 2),
        )
    )
    layers = changing_layers(layers_of(network.eval(), torch.empty(1, 3, 32, 32)))
    assert averaged_layer(layers) == averaged


def test_padding_is_said_in_pixels_however_it_was_asked_for() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 2, 5, padding="same"), nn.Conv2d(2, 2, 3, padding="valid"), nn.AvgPool2d(2)
    )
    layers = layers_of(network.eval(), torch.empty(1, 3, 32, 32))
    assert [layer.window for layer in layers] == [
        Window(kernel=5, stride=1, padding=2),
        Window(kernel=3, stride=1, padding=0),
        Window(kernel=2, stride=2, padding=0),
    ]


class _DownAndUp(nn.Module):
    """A convolution, two ways back to the first size, and a convolution there."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 4, 2, 1)
        self.up = nn.ConvTranspose2d(4, 2, 2, 2)
        self.here = nn.Conv2d(2, 1, 3, padding=1)
        self.there = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        small = self.down(image)
        large = functional.interpolate(small, size=image.shape[2:], mode="nearest")
        return self.here(self.up(small)), self.there(large)


def test_what_is_enlarged_sees_with_the_steps_of_its_new_size() -> None:
    layers = {layer.name: layer for layer in layers_of(_DownAndUp(), torch.empty(1, 3, 16, 16))}
    up = layers["up"]
    assert (up.kind, up.shape) == ("ConvTranspose2d 4→2, 2×2, stride 2", (2, 16, 16))
    assert up.macs == 4 * 2 * 2 * 2 * 8 * 8
    assert (up.receptive_field, up.effective_stride) == (4, 1)
    assert layers["here"].receptive_field == 6
    assert layers["there"].receptive_field == 6
