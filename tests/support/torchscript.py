"""The colour model as TorchScript, where torch is installed."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from tests.support.artifacts import SHARPNESS, directions


class _Colour(torch.nn.Module):
    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.from_numpy(directions() * SHARPNESS))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean = image.float().mean((1, 2)) * (2 / 255) - 1
        logits = mean @ self.weights
        return logits, logits.softmax(-1)


def write_torchscript(path: Path) -> None:
    """Write the graph that `tests.support.artifacts` writes as ONNX."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(_Colour()).save(str(path))
