"""An artifact's record of a network's inside, compared with the network itself."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from app.artifact.manifest import LayerRecord
from app.artifact.tensors import Images
from tests.support.tiny_networks import CONVOLUTIONS, DEVIATION, MEAN, flat_network, some_images
from tests.support.tiny_networks import tiny_network as build
from training.architectures.describe import changing_layers, layers_of
from training.data import dataset
from training.export import inside

Arrays = dict[str, NDArray[Any]]
SIDES = {"conv1": 3, "conv2": 8}


def _records(network: nn.Module) -> tuple[LayerRecord, ...]:
    return changing_layers(layers_of(network, torch.empty(1, 3, 32, 32)))


def _strongest(network: nn.Module, images: Images) -> Arrays:
    return inside.strongest_patches(network, _records(network), images, MEAN, DEVIATION)


@torch.no_grad()
def _maps(network: nn.Sequential, layer: str, images: Images) -> NDArray[np.float32]:
    """Return a layer's output, `[N,C,h,w]`, computed layer by layer."""
    values = dataset.normalize(torch.from_numpy(images), MEAN, DEVIATION)
    for name, module in network.named_children():
        values = module(values.clone())
        if name == layer:
            break
    found: NDArray[np.float32] = values.numpy()
    return found


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return build()


@pytest.fixture(scope="module")
def images() -> Images:
    return some_images(40)


@pytest.fixture(scope="module")
def found(network: nn.Sequential, images: Images) -> Arrays:
    return _strongest(network, images)


def test_the_kernels_of_every_convolution_are_kept_in_order(network: nn.Sequential) -> None:
    kernels = inside.first_filters_and_kernels(network, (32, 32))
    assert list(kernels) == list(CONVOLUTIONS)
    for name, weights in kernels.items():
        assert np.array_equal(weights, network.get_parameter(f"{name}.weight").detach().numpy())


def test_biases_are_those_of_the_convolutions_that_have_one(network: nn.Sequential) -> None:
    weights = inside.biases_and_classifier(network, _records(network))
    assert weights.keys() == {"conv1.bias", "classifier"}
    bias = network.get_parameter("conv1.bias").detach().numpy()
    assert np.array_equal(weights["conv1.bias"], bias)


def test_the_classifier_is_kept_where_it_follows_global_average_pooling(
    network: nn.Sequential,
) -> None:
    weights = inside.biases_and_classifier(network, _records(network))
    assert np.array_equal(weights["classifier"], network.get_parameter("fc.weight").detach())
    flat = flat_network()
    assert inside.biases_and_classifier(flat, _records(flat)) == {}


@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_a_filter_has_the_nine_images_that_it_responds_to_most(
    network: nn.Sequential, images: Images, found: Arrays, layer: str
) -> None:
    peaks = _maps(network, layer, images).max(axis=(2, 3)).T  # before any activation
    order = np.argsort(-peaks, axis=1)[:, :9]
    assert np.array_equal(found[f"{layer}.images"], order)
    expected = np.take_along_axis(peaks, order, axis=1)
    np.testing.assert_allclose(found[f"{layer}.values"], expected, rtol=1e-5, atol=1e-5)
    assert (found["conv1.values"][0] < -50).all()


def _place(maps: NDArray[np.float32], image: int, channel: int) -> tuple[int, int]:
    row, column = divmod(int(maps[image, channel].argmax()), maps.shape[-1])
    return row, column


