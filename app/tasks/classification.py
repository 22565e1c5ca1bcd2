"""Classification: from a graph's outputs to an answer.

`Interpreter` writes the answer: the most probable classes of each image, prediction sets and
scores of unlikeness to the training images.

A prediction set holds the true class with a chosen probability. It is made by split conformal
prediction (Vovk et al. 2005; Angelopoulos & Bates 2021): a class's score is high if the class would
be an odd answer, and a set holds every class whose score is at most a threshold, the quantile of
the true classes' scores among images that the network was not trained on.

`lac` (Sadinle et al. 2019) scores a class by one minus its probability, which gives the smallest
sets on average. `aps` (Romano et al. 2020) scores it by the probabilities of all likelier classes
and a random part of its own, which gives difficult images larger sets; the likeliest class is in
every set (Angelopoulos et al. 2021). `class-conditional` (Vovk 2012) scores as `lac` does, and has
a threshold for each class, from the images of that class. It and `lac` may give an empty set: no
class is likely enough. The manifest holds the thresholds; nothing here reads a file.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.artifact.directory import Artifact
from app.artifact.manifest import Conformal, Precision, SetMethod
from app.artifact.tensors import Images, Outputs, Probabilities
from app.errors import InvalidParameter, NothingToSee

Scores = NDArray[np.float64]
"""Nonconformity scores, 0 to 1: how odd each class would be as the answer, float64 `[N,classes]`.
"""

DEFAULT_SETS: SetMethod = "aps"
"""The method of prediction sets unless another is asked for; it loses least under corruptions."""

Threshold = float | NDArray[np.float64]
"""The highest score of a class in a set: of every class, or of each, float64 `[classes]`."""


class Interpreter:
    """Writes the answer to one request from the outputs of one model.

    Made before an image is read, so that a wrong parameter is refused at once.
    """

    def __init__(
        self,
        artifact: Artifact,
        precision: Precision,
        *,
        top_k: int | None = None,
        coverage: float | None = None,
        method: SetMethod = DEFAULT_SETS,
    ) -> None:
        """Check the parameters.

        Args:
            artifact: the model.
            precision: of the graph that computes the outputs.
            top_k: the number of probabilities to give for an image; all unless given.
            coverage: the probability with which prediction sets hold the true class, 0.01 to 0.99;
                no sets unless given.
            method: how the classes of a set are chosen.

        Raises:
            InvalidParameter: `top_k` is larger than the number of classes.
            NothingToSee: prediction sets are wanted of a model that was exported without
                thresholds for the method.
        """
        manifest = artifact.classifier
        classes = len(manifest.classes)
        if top_k is not None and top_k > classes:
            given = str(top_k)[:16]
            raise InvalidParameter(f"top_k={given}: the limit is the model's {classes} classes")
        confidence = manifest.confidence.get(precision)
        self._threshold = None
        if coverage is not None:
            if confidence is not None:
                self._threshold = find_threshold(confidence.conformal, coverage, method)
            if self._threshold is None:
                raise NothingToSee(
                    f"coverage={coverage:g}, sets={method}: {artifact.ref} was exported without "
                    "the thresholds of these sets; `convscope-train export` adds them today"
                )
        self._manifest = manifest
        self._top_k = classes if top_k is None else top_k
        self._confidence = confidence
        self._method = method

    def render(
        self,
        outputs: Outputs,
        images: Images,
        filenames: Sequence[str | None],
        warnings: Sequence[str | None] | None = None,
    ) -> str:
        """Return the answer, the JSON of `app.api.schemas.Predictions`.

        It is written without a model object, which would take longer to fill than all the rest.

        Args:
            outputs: of the graph, for N images.
            images: uint8 `[N,H,W,3]`.
            filenames: of the N images.
            warnings: of the N images; none unless given.
        """
        rows = outputs.probabilities.tolist()
        sets, scores = self._sets(outputs, images), self._scores(outputs)
        warnings = warnings or [None] * len(rows)
        predictions = [
            self._render_image(*each)
            for each in zip(rows, sets, scores, filenames, warnings, strict=True)
        ]
        return (
            f'{{"model":"{self._manifest.name}","version":"{self._manifest.version}",'
            f'"predictions":[{",".join(predictions)}]}}'
        )

    def _render_image(
        self,
        row: Sequence[float],
        members: str,
        score: str,
        filename: str | None,
        warning: str | None,
    ) -> str:
        names = _quoted(self._manifest.classes)
        # A stable sort leaves equal probabilities in the order of the classes, as argmax does.
        best = sorted(range(len(row)), key=row.__getitem__, reverse=True)[: self._top_k]
        # A float32 has six significant digits.
        pairs = ",".join([f"{names[index]}:{row[index]:.6g}" for index in best])
        named = "" if filename is None else f',"filename":{json.dumps(filename)}'
        warned = "" if warning is None else f',"warning":{json.dumps(warning)}'
        return (
            f'{{"label":{names[best[0]]},"class_id":{best[0]},"confidence":{row[best[0]]:.6g},'
            f'"probabilities":{{{pairs}}}{members}{score}{named}{warned}}}'
        )

    def _sets(self, outputs: Outputs, images: Images) -> Sequence[str]:
        """Return each image's prediction set as it stands in the answer."""
        if self._threshold is None:
            return [""] * len(images)
        names = _quoted(self._manifest.classes)
        sets = prediction_sets(outputs.probabilities, images, self._method, self._threshold)
        members = [
            ",".join([name for name, inside in zip(names, row, strict=True) if inside])
            for row in sets.tolist()
        ]
        return [f',"prediction_set":[{inside}]' for inside in members]

    def _scores(self, outputs: Outputs) -> Sequence[str]:
        """Return each image's score of unlikeness as it stands in the answer."""
        if outputs.ood_scores is None or self._confidence is None:
            return [""] * len(outputs.probabilities)
        limit = self._confidence.out_of_distribution.threshold
        return [
            f',"ood_score":{score:.6g},"out_of_distribution":{"true" if score > limit else "false"}'
            for score in outputs.ood_scores.tolist()
        ]

    def labels(self, outputs: Outputs) -> list[str]:
        """Return the predicted class of each of N images."""
        classes = self._manifest.classes
        return [classes[index] for index in outputs.probabilities.argmax(axis=1).tolist()]


