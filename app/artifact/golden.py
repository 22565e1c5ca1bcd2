"""`golden.npz`: images of the data set, and the answers that the network gave for them at export.

Training packs them. A backend must reproduce them before the service uses it. Nothing here loads a
graph: `check_golden` is given the function that computes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.artifact.directory import Artifact
from app.artifact.files import GOLDEN, MANIFEST
from app.artifact.manifest import Precision
from app.artifact.tensors import Images, Outputs
from app.errors import ArtifactError, BackendFailed

SCORE_TOLERANCE: dict[Precision, float] = {"float32": 0.05, "int8": 0.25}
"""Largest difference of an out-of-distribution score, as a part of one plus the score's size. Where
a network is almost equally confident of all held-out images, a small difference of a probability
makes a large one of the score."""

_IMAGES = "images"
_PROBABILITIES: dict[Precision, str] = {"float32": "probabilities", "int8": "probabilities_int8"}
_SCORES: dict[Precision, str] = {"float32": "ood_scores", "int8": "ood_scores_int8"}


def pack_golden(images: Images, answers: dict[Precision, Outputs]) -> dict[str, NDArray[Any]]:
    """Return the arrays of `golden.npz`.

    Args:
        images: uint8 `[N,H,W,3]`.
        answers: the outputs for them of the graph of each precision.
    """
    arrays: dict[str, NDArray[Any]] = {_IMAGES: images}
    for precision, outputs in answers.items():
        arrays[_PROBABILITIES[precision]] = outputs.probabilities
        if outputs.ood_scores is not None:
            arrays[_SCORES[precision]] = outputs.ood_scores
    return arrays


def read_golden(artifact: Artifact, precision: Precision = "float32") -> tuple[Images, Outputs]:
    """Return the golden images and the answers of the graph of one precision.

    Raises:
        ArtifactError: the file differs from its record, or its arrays do not have the types and
            shapes of the graph's.
    """
    arrays = artifact.arrays(GOLDEN)
    expected = _PROBABILITIES[precision]
    specs = {_IMAGES: artifact.manifest.input, expected: artifact.manifest.outputs[1]}
    path = artifact.path / GOLDEN
    if not specs.keys() <= arrays.keys():
        raise ArtifactError(f"{path}: holds no arrays {' and '.join(specs)}")
    for name, spec in specs.items():
        array = arrays[name]
        if array.dtype != spec.dtype or array.shape[1:] != spec.shape[1:] or not len(array):
            raise ArtifactError(
                f"{path}: {name} is {array.dtype} {array.shape}; "
                f"it must be {spec.dtype} {spec.shape}, at least one"
            )
    return arrays[_IMAGES], Outputs(arrays[expected], arrays.get(_SCORES[precision]))


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
        The largest absolute difference of a probability.

    Raises:
        ArtifactError: the difference is over the tolerance, or the answer has another shape.
    """
    path = artifact.path / GOLDEN
    tolerance = _tolerance(artifact, backend, precision)
    images, expected = read_golden(artifact, precision)
    try:
        found = predict(images)
    except BackendFailed as exc:
        raise ArtifactError(f"{path}: {backend} fails on the images: {exc}") from exc
    if found.probabilities.shape != expected.probabilities.shape:
        raise ArtifactError(
            f"{path}: {backend} answers with shape {found.probabilities.shape}, "
            f"expected {expected.probabilities.shape}"
        )
    differences = found.probabilities.astype(np.float64) - expected.probabilities
    difference = float(np.max(np.abs(differences)))
    if not difference <= tolerance:
        raise ArtifactError(
            f"{path}: {backend} differs from the golden probabilities by {difference:.3g}; "
            f"the tolerance is {tolerance:.3g}"
        )
    if expected.ood_scores is not None:
        _check_scores(f"{path}: {backend}", found, expected.ood_scores, SCORE_TOLERANCE[precision])
    return difference


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
