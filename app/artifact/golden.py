"""`golden.npz`: images of the data set, and the answers that the network gave for them at export.

Training packs them. A backend must reproduce them before the service uses it. Nothing here loads a
graph: `check_golden` is given the function that computes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.artifact.directory import Artifact
from app.artifact.files import GOLDEN, MANIFEST
from app.artifact.manifest import Precision, Task
from app.artifact.tensors import (
    BOXES,
    LABELS,
    OOD_SCORE,
    SCORES,
    Images,
    Outputs,
    overlaps,
)
from app.errors import ArtifactError, BackendFailed

SCORE_TOLERANCE: dict[Precision, float] = {"float32": 0.05, "int8": 0.25}
"""Largest difference of an out-of-distribution score, as a part of one plus the score's size. Where
a network is almost equally confident of all held-out images, a small difference of a probability
makes a large one of the score."""

SAME_BOX = 0.9
"""The overlap from which two boxes are the same one, in two computations."""

LEAST_SCORE = 0.05
"""Of a box that must be found by both."""

BOXES_ALONE = 0.02
"""The most boxes, as a part of all, that one computation finds and the other does not."""

PIXELS_APART: dict[Precision, float] = {"float32": 0.0, "int8": 0.01}
"""The most values of pixels, as a part of all, that may differ by more than the tolerance. In int8,
rounding on another processor changes single pixels on the border of an object."""

_BOXES = (BOXES, SCORES, LABELS)
_IMAGES = "images"
_ARRAYS = {OOD_SCORE: "ood_scores"}
"""The names of the arrays of outputs that have another one in the file."""


def pack_golden(images: Images, answers: dict[Precision, Outputs]) -> dict[str, NDArray[Any]]:
    """Return the arrays of `golden.npz`.

    Args:
        images: uint8 `[N,H,W,3]`.
        answers: the outputs for them of the graph of each precision.
    """
    arrays: dict[str, NDArray[Any]] = {_IMAGES: images}
    for precision, outputs in answers.items():
        arrays |= {_array(name, precision): array for name, array in outputs.arrays.items()}
    return arrays


def read_golden(artifact: Artifact, precision: Precision = "float32") -> tuple[Images, Outputs]:
    """Return the golden images and the answers of the graph of one precision.

    Raises:
        ArtifactError: the file differs from its record, or its arrays do not have the types and
            shapes of the graph's.
    """
    arrays, manifest = artifact.arrays(GOLDEN), artifact.manifest
    first, *others = manifest.predicted
    held = [first, *(name for name in others if _array(name, precision) in arrays)]
    specs = {output.name: output for output in manifest.outputs}
    wanted = {_IMAGES: manifest.input} | {_array(name, precision): specs[name] for name in held}
    path = artifact.path / GOLDEN
    if not wanted.keys() <= arrays.keys():
        raise ArtifactError(f"{path}: holds no arrays {' and '.join(wanted)}")
    for name, spec in wanted.items():
        array = arrays[name]
        if array.dtype != spec.dtype or array.shape[1:] != spec.shape[1:] or not len(array):
            raise ArtifactError(
                f"{path}: {name} is {array.dtype} {array.shape}; "
                f"it must be {spec.dtype} {spec.shape}, at least one"
            )
    return arrays[_IMAGES], Outputs({name: arrays[_array(name, precision)] for name in held})


def _array(name: str, precision: Precision) -> str:
    """Return the name of the array of an output."""
    name = _ARRAYS.get(name, name)
    return name if precision == "float32" else f"{name}_{precision}"


def check_golden(
    artifact: Artifact,
    backend: str,
    predict: Callable[[Images], Outputs],
    precision: Precision = "float32",
) -> float:
    """Compare a backend's answers for the golden images with those seen at export.

    Args:
        artifact: the model directory.
        backend: the backend's name in the manifest's `golden_tolerance`.
        predict: computes the outputs for uint8 `[N,H,W,3]`.
        precision: of the graph; int8 has golden answers and a tolerance of its own.

    Returns:
        The largest absolute difference of a probability, of a box's score, or of the values of a
        pixel but for `PIXELS_APART`.

    Raises:
        ArtifactError: the difference is over the tolerance, the answer has another shape, or boxes
            lie elsewhere.
    """
    path = artifact.path / GOLDEN
    tolerance = _tolerance(artifact, backend, precision)
    images, expected = read_golden(artifact, precision)
    try:
        found = predict(images)
    except BackendFailed as exc:
        raise ArtifactError(f"{path}: {backend} fails on the images: {exc}") from exc
    subject = f"{path}: {backend}"
    return _COMPARISONS[artifact.manifest.task](subject, found, expected, tolerance, precision)


def _compare_probabilities(
    subject: str, found: Outputs, expected: Outputs, tolerance: float, precision: Precision
) -> float:
    """Compare a classifier's answers."""
    if found.probabilities.shape != expected.probabilities.shape:
        raise ArtifactError(
            f"{subject} answers with shape {found.probabilities.shape}, "
            f"expected {expected.probabilities.shape}"
        )
    differences = found.probabilities.astype(np.float64) - expected.probabilities
    difference = float(np.max(np.abs(differences)))
    _check_difference(subject, difference, tolerance, "probabilities")
    if expected.ood_scores is not None:
        _check_scores(subject, found, expected.ood_scores, SCORE_TOLERANCE[precision])
    return difference


