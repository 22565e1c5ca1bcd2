"""Evaluation of detectors and segmenters: with `training.evaluate`, what reads test pictures.

Scores and probabilities are calibrated, and thresholds are chosen, on held-out pictures.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.artifact.detection import (
    ClassPrecision,
    DetectionEvaluation,
    DetectionFigures,
    DetectorInt8,
    DetectorManifest,
    Suppression,
)
from app.artifact.manifest import Int8Graph
from app.artifact.segmentation import (
    ClassOverlap,
    Instances,
    SegmentationEvaluation,
    SegmentationFigures,
    SegmenterInt8,
    SegmenterManifest,
)
from app.artifact.tensors import BOXES, DEPTH, LABELS, PROBABILITIES, SCORES
from app.tasks import segmentation as served_segmentation
from training.architectures import find_architecture
from training.data.annotated import Scene
from training.data.scenes import SceneSource
from training.evaluate import Predict, check_source, load_network
from training.run.checkpoint import Checkpoint
from training.run.scene_lessons import (
    classes_of,
    count_outputs,
    detection_lesson,
    laid_batches,
    lay,
    numbers_of,
    split,
)
from training.served import ServedDetector, ServedSegmenter
from training.tasks import calibration, detection_metrics, segmentation_metrics
from training.tasks.classification import fit_temperature
from training.tasks.detection_metrics import Found
from training.tasks.segmentation_metrics import Counts
from training.tasks.suppression import IOU, LEAST_SCORE

BATCH = 4
DEFAULT_THRESHOLD = 0.5
DEFAULT_INSTANCES = Instances(least_probability=0.5, seed_depth=0.5, least_area=10)

PROBABILITIES_TRIED = (0.4, 0.45, 0.5, 0.55)
DEPTHS_TRIED = (0.4, 0.5, 0.6, 0.7)
AREAS_TRIED = (10, 20, 40)
PIXELS_OF_PICTURE = 4000
"""That a temperature is fitted to, and the ECE is of."""


@dataclass(frozen=True)
class EvaluatedDetector:
    """A detector with calibrated scores, and its figures."""

    served: ServedDetector
    evaluation: DetectionEvaluation

    def score(self, predict: Predict, scenes: Sequence[Scene]) -> float:
        """Return the mAP of a graph."""
        return self._precision(predict, scenes).map

    def manifest(self, common: Mapping[str, Any]) -> DetectorManifest:
        """Return the manifest of an artifact.

        Args:
            common: the fields that all tasks have.
        """
        return DetectorManifest(
            **common,
            task="detection",
            suppression=Suppression(iou=IOU, least_score=LEAST_SCORE),
            score_threshold=self.evaluation.score_threshold,
            test=self.evaluation.test,
        )

    def int8_record(
        self,
        graph: Int8Graph,
        heldout: tuple[float, float],
        predict: Predict,
        scenes: Sequence[Scene],
    ) -> DetectorInt8:
        """Return the record of an int8 graph.

        Args:
            graph: its file.
            heldout: the score on held-out pictures of the float32 graph, and its own.
            predict: the graph.
            scenes: the test pictures.
        """
        precision = self._precision(predict, scenes)
        return DetectorInt8(
            **graph.model_dump(),
            heldout_map_float32=_rounded(heldout[0]),
            heldout_map=_rounded(heldout[1]),
            test_map=_rounded(precision.map),
            test_map50=_rounded(precision.map50),
        )

    def _precision(self, predict: Predict, scenes: Sequence[Scene]) -> detection_metrics.Precision:
        found = find_boxes(predict, scenes, self.served.size)
        return detection_metrics.measure(found, scenes, len(self.evaluation.classes))


@dataclass(frozen=True)
class EvaluatedSegmenter:
    """A segmenter with calibrated probabilities and thresholds of its objects, and its figures."""

    served: ServedSegmenter
    instances: Instances | None
    evaluation: SegmentationEvaluation

    def score(self, predict: Predict, scenes: Sequence[Scene]) -> float:
        """Return the mean overlap (IoU) of a graph."""
        return _mean_overlap(self._tally(predict, scenes, None).pixels)

    def manifest(self, common: Mapping[str, Any]) -> SegmenterManifest:
        """As `EvaluatedDetector.manifest`."""
        return SegmenterManifest(
            **common, task="segmentation", instances=self.instances, test=self.evaluation.test
        )

    def int8_record(
        self,
        graph: Int8Graph,
        heldout: tuple[float, float],
        predict: Predict,
        scenes: Sequence[Scene],
    ) -> SegmenterInt8:
        """As `EvaluatedDetector.int8_record`."""
        tally = self._tally(predict, scenes, self.instances)
        return SegmenterInt8(
            **graph.model_dump(),
            heldout_iou_float32=heldout[0],
            heldout_iou=heldout[1],
            test_iou=_mean_overlap(tally.pixels),
            test_instance_f1=None if self.instances is None else tally.f1,
        )

    def _tally(self, predict: Predict, scenes: Sequence[Scene], rule: Instances | None) -> "Tally":
        count = len(self.evaluation.classes)
        return tally_masks(predict, scenes, self.served.size, rule, count)


Evaluated = EvaluatedDetector | EvaluatedSegmenter


def evaluate_scenes(checkpoint: Checkpoint, source: SceneSource) -> Evaluated:
    """Calibrate on the held-out pictures, then measure on the test pictures.

    Args:
        checkpoint: of a run. Without held-out pictures, nothing is calibrated, and thresholds are
            the default ones.
        source: the data set that the run was trained on.

    Raises:
        DataError: `source` is not the data set that the run was trained on.
        RunError: the weights cannot be read.
    """
    check_source(checkpoint, source)
    task = find_architecture(checkpoint.state.recipe.architecture).task
    return (evaluate_detector if task == "detection" else evaluate_segmenter)(checkpoint, source)


def evaluate_detector(checkpoint: Checkpoint, source: SceneSource) -> EvaluatedDetector:
    """As `evaluate_scenes`, of a detector."""
    state = checkpoint.state
    network = load_network(checkpoint, count_outputs("detection", source))
    size = state.recipe.height, state.recipe.width
    served = ServedDetector(
        network, state.mean, state.deviation, size, detection_lesson(state.recipe)
    )
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
    for images, placements, _ in laid_batches(scenes, size, BATCH):
        outputs = predict(images)
        boxes, scores, labels = (outputs.arrays[name] for name in (BOXES, SCORES, LABELS))
        found += detection_metrics.placed(boxes, scores, labels, placements)
    return found


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
    objects = _count_objects(scenes, len(classes))
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


def evaluate_segmenter(checkpoint: Checkpoint, source: SceneSource) -> EvaluatedSegmenter:
    """As `evaluate_scenes`, of a segmenter."""
    state = checkpoint.state
    network = load_network(checkpoint, count_outputs("segmentation", source))
    size, count = (state.recipe.height, state.recipe.width), len(state.classes)
    served = ServedSegmenter(network, state.mean, state.deviation, size, count)
    _, heldout = split(state.recipe, source)
    raw = _pixel_error(served.predict, source.test, size)
    rule = DEFAULT_INSTANCES if source.instances else None
    if heldout:
        served.temperature = fit_temperature(*_some_pixels(served.predict, heldout, size))
        if rule is not None:
            rule = choose_instances(served.predict, heldout, size)
    tally = tally_masks(served.predict, source.test, size, rule, count)
    overlaps = np.nan_to_num(segmentation_metrics.overlaps(tally.pixels))
    borders = [float(np.mean(each)) if each else 0.0 for each in tally.borders]
    anywhere = [border for border, of in zip(borders, tally.borders, strict=True) if of]
    objects = _count_objects(source.test, count)
    has_objects = rule is not None
    figures = SegmentationFigures(
        iou=_mean_overlap(tally.pixels),
        boundary_f1=_rounded(float(np.mean(anywhere)) if anywhere else 0.0),
        instance_f1=tally.f1 if has_objects else None,
        ece_raw=raw,
        ece_calibrated=_pixel_error(served.predict, source.test, size),
    )
    evaluation = SegmentationEvaluation(
        task="segmentation",
        classes=state.classes,
        images=len(source.test),
        objects=int(objects.sum()),
        test=figures,
        per_class=tuple(
            ClassOverlap(
                label=label,
                iou=_rounded(overlaps[index + 1]),
                boundary_f1=_rounded(borders[index]),
                instance_f1=_rounded(tally.objects[index].f1) if has_objects else None,
                objects=int(objects[index]),
            )
            for index, label in enumerate(state.classes)
        ),
        confusion_matrix=tuple(
            tuple(row)
            for row in np.roll(tally.pixels, -1, (0, 1)).tolist()  # background last
        ),
    )
    return EvaluatedSegmenter(served, rule, evaluation)


@dataclass(frozen=True)
class Tally:
    """Masks compared with the true ones, in the pixels of the pictures.

    Attributes:
        pixels: confusion matrix of pixels, background first, `[C+1,C+1]`.
        objects: of each class.
        borders: their F1 in each picture that has any, of each class.
    """

    pixels: NDArray[np.int64]
    objects: list[Counts]
    borders: list[list[float]]

    @property
    def f1(self) -> float:
        """Of the objects of all classes."""
        return _rounded(sum(self.objects, Counts()).f1)


def tally_masks(
    predict: Predict,
    scenes: Sequence[Scene],
    size: tuple[int, int],
    rule: Instances | None,
    count: int,
) -> Tally:
    """Compare a graph's masks with the true ones, as the service would answer them.

    Args:
        predict: the graph.
        scenes: the pictures.
        size: height and width of the graph's input.
        rule: the thresholds of objects; None to leave them out.
        count: the number of classes.
    """
    tally = Tally(
        np.zeros((count + 1, count + 1), np.int64),
        [Counts() for _ in range(count)],
        [[] for _ in range(count)],
    )
    for images, placements, laid in laid_batches(scenes, size, BATCH):
        outputs = predict(images)
        for index, (placement, scene) in enumerate(zip(placements, laid, strict=True)):
            found = served_segmentation.segment(outputs.part(index, 1), rule, placement)
            _add(tally, scene, found)
    return tally


def _add(tally: Tally, scene: Scene, found: served_segmentation.Segmented) -> None:
    numbers = numbers_of(scene).astype(np.int64)
    truth = classes_of(numbers, scene.objects.labels)
    classes = found.classes.astype(np.int64)
    tally.pixels[:] += segmentation_metrics.count_pixels(truth, classes, len(tally.pixels))
    found_of = np.concatenate([[0], np.array(found.labels, np.int64) + 1])
    for label in range(len(tally.objects)):
        border = segmentation_metrics.boundary_f1(truth == label + 1, classes == label + 1)
        if border is not None:
            tally.borders[label].append(border)
        if found.objects is not None:
            of_class = np.where(truth == label + 1, numbers, np.where(truth < 0, -1, 0))
            objects = found.objects.astype(np.int64)
            objects = np.where(found_of[objects] == label + 1, objects, 0)
            tally.objects[label] += segmentation_metrics.count_objects(of_class, objects)


def choose_instances(predict: Predict, scenes: Sequence[Scene], size: tuple[int, int]) -> Instances:
    """Return the thresholds with which the objects of pictures are told apart best, by F1.

    In the input's pixels, and whatever the classes.
    """
    rules = [
        Instances(least_probability=least, seed_depth=depth, least_area=area)
        for least, depth, area in itertools.product(PROBABILITIES_TRIED, DEPTHS_TRIED, AREAS_TRIED)
    ]
    counts = [Counts()] * len(rules)
    for images, _, laid in laid_batches(scenes, size, BATCH):
        outputs = predict(images)
        for index, scene in enumerate(laid):
            truth = lay(scene, size, masks=True).object_numbers()
            maps = (outputs.arrays[name][index] for name in (PROBABILITIES, DEPTH))
            probabilities, depth_map = maps
            for place, rule in enumerate(rules):
                found = served_segmentation.number_objects(probabilities, depth_map, rule)
                counts[place] += segmentation_metrics.count_objects(truth, found.astype(np.int64))
    best = max(range(len(rules)), key=lambda place: counts[place].f1)
    return rules[best]


def _known_pixels(
    predict: Predict, scenes: Sequence[Scene], size: tuple[int, int]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Yield probabilities `[n,C+1]` and classes `[n]` of some pixels of each picture."""
    random = np.random.default_rng(0)
    for images, _, laid in laid_batches(scenes, size, BATCH):
        answers = predict(images).arrays[PROBABILITIES]
        for probabilities, scene in zip(answers, laid, strict=True):
            truth = lay(scene, size, masks=True).pixel_classes().ravel()
            known = np.flatnonzero(truth >= 0)
            some = random.choice(known, min(PIXELS_OF_PICTURE, len(known)), replace=False)
            yield probabilities.reshape(len(probabilities), -1).T[some], truth[some]


