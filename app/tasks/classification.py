"""Prediction sets that hold the true class with a probability that is asked for.

Split conformal prediction (Vovk et al. 2005; Angelopoulos & Bates 2021): a class's score says how
odd it would be as the answer, and a set holds every class whose score is at most a threshold, the
quantile of the true classes' scores among images that the network did not learn from.

`lac` (Sadinle et al. 2019) scores a class by one minus its probability, which gives the smallest
sets on average. `aps` (Romano et al. 2020) scores it by the probabilities of all likelier classes
and a random part of its own, which gives difficult images larger sets. Either may be empty: no
class is likely enough. Thresholds are in the manifest; nothing here reads a file.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from app.artifact.manifest import Conformal, SetMethod
from app.artifact.tensors import Images, Probabilities

Scores = NDArray[np.float64]
"""How odd each class would be as the answer, 0 to 1: float64 `[N,classes]`."""


def class_scores(probabilities: Probabilities, images: Images, method: SetMethod) -> Scores:
    """Return every class's score.

    Args:
        probabilities: float32 `[N,classes]`.
        images: uint8 `[N,H,W,3]`, as the model sees them; `aps` draws its random part from the
            pixels, so that the same picture always has the same set.
        method: how classes are scored.
    """
    if method == "lac":
        return 1.0 - probabilities.astype(np.float64)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities.astype(np.float64), order, axis=1)
    likelier = np.cumsum(ranked, axis=1) - ranked
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, likelier + _draws(images)[:, np.newaxis] * ranked, axis=1)
    return scores


def _draws(images: Images) -> NDArray[np.float64]:
    """Return a number from 0 to 1 for each image, evenly distributed over different images."""
    digests = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])


def fit_threshold(true_scores: NDArray[np.float64], coverage: float) -> float:
    """Return the score up to which classes are taken into a set.

    The `ceil((n + 1) coverage)`-th smallest of n scores, so that the true class of one more image
    of the same kind is in its set with at least this probability; 1 if n is too small for that.

    Args:
        true_scores: of the true classes of images that the network did not learn from, `[n]`.
        coverage: that probability.
    """
    rank = math.ceil(round((len(true_scores) + 1) * coverage, 9))
    if rank > len(true_scores):
        return 1.0
    return float(np.sort(true_scores)[rank - 1])


def find_threshold(conformal: Conformal, coverage: float, method: SetMethod) -> float:
    """Return the manifest's threshold for a coverage, rounded up to a whole percent.

    Args:
        conformal: the thresholds.
        coverage: 0.01 to 0.99.
        method: how classes are scored.
    """
    thresholds = conformal.lac if method == "lac" else conformal.aps
    return thresholds[math.ceil(round(coverage * 100, 9)) - 1]


def prediction_sets(
    probabilities: Probabilities, images: Images, method: SetMethod, threshold: float
) -> NDArray[np.bool_]:
    """Return which classes are in each image's set: bool `[N,classes]`.

    Args:
        probabilities: float32 `[N,classes]`.
        images: uint8 `[N,H,W,3]`.
        method: how classes are scored.
        threshold: the highest score that is taken in.
    """
    members: NDArray[np.bool_] = class_scores(probabilities, images, method) <= threshold
    return members