@lru_cache(64)
def _quoted(names: tuple[str, ...]) -> list[str]:
    return [json.dumps(name) for name in names]


def class_scores(probabilities: Probabilities, images: Images, method: SetMethod) -> Scores:
    """Return every class's score.

    Args:
        probabilities: float32 `[N,classes]`.
        images: uint8 `[N,H,W,3]`, as the model takes them; `aps` derives its random part from the
            pixels, so that the same image always has the same set.
        method: how classes are scored.
    """
    if method != "aps":
        return 1.0 - probabilities.astype(np.float64)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities.astype(np.float64), order, axis=1)
    likelier = np.cumsum(ranked, axis=1) - ranked
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, likelier + _draws(images)[:, np.newaxis] * ranked, axis=1)
    return np.minimum(scores, 1.0)  # the sum of float32 probabilities may be larger


def _draws(images: Images) -> NDArray[np.float64]:
    """Return a number from 0 to 1 for each image, uniformly distributed over different images."""
    digests = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])


def fit_threshold(true_scores: NDArray[np.float64], coverage: float) -> float:
    """Return the highest score of a class in a set.

    It is the `ceil((n + 1) coverage)`-th smallest of n scores, so that the set of another image of
    the same kind holds its true class with at least this probability; 1 if n is too small.

    Args:
        true_scores: of the true classes of images that the network was not trained on, `[n]`.
        coverage: the probability.
    """
    rank = math.ceil(round((len(true_scores) + 1) * coverage, 9))
    if rank > len(true_scores):
        return 1.0
    return float(np.sort(true_scores)[rank - 1])


def whole_percent(coverage: float) -> int:
    """Return a coverage, 0.01 to 0.99, rounded up to a whole percent, as thresholds are fitted."""
    return math.ceil(round(coverage * 100, 9))


def find_threshold(conformal: Conformal, coverage: float, method: SetMethod) -> Threshold | None:
    """Return the manifest's threshold for a coverage, rounded up to a whole percent.

    It is None if the model was exported without thresholds for the method.

    Args:
        conformal: the thresholds.
        coverage: 0.01 to 0.99.
        method: how classes are chosen.
    """
    place = whole_percent(coverage) - 1
    if method == "class-conditional":
        classes = conformal.class_conditional
        return np.array([thresholds[place] for thresholds in classes]) if classes else None
    return (conformal.lac if method == "lac" else conformal.aps)[place]


def prediction_sets(
    probabilities: Probabilities, images: Images, method: SetMethod, threshold: Threshold
) -> NDArray[np.bool_]:
    """Return the members of each image's set, bool `[N,classes]`.

    Args:
        probabilities: float32 `[N,classes]`.
        images: uint8 `[N,H,W,3]`.
        method: how classes are scored.
        threshold: the highest score of each class in a set.
    """
    members: NDArray[np.bool_] = class_scores(probabilities, images, method) <= threshold
    if method == "aps":
        members[np.arange(len(members)), probabilities.argmax(axis=1)] = True
    return members
