"""Non-maximum suppression in a served graph: of boxes that overlap, the best of a class is kept.

The network, its TorchScript and its ONNX graph keep the same boxes: ONNX has an operator for it,
`NonMaxSuppression`; torch computes it here, without a loop over boxes. A box is kept unless a
better one overlaps it and is kept itself; beginning with all, that is asked until nothing changes
(Zheng et al. 2020, arXiv 2005.03572, 4.2).
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from training.tasks.overlap import pairwise_iou

IOU = 0.6
"""The overlap above which the worse of two boxes of a class is dropped."""

LEAST_SCORE = 0.01
"""Of a box that is kept."""


@cache
def _script() -> Callable[[Tensor], Tensor]:
    """Return `_kept_of` with its loop kept in a TorchScript graph, and not only its first turns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script: Callable[[Tensor], Tensor] = torch.jit.script(_kept_of)
        return script


def _kept_of(over: Tensor) -> Tensor:
    """Return which of K boxes are kept, bool `[B,K]`.

    Args:
        over: whether each box drops each other if it is kept itself, bool `[B,K,K]`.
    """
    kept = torch.ones_like(over[:, :, 0])
    while True:
        now = ~(over & kept.unsqueeze(2)).any(1)
        if torch.equal(now, kept):
            break
        kept = now
    return kept


def kept_boxes(boxes: Tensor, scores: Tensor) -> Tensor:
    """Return one for each box and class that is kept and zero for the others, float `[N,C,K]`.

    Args:
        boxes: left, upper, right, lower, float `[N,K,4]`.
        scores: of the classes, 0 to 1, float `[N,C,K]`.
    """
    if torch.compiler.is_exporting():
        kept: Tensor = torch.ops.convscope.kept_boxes(boxes, scores)
        return kept
    return _compute(boxes, scores)


def _compute(boxes: Tensor, scores: Tensor) -> Tensor:
    pictures, classes, count = scores.shape
    rows = scores.reshape(pictures * classes, count)
    ranked = rows.sort(dim=1, descending=True, stable=True)
    ordered = boxes[:, None].expand(-1, classes, -1, -1).reshape(-1, count, 4)
    ordered = ordered.gather(1, ranked.indices[..., None].expand(-1, -1, 4))
    overlap = pairwise_iou(ordered, ordered)
    sound = ranked.values > LEAST_SCORE
    kept = _script()(torch.triu(overlap > IOU, 1) & sound[:, :, None]) & sound
    found = torch.zeros_like(rows).scatter(1, ranked.indices, kept.to(rows.dtype))
    return found.reshape(scores.shape)


@torch.library.custom_op("convscope::kept_boxes", mutates_args=())
def _operator(boxes: Tensor, scores: Tensor) -> Tensor:
    return _compute(boxes, scores)


@_operator.register_fake
def _shape_of(boxes: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(scores)


def _in_onnx(boxes: Any, scores: Any) -> Any:
    """Write the operator as nodes of ONNX."""
    from onnxscript import opset20

    op: Any = opset20  # whose annotations allow constants nowhere
    most = op.Constant(value_ints=[2**31 - 1])
    overlap, least = op.Constant(value_floats=[IOU]), op.Constant(value_floats=[LEAST_SCORE])
    chosen = op.NonMaxSuppression(boxes, scores, most, overlap, least)
    count = op.Gather(op.Shape(chosen), op.Constant(value_ints=[0]))
    ones = op.Expand(op.CastLike(op.Constant(value_float=1.0), scores), count)
    zeros = op.Mul(scores, op.CastLike(op.Constant(value_float=0.0), scores))
    return op.ScatterND(zeros, chosen, ones)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the table that `torch.onnx.export` needs for a graph with `kept_boxes`."""
    return {torch.ops.convscope.kept_boxes.default: _in_onnx}
