"""Metrics of detectors, computed by faster-coco-eval as COCO defines them.

Boxes are compared in the pixels of the upright picture.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.images.placement import Placement

MOST_BOXES = 100
"""The best boxes of a picture that count, as in COCO's own figures."""

RECALLS = 101
LEAST_OVERLAP = 0.5


class Annotated(Protocol):
    """The objects of a picture, as `training.data.annotated.Objects` has them."""

    @property
    def boxes(self) -> NDArray[np.float32]:
        """X, y, width and height, `[m,4]`."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Indices of classes, `[m]`."""
        ...

    @property
    def crowd(self) -> NDArray[np.bool_]:
        """Whether each is a region of many objects, `[m]`."""
        ...


class Pictured(Protocol):
    """A picture with its objects, as `training.data.annotated.Scene` is."""

    @property
    def height(self) -> int:
        """In pixels."""
        ...

    @property
    def width(self) -> int:
        """In pixels."""
        ...

    @property
    def objects(self) -> Annotated:
        """In the picture."""
        ...


@dataclass(frozen=True)
class Found:
    """The boxes of one picture.

    Attributes:
        boxes: x, y, width, height in its pixels, float64 `[n,4]`.
        scores: `[n]`.
        labels: int64 `[n]`.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Precision:
    """Average precision on a set of pictures.

    Attributes:
        by_class: mean over overlaps of 0.5 to 0.95, float64 `[C]`; NaN without objects.
        by_class50: at an overlap of 0.5, likewise.
        curves: precision at an overlap of 0.5 and a recall of 0%, 1%, … 100%, `[C,101]`.
    """

    by_class: NDArray[np.float64]
    by_class50: NDArray[np.float64]
    curves: NDArray[np.float64]

    @property
    def map(self) -> float:
        """Mean over the classes with objects; 0 if there are none."""
        return _mean(self.by_class)

    @property
    def map50(self) -> float:
        """Likewise, at an overlap of 0.5."""
        return _mean(self.by_class50)


def placed(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    placements: Sequence[Placement],
) -> list[Found]:
    """Return the boxes of N inputs in the pixels of their pictures, rounded as in an answer.

    Args:
        boxes: left, upper, right, lower, `[N,K,4]`.
        scores: `[N,K]`; 0 for no box.
        labels: `[N,K]`.
        placements: of the pictures in the inputs.
    """
    found = []
    for each, score, label, placement in zip(boxes, scores, labels, placements, strict=True):
        rounded = np.round(score.astype(np.float64), 6)
        edges = placement.to_picture(each[rounded > 0])
        sized = np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], 1)
        found.append(Found(np.round(sized, 3), rounded[rounded > 0], label[rounded > 0]))
    return found


def measure(found: Sequence[Found], pictures: Sequence[Pictured], classes: int) -> Precision:
    """Return the average precision of boxes on pictures with known objects.

    Args:
        found: of each picture.
        pictures: the same, in the same order.
        classes: the number of classes.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(_annotations(pictures, classes))
    rows = _rows(found)
    empty = np.full(classes, np.nan)
    if not rows:
        counts = np.bincount(
            np.concatenate([each.objects.labels[~each.objects.crowd] for each in pictures]),
            minlength=classes,
        )
        zeros = np.where(counts > 0, 0.0, empty)
        return Precision(zeros, zeros, np.zeros((classes, RECALLS)))
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval_faster(truth, truth.loadRes(rows), "bbox", print_function=_silent)
        evaluation.params.maxDets = [1, 10, MOST_BOXES]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [overlaps,recalls,classes]
    known = precision > -1
    by_overlap = np.where(known.all(1), precision.mean(1), np.nan)
    return Precision(
        by_overlap.mean(0), by_overlap[0], np.where(known[0], precision[0], 0.0).T.copy()
    )


def match(
    found: Found, objects: Annotated, least: float = LEAST_OVERLAP
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which boxes find an object of their class that no better box has, and which count.

    A box that finds no object, but lies in a crowd, counts for nothing.

    Args:
        found: the boxes of a picture.
        objects: in it.
        least: the overlap from which an object is found.
    """
    order = np.argsort(-found.scores, kind="stable")
    right, counts = np.zeros(len(order), np.bool_), np.ones(len(order), np.bool_)
    overlap, inside = _overlaps(found.boxes, objects.boxes)
    same = found.labels[:, None] == objects.labels[None]
    free = ~objects.crowd
    for index in order:
        fits = np.where(same[index] & free, overlap[index], 0.0)
        if fits.size and fits.max() >= least:
            right[index] = True
            free[fits.argmax()] = False
        elif (same[index] & objects.crowd & (inside[index] >= least)).any():
            counts[index] = False
    return right, counts


def confusions(
    found: Found, objects: Annotated, classes: int, threshold: float
) -> NDArray[np.int64]:
    """Return a picture's part of the confusion matrix, `[classes+1,classes+1]`.

    Rows are true, columns found; the last ones are background. The best box first, each finds the
    object that it overlaps most, of those that are left and by 0.5 or more, whatever its class.

    Args:
        found: the boxes of a picture.
        objects: in it.
        classes: the number of classes.
        threshold: the least score of a box that counts.
    """
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    overlap, inside = _overlaps(found.boxes, objects.boxes)
    free = ~objects.crowd
    for index in np.argsort(-found.scores, kind="stable"):
        if found.scores[index] < threshold:
            break
        fits = np.where(free, overlap[index], 0.0)
        if fits.size and fits.max() >= LEAST_OVERLAP:
            free[fits.argmax()] = False
            matrix[objects.labels[fits.argmax()], found.labels[index]] += 1
        elif not (objects.crowd & (inside[index] >= LEAST_OVERLAP)).any():
            matrix[classes, found.labels[index]] += 1
    np.add.at(matrix[:, classes], objects.labels[free], 1)
    return matrix


def _overlaps(
    boxes: NDArray[np.float64], others: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the overlap (IoU) of each two boxes, and the part of the first inside of the second.

    Both are `[n,m]`, of x, y, width, height.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (others[:, :2] + others[:, 2:])[None])
    shared = np.clip(high - low, 0, None).prod(2)
    area, other = boxes[:, 2:].prod(1)[:, None], others[:, 2:].prod(1)[None]
    return (
        shared / np.maximum(area + other - shared, 1e-9),
        shared / np.maximum(area, 1e-9),
    )


def _annotations(pictures: Sequence[Pictured], classes: int) -> dict[str, Any]:
    rows = [
        (image, box.tolist(), int(label), bool(crowd))
        for image, picture in enumerate(pictures, start=1)
        for box, label, crowd in zip(
            picture.objects.boxes, picture.objects.labels, picture.objects.crowd, strict=True
        )
    ]
    return {
        "images": [
            {"id": index, "height": picture.height, "width": picture.width}
            for index, picture in enumerate(pictures, start=1)
        ],
        "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": label + 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(crowd),
            }
            for number, (image, box, label, crowd) in enumerate(rows, start=1)
        ],
    }


def _rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": int(label) + 1, "bbox": box.tolist(), "score": score}
        for image, picture in enumerate(found, start=1)
        for box, label, score in zip(
            picture.boxes, picture.labels, picture.scores.tolist(), strict=True
        )
    ]


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def _silent(*_: object) -> None:
    """Print nothing."""