@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_a_filter_sees_nothing_but_the_part_that_is_kept(
    network: nn.Sequential, images: Images, found: Arrays, layer: str
) -> None:
    maps, side = _maps(network, layer, images), SIDES[layer]
    other = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for (channel, rank), image in np.ndenumerate(found[f"{layer}.images"]):
        top, left = found[f"{layer}.corners"][channel, rank]
        part = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
        changed = other.copy()
        changed[part] = images[image][part]
        there = channel, *_place(maps, image, channel)
        value = found[f"{layer}.values"][channel, rank]
        assert _maps(network, layer, changed[None])[0][there] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_a_part_is_no_larger_than_what_the_filter_sees(
    images: Images, found: Arrays, layer: str
) -> None:
    # A network of the same shape without the bends: every pixel that is seen counts.
    straight = build()
    straight.pool1, straight.relu1 = nn.AvgPool2d(2), nn.Identity()
    maps, side = _maps(build(), layer, images), SIDES[layer]
    for channel, image in enumerate(found[f"{layer}.images"][:, 0]):
        top, left = found[f"{layer}.corners"][channel, 0]
        there = channel, *_place(maps, image, channel)
        before = _maps(straight, layer, images[image][None])[0][there]
        edges = [(top, slice(None)), (top + side - 1, slice(None))]
        edges += [(slice(None), left), (slice(None), left + side - 1)]
        for edge in edges:
            if all(isinstance(line, slice) or 0 <= line < 32 for line in edge):
                changed = images[image].copy()
                changed[edge] = 255 - changed[edge]
                assert _maps(straight, layer, changed[None])[0][there] != before


def _parts(found: Arrays, layer: str) -> NDArray[np.uint8]:
    """The pictures of a sheet, uint8 `[filters,9,side,side,3]`."""
    sheet = np.asarray(Image.open(io.BytesIO(found[f"{layer}.sheet"].tobytes())).convert("RGB"))
    side = sheet.shape[1] // 9
    return sheet.reshape(-1, side, 9, side, 3).swapaxes(1, 2)


@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_the_sheet_shows_the_parts_in_rows_of_filters(
    images: Images, found: Arrays, layer: str
) -> None:
    parts, side = _parts(found, layer), SIDES[layer]
    assert parts.shape == (*found[f"{layer}.images"].shape, side, side, 3)
    padded = np.pad(images, ((0, 0), (8, 8), (8, 8), (0, 0)), constant_values=128)
    expected = np.empty_like(parts)
    for place, image in np.ndenumerate(found[f"{layer}.images"]):
        top, left = found[f"{layer}.corners"][place] + 8
        expected[place] = padded[image, top : top + side, left : left + side]
    loss = np.abs(parts.astype(int) - expected).mean(axis=(2, 3, 4))
    assert loss.mean() < 12  # at this size WebP halves the colours' resolution
    assert loss.max() < 40


def test_who_sees_the_whole_image_is_shown_with_the_whole_image(images: Images) -> None:
    network = nn.Sequential()
    network.conv = nn.Conv2d(3, 2, 3, padding=1)
    network.average = nn.AdaptiveAvgPool2d(1)
    network.mix = nn.Conv2d(2, 5, 1)
    found = _strongest(network.eval(), images)
    parts = _parts(found, "mix")
    assert parts.shape == (5, 9, 16, 16, 3)
    assert not found["mix.corners"].any()
    first = Image.fromarray(images[found["mix.images"][3, 4]]).resize((16, 16), 3)
    assert np.abs(parts[3, 4].astype(int) - np.asarray(first)).mean() < 12


def test_batches_change_nothing(
    network: nn.Sequential, images: Images, found: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "_BATCH", 7)
    batched = _strongest(network, images)
    assert batched.keys() == found.keys()
    for name, array in batched.items():
        np.testing.assert_allclose(array, found[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_every_layer_keeps_as_many_of_its_first_filters(
    network: nn.Sequential, images: Images, found: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "MOST_FILTERS", 7)
    few = _strongest(network, images)
    for layer in CONVOLUTIONS:
        assert np.array_equal(few[f"{layer}.images"], found[f"{layer}.images"][:3])
        assert _parts(few, layer).shape[0] == 3


def test_there_are_no_responses_without_convolutions_or_without_nine_images(
    network: nn.Sequential, images: Images
) -> None:
    assert _strongest(flat_network(), images) == {}
    assert _strongest(network, images[:8]) == {}
    assert _strongest(network, images[:9])
