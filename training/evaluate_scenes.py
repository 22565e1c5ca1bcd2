"""Evaluation of trained detectors; besides `training.evaluate`, the only reader of test pictures.

Scores are calibrated and the threshold is chosen on held-out pictures.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.artifact.detection import (
    ClassPrecision,
    DetectionEvaluation,
    DetectionFigures,
)
from app.artifact.tensors import BOXES, LABELS, SCORES, Images, Outputs
from app.images.placement import Placement
from training.architectures.yolo import BINS, Yolo
from training.data.annotated import Scene
from training.data.scenes import SceneSource
from training.evaluate import check_source, load_network
from training.run.checkpoint import Checkpoint
from training.run.scene_lessons import count_outputs, decode_laid, split
from training.served import ServedDetector
from training.tasks import calibration, detection, detection_metrics
from training.tasks.detection_metrics import Found

BATCH = 4
DEFAULT_THRESHOLD = 0.5

Predict = Callable[[Images], Outputs]
"""A backend's answers for uint8 pictures `[N,H,W,3]`."""


@dataclass(frozen=True)
class EvaluatedDetector:
    """A detector with calibrated scores, and its figures."""

    served: ServedDetector
    evaluation: DetectionEvaluation


def evaluate_detector(checkpoint: Checkpoint, source: SceneSource) -> EvaluatedDetector:
    """Calibrate on the held-out pictures, then measure on the test pictures.

    Args:
        checkpoint: of a run. Without held-out pictures, scores stay as they are, and the threshold
            is `DEFAULT_THRESHOLD`.
        source: the data set that the run was trained on.

    Raises:
        DataError: `source` is not the data set that the run was trained on.
        RunError: the weights cannot be read.
    """
    state = checkpoint.state
    check_source(checkpoint, source)
    network = load_network(checkpoint, count_outputs("detection", source))
    size = state.recipe.height, state.recipe.width
    lesson = detection.Lesson(Yolo.strides, BINS)
    served = ServedDetector(network, state.mean, state.deviation, size, lesson)
    _, heldout = split(state.recipe, source)
    raw = find_boxes(served.predict, source.test, size)
    threshold = DEFAULT_THRESHOLD
    if heldout:
        known = judge(find_boxes(served.predict, heldout, size), heldout)
        served.calibrate(
            *calibration.fit_scores(known.scores, known.right, known.labels, len(state.classes))
        )
        known = judge(find_boxes(served.predict, heldout, size), heldout)
        objects = int(sum((~scene.objects.crowd).sum() for scene in heldout))
        threshold = calibration.best_threshold(known.scores, known.right, objects)
    found = find_boxes(served.predict, source.test, size)
    before = judge(raw, source.test)
    ece_raw = calibration.calibration_error(before.scores, before.right)
    return EvaluatedDetector(
        served, measure_detector(found, source.test, state.classes, threshold, ece_raw)
    )


def find_boxes(predict: Predict, scenes: Sequence[Scene], size: tuple[int, int]) -> list[Found]:
    """Return the boxes of pictures, in their own pixels.

    Args:
        predict: a graph.
        scenes: the pictures.
        size: height and width of the graph's input.
    """
    found = []
    for images, placements in _batches(scenes, size):
        outputs = predict(images)
        boxes, scores, labels = (outputs.arrays[name] for name in (BOXES, SCORES, LABELS))
        found += detection_metrics.placed(boxes, scores, labels, placements)
    return found


def _batches(
    scenes: Sequence[Scene], size: tuple[int, int]
) -> Iterator[tuple[Images, list[Placement]]]:
    for start in range(0, len(scenes), BATCH):
        decoded = [decode_laid(scene, size) for scene in scenes[start : start + BATCH]]
        yield np.stack([image for image, _ in decoded]), [place for _, place in decoded]


@dataclass(frozen=True)
class Judged:
    """All boxes of some pictures that count: scores, whether they are right, and labels."""

    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    labels: NDArray[np.int64]


def judge(found: Sequence[Found], scenes: Sequence[Scene]) -> Judged:
    """Compare boxes with the objects of their pictures, at an overlap of 0.5."""
    rows = []
    for each, scene in zip(found, scenes, strict=True):
        right, counts = detection_metrics.match(each, scene.objects)
        rows.append((each.scores[counts], right[counts], each.labels[counts]))
    return Judged(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def measure_detector(
    found: Sequence[Found],
    scenes: Sequence[Scene],
    classes: tuple[str, ...],
    threshold: float,
    ece_raw: float,
) -> DetectionEvaluation:
    """Return all figures of calibrated boxes on the test pictures.

    Args:
        found: of each picture.
        scenes: the pictures.
        classes: names by label.
        threshold: the least score of a box in the confusion matrix.
        ece_raw: of the scores before they were calibrated.
    """
    precision = detection_metrics.measure(found, scenes, len(classes))
    judged = judge(found, scenes)
    labels = np.concatenate([scene.objects.labels[~scene.objects.crowd] for scene in scenes])
    objects = np.bincount(labels, minlength=len(classes))
    matrix = np.zeros((len(classes) + 1, len(classes) + 1), np.int64)
    for each, scene in zip(found, scenes, strict=True):
        matrix += detection_metrics.confusions(each, scene.objects, len(classes), threshold)
    return DetectionEvaluation(
        task="detection",
        classes=classes,
        images=len(scenes),
        objects=int(objects.sum()),
        test=DetectionFigures(
            map=_rounded(precision.map),
            map50=_rounded(precision.map50),
            ece_raw=_rounded(ece_raw),
            ece_calibrated=_rounded(calibration.calibration_error(judged.scores, judged.right)),
        ),
        score_threshold=threshold,
        per_class=tuple(
            ClassPrecision(
                label=label,
                ap=_rounded(ap),
                ap50=_rounded(ap50),
                objects=int(count),
                precision=tuple(round(float(value), 4) for value in curve),
            )
            for label, ap, ap50, count, curve in zip(
                classes,
                np.nan_to_num(precision.by_class),
                np.nan_to_num(precision.by_class50),
                objects,
                precision.curves,
                strict=True,
            )
        ),
        confusion_matrix=tuple(tuple(row) for row in matrix.tolist()),
    )


def _rounded(value: float) -> float:
    return round(float(value), 9)