def _compare_boxes(
    subject: str, found: Outputs, expected: Outputs, tolerance: float, precision: Precision
) -> float:
    """Compare a detector's answers: each box with the one of its class at the same place.

    A few may have none, where two boxes overlap by just so much that one of them is dropped.
    """
    del precision
    largest, alone, boxes = 0.0, 0, 0
    for first, second in ((found, expected), (expected, found)):
        for image in range(len(expected.arrays[SCORES])):
            differences, missing = _score_differences(first, second, image, tolerance)
            largest = max(largest, *differences, 0.0)
            alone += missing
            boxes += missing + len(differences)
    _check_difference(subject, largest, tolerance, "scores")
    if alone > BOXES_ALONE * boxes:
        raise ArtifactError(
            f"{subject} gives {alone} of {boxes} golden boxes elsewhere or not at all; "
            f"the limit is {BOXES_ALONE:.0%}"
        )
    return largest


def _score_differences(
    first: Outputs, second: Outputs, image: int, tolerance: float
) -> tuple[list[float], int]:
    """Return how much the scores of the same boxes differ, and how many boxes have no other.

    A box so unlikely that the other graph may have dropped it does not count.
    """
    differences, alone = [], 0
    lowest = second.arrays[SCORES][image].min()
    for box, score, label in zip(*(first.arrays[name][image] for name in _BOXES), strict=True):
        same = second.arrays[LABELS][image] == label
        same &= overlaps(box[None], second.arrays[BOXES][image])[0] >= SAME_BOX
        if score == 0:  # no box
            continue
        if same.any():
            scores = second.arrays[SCORES][image][same].astype(np.float64)
            differences.append(float(np.abs(scores - score).min()))
        elif score > max(lowest, LEAST_SCORE) + tolerance:
            alone += 1
    return differences, alone


def _compare_maps(
    subject: str, found: Outputs, expected: Outputs, tolerance: float, precision: Precision
) -> float:
    """Compare a segmenter's answers, value by value."""
    largest = 0.0
    for name, wanted in expected.arrays.items():
        given = found.arrays[name]
        if given.shape != wanted.shape:
            raise ArtifactError(
                f"{subject} answers with {name} of shape {given.shape}, expected {wanted.shape}"
            )
        difference = float(np.quantile(np.abs(given - wanted), 1 - PIXELS_APART[precision]))
        _check_difference(subject, difference, tolerance, name)
        largest = max(largest, difference)
    return largest


_COMPARISONS: Mapping[Task, Callable[[str, Outputs, Outputs, float, Precision], float]] = {
    "classification": _compare_probabilities,
    "detection": _compare_boxes,
    "segmentation": _compare_maps,
}


def _check_difference(subject: str, difference: float, tolerance: float, what: str) -> None:
    if not difference <= tolerance:
        raise ArtifactError(
            f"{subject} differs from the golden {what} by {difference:.3g}; "
            f"the tolerance is {tolerance:.3g}"
        )


def _tolerance(artifact: Artifact, backend: str, precision: Precision) -> float:
    manifest = artifact.manifest
    if precision == "int8" and manifest.int8 is not None:
        return manifest.int8.golden_tolerance
    tolerance = manifest.golden_tolerance.get(backend)
    if tolerance is None:
        raise ArtifactError(f"{artifact.path / MANIFEST}: no golden tolerance for {backend}")
    return tolerance


def _check_scores(
    subject: str, found: Outputs, expected: NDArray[np.float32], tolerance: float
) -> None:
    scores = found.ood_scores
    if scores is None or scores.shape != expected.shape:
        raise ArtifactError(f"{subject} gives other out-of-distribution scores")
    difference = float(np.max(np.abs(scores - expected) / (1 + np.abs(expected))))
    if not difference <= tolerance:
        raise ArtifactError(
            f"{subject} differs from the golden out-of-distribution scores by "
            f"{difference:.3g}; the tolerance is {tolerance:.3g}"
        )
