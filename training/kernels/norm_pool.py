"""Batch normalisation, 2×2 max pooling and ReLU in one, for training on a processor.

torch's three layers each read all pixels several times, forward and backward. This one reads them
twice forward and once backward. It knows nothing of the layers before and after it.
"""

from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from training import kernels

Array = npt.NDArray[Any]


def norm_pool_relu(images: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Return `relu(max_pool2d(norm(images), 2))`, `[N,C,H/2,W/2]` in the images' type.

    The running mean and variance move as in torch. One pass computes all three in training on a
    processor, for images in float32 or bfloat16 with even height and width, and a norm with float32
    weights and running statistics. torch's three layers compute anything else, and everything where
    kernels are off or numba is not installed.

    Args:
        images: `[N,C,H,W]`.
        norm: normalises their channels.
    """
    if not _fits(images, norm):
        # After the pooling, a ReLU and its gradient are the same at a quarter of the work.
        return F.relu(F.max_pool2d(norm(images), 2), inplace=True)
    pooled: Tensor = _NormPoolRelu.apply(images, norm.weight, norm.bias, norm)  # type: ignore[no-untyped-call]
    return pooled


class _NormPoolRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d
    ) -> Tensor:
        count, channels, height, width = images.shape
        pooled = images.new_empty(count, height // 2, width // 2, channels).permute(0, 3, 1, 2)
        mean, variance, *_ = ctx.kept = _kernels().normalize_and_pool(
            _pixels(images), _array(weight), _array(bias), norm.eps, _pixels(pooled)
        )
        _update_running(norm, mean, variance, count * height * width)
        ctx.save_for_backward(images, weight)
        ctx.epsilon = norm.eps
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        images, weight = ctx.saved_tensors
        spread = torch.empty_like(images, memory_format=torch.channels_last)
        given = _pixels(images), _pixels(gradient), ctx.kept, _array(weight), ctx.epsilon
        to_weight, to_bias = _kernels().spread_gradient(*given, _pixels(spread))
        return spread, _tensor(to_weight), _tensor(to_bias), None


def _fits(images: Tensor, norm: nn.BatchNorm2d) -> bool:
    if not (norm.training and norm.affine and norm.track_running_stats):
        return False
    if not (kernels.enabled() and _has_numba()):
        return False
    typed = images.dtype in (torch.float32, torch.bfloat16) and norm.weight.dtype == torch.float32
    even = images.numel() > 0 and images.shape[2] % 2 == images.shape[3] % 2 == 0
    return images.device.type == "cpu" and typed and even


def _has_numba() -> bool:
    return find_spec("numba") is not None


def _kernels() -> ModuleType:
    """Return the loops, set to as many threads as torch has."""
    numba = _start_numba()
    from training.kernels import norm_pool_kernels

    most = numba.config.NUMBA_NUM_THREADS
    numba.set_num_threads(min(torch.get_num_threads(), most))
    return norm_pool_kernels


@cache
def _start_numba() -> ModuleType:
    """Import numba and start its threads. It shares torch's threads and changes their number."""
    import numba

    threads = torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(threads)
    return numba


def _pixels(images: Tensor) -> Array:
    """Return `[N,H,W,C]`, contiguous, bfloat16 as its bits; a view where possible."""
    pixels = images.detach().permute(0, 2, 3, 1).contiguous()
    return (pixels.view(torch.uint16) if pixels.dtype == torch.bfloat16 else pixels).numpy()


def _array(values: Tensor) -> Array:
    return values.detach().numpy()


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(values).float()


def _update_running(norm: nn.BatchNorm2d, mean: Array, variance: Array, count: int) -> None:
    """Move the running statistics as torch does, whose variance divides by one less."""
    running = dict(norm.named_buffers())
    batches = running["num_batches_tracked"].add_(1)
    part = norm.momentum if norm.momentum is not None else 1 / batches.item()
    running["running_mean"].lerp_(_tensor(mean), part)
    running["running_var"].lerp_(_tensor(variance * count / (count - 1)), part)