def _some_pixels(
    predict: Predict, scenes: Sequence[Scene], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return logits and classes of some pixels, to fit a temperature to."""
    pairs = list(_known_pixels(predict, scenes, size))
    probabilities = np.concatenate([each for each, _ in pairs])
    logits = torch.from_numpy(np.log(np.maximum(probabilities, 1e-30)))
    return logits, torch.from_numpy(np.concatenate([truth for _, truth in pairs]))


def _pixel_error(predict: Predict, scenes: Sequence[Scene], size: tuple[int, int]) -> float:
    """Return the ECE of pixels (Guo et al. 2017): of their most probable class."""
    pairs = list(_known_pixels(predict, scenes, size))
    probabilities = np.concatenate([each for each, _ in pairs]).astype(np.float64)
    truth = np.concatenate([each for _, each in pairs])
    right = probabilities.argmax(1) == truth
    return _rounded(calibration.calibration_error(probabilities.max(1), right))


def _mean_overlap(pixels: NDArray[np.int64]) -> float:
    """Return the mean overlap of the classes but background."""
    return _rounded(segmentation_metrics.mean_overlap(pixels))


def _count_objects(scenes: Sequence[Scene], classes: int) -> NDArray[np.int64]:
    """Return the number of objects of each class; crowds do not count."""
    labels = [scene.objects.labels[~scene.objects.crowd] for scene in scenes]
    return np.bincount(np.concatenate(labels), minlength=classes)


def _rounded(value: float) -> float:
    return round(float(value), 9)
