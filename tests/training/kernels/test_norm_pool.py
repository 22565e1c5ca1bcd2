import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from training.kernels import norm_pool
from training.kernels.norm_pool import norm_pool_relu

Block = Callable[[Tensor, nn.BatchNorm2d], Tensor]

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def same_numbers_each_time() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def as_one(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has an entry for each batch that is computed as one, not by torch's three."""
    kernels, calls = norm_pool._kernels, list[int]()

    def counted() -> object:
        calls.append(1)
        return kernels()

    monkeypatch.setattr(norm_pool, "_kernels", counted)
    return calls


def _by_torch(images: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    return F.relu(F.max_pool2d(norm(images), 2))


def _norm(channels: int = 6) -> nn.BatchNorm2d:
    """Return one with scales of both signs and 0, and statistics that have moved before."""
    norm = nn.BatchNorm2d(channels)
    norm(torch.randn(4, channels, 3, 3))
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-2, 2, channels)).round_(decimals=1)
        norm.weight[1::4] = 0
        norm.bias.uniform_(-0.5, 0.5)
    return norm


def _images(count: int = 5, channels: int = 6, height: int = 4, width: int = 8) -> Tensor:
    images = 3 + 2 * torch.randn(count, channels, height, width)
    return images.bfloat16().float().to(memory_format=torch.channels_last)


