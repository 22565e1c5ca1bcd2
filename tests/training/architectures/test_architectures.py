import copy

import pytest
import torch
from torch import Tensor, nn

from training.architectures import ARCHITECTURES, find_architecture, initialize_from
from training.architectures.describe import describe
from training.architectures.simple_cnn import SimpleCNN
from training.architectures.speednet import SpeedNet, Whitening
from training.data import dataset

TRAINED_HERE = [name for name in ARCHITECTURES if not name.endswith("-imagenet")]
CLASSIFIERS = [name for name in TRAINED_HERE if ARCHITECTURES[name].task == "classification"]


@pytest.mark.parametrize(
    ("name", "parameters", "mega_macs"),
    [
        ("simple-cnn", 1_070_986, 6.65),
        ("fc", 820_874, 0.82),
        ("vgg16", 14_728_266, 313.2),
        ("resnet18", 11_173_962, 555.4),
        ("resnet20", 269_722, 40.6),
        ("plain20", 269_722, 40.6),
        ("alexnet", 23_272_266, 62.7),
        ("efficientnet-b0", 3_599_686, 31.4),
        ("speednet", 1_972_768, 118.1),
        ("fast", 1_336_480, 77.3),
        ("speednet-proxy", 146_720, 17.1),
        ("speednet-95", 4_606_496, 301.6),
        ("speednet-96", 9_918_752, 452.0),
        ("alexnet-imagenet", 61_100_840, 714.2),
        ("vgg16-imagenet", 138_357_544, 15_470.3),
        ("resnet50-imagenet", 25_557_032, 4_089.2),
        ("efficientnet-b0-imagenet", 5_288_548, 385.8),
    ],
)
def test_a_networks_size_is_the_known_one(name: str, parameters: int, mega_macs: float) -> None:
    description = describe(name)
    assert description.parameters == parameters
    assert description.macs / 1e6 == pytest.approx(mega_macs, abs=0.06)


@pytest.mark.parametrize("name", TRAINED_HERE)
def test_what_is_described_is_what_is_trained(name: str) -> None:
    architecture = find_architecture(name)
    network = architecture.build(architecture.classes, 0.0)
    held = sum(parameter.numel() for parameter in network.parameters())
    assert held == describe(name).parameters


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_images_become_finite_logits_and_every_weight_that_learns_has_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    network = find_architecture(name).build(7, 0.1)
    logits = network(torch.randn(4, 3, 32, 32))
    assert logits.shape == (4, 7)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().max() > 0, parameter_name


def test_pooling_before_relu_in_training_changes_no_gradient_of_simple_cnn() -> None:
    torch.manual_seed(0)
    network = SimpleCNN().double()  # which torch computes
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    as_listed = nn.Sequential(*network)
    gradients = (
        torch.autograd.grad(logits.square().sum(), list(network.parameters()))
        for logits in (network(images), as_listed(images))
    )
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


Gradients = dict[str, Tensor]
"""By parameter. Biases before a normalisation are left out: theirs are rounding errors."""


def _gradients(forward: nn.Module, images: Tensor, of: SimpleCNN) -> Gradients:
    parameters = dict(of.named_parameters())
    found = torch.autograd.grad(forward(images).double().square().sum(), list(parameters.values()))
    gradients = dict(zip(parameters, found, strict=True))
    return {name: gradients[name] for name in gradients.keys() - {"conv1.bias", "conv2.bias"}}


def _assert_within(found: Gradients, expected: Gradients, tolerance: float) -> None:
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


def _take_pixels(of: nn.Conv2d, into: nn.Conv2d) -> None:
    """Let a convolution in float64 give the values of one in float32, with its own gradients.

    Each pooling then selects the same pixels in both networks. A pixel that rounding selects in one
    network alone would hide all other differences.
    """
    pixels: list[Tensor] = []
    of.register_forward_hook(lambda _layer, _inputs, output: pixels.append(output.detach()))
    into.register_forward_hook(
        lambda _layer, _inputs, output: output + (pixels[0] - output).detach()
    )


def test_simple_cnn_learns_in_float32_as_its_layers_do_in_float64() -> None:
    torch.manual_seed(0)
    network = SimpleCNN().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    exact = copy.deepcopy(network).double()
    images = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last)
    _take_pixels(network.conv1, exact.conv1)
    _take_pixels(network.conv2, exact.conv2)
    found = _gradients(network, images, network)
    expected = _gradients(nn.Sequential(*exact), images.double(), exact)
    _assert_within(found, expected, 1e-5)


def test_simple_cnn_learns_in_bfloat16_as_its_layers_do() -> None:
    torch.manual_seed(0)
    network = SimpleCNN().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = _gradients(network, images, network)
        expected = _gradients(nn.Sequential(*network), images, network)
    _assert_within(found, expected, 0.1)


def _whitened(images: Tensor) -> Tensor:
    network = SpeedNet()
    initialize_from(network, images)
    whiten = next(module for module in network if isinstance(module, Whitening))
    assert not whiten.weight.requires_grad
    return whiten(images).transpose(0, 1).flatten(1)  # type: ignore[no-any-return]


def test_what_the_first_layer_gives_is_white_but_for_what_hardly_varies(
    source: dataset.Source,
) -> None:
    images = source.load_train().images
    outputs = _whitened(dataset.normalize(images, *dataset.channel_statistics(images)))
    assert torch.equal(outputs[12:], -outputs[:12])
    covariance = outputs[:12] @ outputs[:12].T / outputs.shape[1]
    variances = covariance.diagonal()
    assert torch.allclose(covariance, variances.diag(), atol=1e-3)
    assert variances[0] > 0.99
    assert (variances[:5] > 0.95).all()
    assert variances[5] > 0.8
    assert (variances.diff() < 1e-3).all()
    assert variances[-1] < 0.5  # of noise, mostly, which whitening must not amplify


def test_a_block_hands_its_input_on_before_it_has_learned() -> None:
    network = SpeedNet(activation=nn.Identity).eval()
    block = network.get_submodule("block3")
    x = torch.rand(2, 256, 6, 6)
    expected = nn.functional.max_pool2d(x, 2)
    assert torch.allclose(block(x), expected, rtol=1e-3, atol=1e-4)


def test_with_three_convolutions_a_shortcut_carries_the_input_past_two() -> None:
    network = SpeedNet(widths=(8, 8, 8), depth=3, activation=nn.Identity).eval()
    block = network.get_submodule("block2")
    for name, parameter in block.named_parameters():
        if "rest.norm3" in name:
            nn.init.zeros_(parameter)
    x = torch.rand(2, 8, 6, 6)
    assert torch.allclose(block(x), nn.functional.max_pool2d(x, 2), rtol=1e-3, atol=1e-4)


def test_resnet20_pads_with_zeros_where_its_channels_double() -> None:
    shortcut = find_architecture("resnet20").build(10, 0.0).get_submodule("block2_1.shortcut")
    x = torch.rand(1, 16, 8, 8)
    padded = shortcut(x)
    assert padded.shape == (1, 32, 4, 4)
    assert torch.equal(padded[:, :16], x[:, :, ::2, ::2])
    assert not padded[:, 16:].any()
    assert not list(shortcut.parameters())
