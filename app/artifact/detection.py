"""The records of a detector in `manifest.json` and `evaluation.json`. Nothing here reads a file."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from app.artifact.manifest import Frozen, Int8Graph
from app.artifact.objects import ClassRecord, ObjectEvaluation, ObjectManifest, Part
from app.artifact.tensors import BOXES, LABELS, SCORES

Curve = Annotated[tuple[Part, ...], Field(min_length=101, max_length=101)]
"""Precision at a recall of 0%, 1%, … 100%, the best at that or a higher recall."""


class DetectionFigures(Frozen):
    """Figures on the test split, as COCO's evaluation defines them.

    `map` is the mean of the classes' average precision at overlaps (IoU) of 0.5 to 0.95, `map50`
    that at 0.5. The detection ECE (Küppers et al. 2020, arXiv 2004.13546) compares scores with the
    part of the boxes that overlap an object of their class by 0.5: `raw` before the scores were
    calibrated, `calibrated` as they are served.
    """

    map: Part
    map50: Part
    ece_raw: Part
    ece_calibrated: Part


class DetectorInt8(Int8Graph):
    """The int8 graph of a detector, with its measured figures; `map` as in `DetectionFigures`."""

    heldout_map_float32: Part
    heldout_map: Part
    test_map: Part
    test_map50: Part


class Suppression(Frozen):
    """What the graph leaves out: boxes below a score, and the worse of two of a class that overlap.

    `iou` is the overlap above which that happens.
    """

    iou: Annotated[float, Field(gt=0, le=1)]
    least_score: Part


class DetectorManifest(ObjectManifest):
    """Of a detector: an image in, the best K boxes out.

    `boxes` are left, upper, right and lower in pixels of the input; `scores` are calibrated
    probabilities, the highest first; `labels` are indices of classes. Where there are fewer than K,
    the rest has scores of 0. `score_threshold` is the one with the best F1 on held-out images.
    """

    task: Literal["detection"]
    suppression: Suppression
    score_threshold: Part
    test: DetectionFigures
    int8: Annotated[DetectorInt8 | None, Field(exclude_if=lambda record: record is None)] = None

    @model_validator(mode="after")
    def _gives_boxes(self) -> Self:
        found = {output.name: output for output in self.outputs}
        most = found[BOXES].shape[1] if BOXES in found and len(found[BOXES].shape) > 1 else "K"
        expected = {
            BOXES: ("float32", ("N", most, 4)),
            SCORES: ("float32", ("N", most)),
            LABELS: ("int64", ("N", most)),
        }
        for name, spec in expected.items():
            output = found.get(name)
            if output is None or (output.dtype, output.shape) != spec:
                given = "missing" if output is None else f"{output.dtype} {output.shape}"
                raise ValueError(f"the output {name} is {given}; it must be {spec[0]} {spec[1]}")
        return self

    @property
    def predicted(self) -> list[str]:
        """Boxes, their scores and their classes."""
        return [BOXES, SCORES, LABELS]


class ClassPrecision(ClassRecord):
    """The average precision of one class on the test split.

    `ap` is the mean over overlaps of 0.5 to 0.95, `ap50` at 0.5, and `precision` the curve at 0.5.
    """

    ap: Part
    ap50: Part
    precision: Curve


class DetectionEvaluation(ObjectEvaluation):
    """`evaluation.json` of a detector: the figures measured on the test split.

    `confusion_matrix` counts boxes of at least `score_threshold` and objects; background are boxes
    without an object, and objects without a box. A box finds the object that it overlaps most, by
    0.5 or more, whatever its class.
    """

    task: Literal["detection"]
    test: DetectionFigures
    score_threshold: Part
    per_class: tuple[ClassPrecision, ...]