def _found(block: Block, images: Tensor, norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """Return what a block gives, all gradients, and the statistics that it leaves, as float32."""
    norm, images = copy.deepcopy(norm), images.detach().clone().requires_grad_()
    pooled = block(images, norm)
    weights = torch.linspace(-1, 2, pooled.numel()).view_as(pooled).bfloat16()
    (pooled.float() * weights.float()).sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in norm.named_parameters()}
    found = {"pooled": pooled, "gradient": images.grad, **gradients, **dict(norm.named_buffers())}
    return {name: tensor.detach().float() for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize(
    "shape", [(5, 6, 4, 8), (1, 1, 2, 2), (3, 40, 2, 6), (16, 8, 4, 8)], ids=str
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_float32_is_what_torch_computes(
    as_one: list[int], shape: tuple[int, int, int, int], layout: torch.memory_format
) -> None:
    images, norm = _images(*shape).contiguous(memory_format=layout), _norm(shape[1])
    expected = _found(_by_torch, images, norm)
    assert as_one == []
    found = _found(norm_pool_relu, images, norm)
    assert len(as_one) == 2
    assert len(expected) == 7
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_float32_rounded_once() -> None:
    images, norm = _images(), _norm()
    exact = _found(_by_torch, images, norm)
    found = _found(norm_pool_relu, images.bfloat16(), norm)
    for name in ("pooled", "gradient"):
        # Half of a step, which is 2**-7 of a number at most.
        assert ((found[name] - exact[name]).abs() <= exact[name].abs() / 256 + 1e-5).all(), name
    kept = {name: found[name] for name in exact if name not in {"pooled", "gradient"}}
    torch.testing.assert_close(kept, {name: exact[name] for name in kept}, rtol=1e-4, atol=1e-4)


def test_pixels_far_from_zero_keep_their_variance() -> None:
    images, norm = 10_000 + torch.randn(8, 3, 4, 4), _norm(3)
    found, expected = (_found(block, images, norm) for block in (norm_pool_relu, _by_torch))
    torch.testing.assert_close(found["running_var"], expected["running_var"], rtol=1e-3, atol=0)
    torch.testing.assert_close(found["pooled"], expected["pooled"], rtol=0, atol=0.01)
    torch.testing.assert_close(found["gradient"], expected["gradient"], rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_of_equal_pixels_has_the_gradient(dtype: torch.dtype) -> None:
    images = _images()
    images[1:, :, :2, :2] = 7  # whole windows
    norm = _norm()
    found, expected = (
        _found(block, images.to(dtype).float() if block is _by_torch else images.to(dtype), norm)
        for block in (norm_pool_relu, _by_torch)
    )
    torch.testing.assert_close(found["gradient"], expected["gradient"], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    images, norm = _images(64, 8, 16, 16).to(dtype), _norm(8)
    torch.set_num_threads(2)
    several = _found(norm_pool_relu, images, norm)
    torch.set_num_threads(1)
    alone = _found(norm_pool_relu, images, norm)
    torch.testing.assert_close(alone, several, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_pixel_that_is_no_number_is_not_hidden(dtype: torch.dtype, bad: float) -> None:
    images = _images()
    images[2, 1, 3, 3] = bad
    found = _found(norm_pool_relu, images.to(dtype), _norm())
    assert found["pooled"][:, 1].isnan().all()
    assert found["gradient"][:, 1].isnan().all()
    assert found["pooled"][:, 2:].isfinite().all()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((5, 6, 5, 8), torch.float32),
        ((5, 6, 4, 7), torch.float32),
        ((0, 6, 4, 8), torch.float32),
        ((5, 6, 4, 8), torch.float64),
    ],
    ids=str,
)
def test_what_does_not_fit_is_left_to_torch(
    as_one: list[int], shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    images, norm = _images(*shape).to(dtype), _norm().to(dtype)
    found, expected = (_found(block, images, norm) for block in (norm_pool_relu, _by_torch))
    assert as_one == []
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(6).eval(),
        nn.BatchNorm2d(6, affine=False),
        nn.BatchNorm2d(6, track_running_stats=False),
    ],
    ids=str,
)
def test_a_layer_that_is_evaluated_or_keeps_no_numbers_is_left_to_torch(
    as_one: list[int], norm: nn.BatchNorm2d
) -> None:
    images = _images()
    found, expected = (_found(block, images, norm) for block in (norm_pool_relu, _by_torch))
    assert as_one == []
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_one_pixel_far_from_equal_ones_makes_no_variance_below_zero() -> None:
    images = torch.ones(64, 3, 16, 16)
    images[0, :, 0, 0] = 1000
    found, expected = (
        _found(block, images, nn.BatchNorm2d(3)) for block in (norm_pool_relu, _by_torch)
    )
    assert found["pooled"].isfinite().all()
    torch.testing.assert_close(found["running_var"], expected["running_var"], rtol=0.02, atol=0)


@pytest.mark.slow
def test_torch_keeps_its_number_of_threads() -> None:
    script = """
import torch
from training.kernels.norm_pool import norm_pool_relu
before = torch.get_num_threads()
norm_pool_relu(torch.randn(2, 3, 4, 4), torch.nn.BatchNorm2d(3))
print(before, torch.get_num_threads())
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["1", "1"]


def test_loops_are_compiled_where_no_folder_can_be_written_to() -> None:
    script = """
import tempfile
import numpy as np

def refuse(*arguments, **options):
    raise OSError("read-only")

tempfile.TemporaryFile = refuse
from training.kernels.norm_pool_kernels import _add_up

print(_add_up(np.ones((2, 3, 4), np.float32)).sum())
"""
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(run.stdout) == 24


def test_frozen_weights_get_no_gradient_and_images_the_same() -> None:
    images, norm = _images(), _norm()
    expected = _found(_by_torch, images, norm)["gradient"]
    found = _found(norm_pool_relu, images, norm.requires_grad_(requires_grad=False))
    assert "gradient of weight" not in found
    torch.testing.assert_close(found["gradient"], expected, rtol=1e-4, atol=1e-4)


def test_without_gradients_the_statistics_move_all_the_same() -> None:
    images, norm = _images(), _norm()
    expected = _found(_by_torch, images, norm)
    with torch.no_grad():
        torch.testing.assert_close(norm_pool_relu(images, norm), expected["pooled"])
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, expected["running_mean"])


def test_without_a_momentum_the_statistics_are_the_mean_over_batches() -> None:
    norm = nn.BatchNorm2d(6, momentum=None)
    batches = [_images() for _ in range(3)]
    for images in batches:
        norm_pool_relu(images, norm)
    assert norm.running_mean is not None
    expected = torch.stack([images.mean((0, 2, 3)) for images in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected)
