"""Calibration of scores: how likely a box with a score is right."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

BINS = 15
PULL = 1.0
"""Towards a slope of 1 and an intercept of 0, as so many boxes would pull: a class may have few."""


def fit_scores(
    scores: NDArray[np.float64],
    right: NDArray[np.bool_],
    labels: NDArray[np.int64],
    classes: int,
) -> tuple[Tensor, Tensor]:
    """Return each class's slope and intercept, `[C]` each, after which scores are most likely.

    Platt scaling (Platt 1999) of the logits of scores, by L-BFGS in double precision. A slope is
    above 0, so that better boxes keep higher scores.

    Args:
        scores: of boxes, `[n]`.
        right: whether each finds an object.
        labels: of the boxes.
        classes: the number of classes.
    """
    logits = torch.from_numpy(scores).double().logit(eps=1e-6)
    truth, label = torch.from_numpy(right).double(), torch.from_numpy(labels)
    steepness = torch.zeros(classes, dtype=torch.float64, requires_grad=True)  # a logarithm
    intercept = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [steepness, intercept], max_iter=200, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        moved = logits * steepness.exp()[label] + intercept[label]
        loss = F.binary_cross_entropy_with_logits(moved, truth, reduction="sum")
        loss = loss + PULL * (steepness.square().sum() + intercept.square().sum())
        loss.backward()
        return loss

    optimizer.step(closure)
    return steepness.detach().exp(), intercept.detach()


def calibration_error(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Return the mean distance of score and part that is right, over bins (Naeini et al. 2015).

    Args:
        scores: 0 to 1, `[n]`.
        right: `[n]`.
    """
    if not len(scores):
        return 0.0
    places = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    counts, sums, found = (
        np.bincount(places, weights, BINS) for weights in (None, scores, right.astype(np.float64))
    )
    return float(np.abs(sums - found).sum() / counts.sum())


def best_threshold(scores: NDArray[np.float64], right: NDArray[np.bool_], objects: int) -> float:
    """Return the least score of a box with which precision and recall have the highest F1.

    It lies halfway to the next lower score.

    Args:
        scores: of boxes, `[n]`.
        right: whether each finds an object.
        objects: how many there are to find.
    """
    if not right.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], right[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + objects)
    place = int(f1.argmax())
    below = ranked[place + 1] if place + 1 < len(ranked) else 0.0
    return min(round(float(ranked[place] + below) / 2, 6), float(ranked[place]))
