"""Networks learn the same with kernels and without them, up to rounding."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from training.architectures import find_architecture
from training.data import dataset
from training.errors import RecipeError
from training.kernels import KERNELS_VARIABLE, norm_pool, weight_gradients
from training.recipes import Arithmetic, Recipe, find_recipe
from training.run.checkpoint import Learner
from training.run.lessons import Batch
from training.run.optimization import make_optimizer
from training.run.train import learn

GENTLE = find_recipe("simple-cnn").replace(learning_rate=1e-4)
STEPS = 4
TOLERANCE: dict[Arithmetic, tuple[float, float]] = {
    "float32": (1e-4, 1e-3),
    "bfloat16": (0.01, 0.2),
}
"""Relative, after four steps of Adam: of the losses, and of the way that each weight tensor went.
bfloat16 has steps of 0.8%."""


def _deep_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 128, 4, stride=4),
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def _steps(recipe: Recipe, build: Callable[[], nn.Module]) -> tuple[list[float], dict[str, Tensor]]:
    """Return the losses of some steps, and by how much each weight tensor has moved in them."""
    torch.manual_seed(0)
    network = build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    learner = Learner(recipe, network, network, make_optimizer(recipe, network))
    images = torch.randn(32, 3, 32, 32).to(memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(0, 10, (32,)))
    losses = [learn(learner, batch, rate=1.0)[0].item() for _ in range(STEPS)]
    after = dict(network.named_parameters())
    return losses, {name: after[name].detach() - weight for name, weight in before.items()}


def _check_same(
    recipe: Recipe, build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_loss, of_way = TOLERANCE[recipe.precision]
    monkeypatch.setenv(KERNELS_VARIABLE, "1")
    losses, moved = _steps(recipe, build)
    monkeypatch.setenv(KERNELS_VARIABLE, "0")
    plain_losses, plain_moved = _steps(recipe, build)
    assert losses == pytest.approx(plain_losses, rel=of_loss)
    for name, expected in plain_moved.items():
        # Batch normalisation takes out a bias before it, so its gradient is rounding alone.
        if name not in {"conv1.bias", "conv2.bias"}:
            assert (moved[name] - expected).norm() <= of_way * expected.norm(), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_are_the_same_with_norm_pool_and_without(
    monkeypatch: pytest.MonkeyPatch, precision: Arithmetic
) -> None:
    calls: list[None] = []
    loops = norm_pool._kernels

    def counted() -> ModuleType:
        calls.append(None)
        return loops()

    monkeypatch.setattr(norm_pool, "_kernels", counted)
    recipe = GENTLE.replace(precision=precision)
    _check_same(recipe, lambda: find_architecture("simple-cnn").build(10, 0.0), monkeypatch)
    assert len(calls) == STEPS * 4  # forward and backward, in two blocks, with kernels alone


def test_steps_are_the_same_with_nine_products_and_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[None] = []
    plain = weight_gradients.weight_gradient

    def counted(images: Tensor, gradient: Tensor) -> Tensor:
        calls.append(None)
        return plain(images, gradient)

    monkeypatch.setattr(weight_gradients, "weight_gradient", counted)
    monkeypatch.setattr(weight_gradients, "has_amx", lambda: True)
    recipe = GENTLE.replace(precision="bfloat16")
    _check_same(recipe, _deep_network, monkeypatch)
    assert len(calls) == STEPS


def test_another_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "off")
    with pytest.raises(RecipeError, match="CONVSCOPE_KERNELS is 'off'; it can be 0 or 1"):
        norm_pool.norm_pool_relu(torch.randn(2, 3, 4, 4), nn.BatchNorm2d(3))


def test_a_network_learns_where_numba_is_not_installed(
    source: dataset.Source, tmp_path: Path
) -> None:
    script = """
import sys
sys.modules["numba"] = None
from training.cli import main
main()
"""
    options = ["--epochs", "1", "--device", "cpu", "--data-dir", str(source.place)]
    done = subprocess.run(
        [sys.executable, "-c", script, "train", "simple-cnn", *options, "--out", tmp_path / "run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stdout
