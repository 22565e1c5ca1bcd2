"""The overlap of boxes: left, upper, right, lower."""

import torch
from torch import Tensor


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the overlap of each two boxes, `[N,M,A]`, of `[N,M,4]` and `[N,A,4]`."""
    low = torch.maximum(first[:, :, None, :2], second[:, None, :, :2])
    high = torch.minimum(first[:, :, None, 2:], second[:, None, :, 2:])
    shared = (high - low).clamp_min(0).prod(3)
    return shared / (area(first)[:, :, None] + area(second)[:, None] - shared).clamp_min(1e-9)


def area(boxes: Tensor) -> Tensor:
    """Return the areas of boxes `[...,4]`, `[...]`."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)
