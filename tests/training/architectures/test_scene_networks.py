import pytest
import torch
from torch import nn

from training.architectures.unet import UNet
from training.architectures.yolo import BINS, Yolo
from training.architectures.yolo_v1 import YoloV1


@pytest.mark.parametrize("size", [(240, 320), (128, 128), (48, 16)])
def test_yolo_has_a_cell_for_every_8_and_16_pixels(size: tuple[int, int]) -> None:
    network = Yolo(3, width=16).eval()
    fine, coarse = network(torch.zeros(2, 3, *size))
    assert fine.shape == (2, 4 * BINS + 3, size[0] // 8, size[1] // 8)
    assert coarse.shape == (2, 4 * BINS + 3, size[0] // 16, size[1] // 16)


def test_new_yolo_finds_next_to_nothing() -> None:
    fine, coarse = Yolo(3, width=16).eval()(torch.rand(1, 3, 64, 64))
    for grid in (fine, coarse):
        assert grid[:, 4 * BINS :].sigmoid().max() < 0.1


@pytest.mark.parametrize("skips", [True, False])
def test_unet_answers_every_pixel(skips: bool) -> None:
    network = UNet(3, width=8, skips=skips).eval()
    assert network(torch.zeros(2, 3, 48, 80)).shape == (2, 3, 48, 80)


def test_only_skip_connections_carry_fine_detail() -> None:
    """Of a network whose deep half is cut off, only one with them still sees the picture."""
    picture = torch.rand(1, 3, 64, 64)
    for skips in (True, False):
        torch.manual_seed(0)
        network = UNet(2, width=8, skips=skips).eval()
        network.bottom.register_forward_hook(lambda _module, _inputs, output: output * 0)
        answers = network(picture) - network(torch.zeros_like(picture))
        assert bool(answers.abs().max() > 1e-3) == skips


def test_channels_double_up_to_the_most() -> None:
    network = UNet(2, width=24, most=64)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in layers[1:10:2]] == [24, 48, 64, 64, 64]


@pytest.mark.parametrize(("size", "cells"), [((288, 384), 7), ((64, 96), 4)])
def test_first_yolo_has_as_many_cells_at_any_size(size: tuple[int, int], cells: int) -> None:
    network = YoloV1(3, width=16, cells=cells).eval()
    assert network(torch.zeros(2, 3, *size)).shape == (2, 13, cells, cells)
