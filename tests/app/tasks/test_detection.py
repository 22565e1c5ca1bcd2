"""Boxes of a graph: those that are left out, and their places in the picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.artifact.tensors import Outputs, overlaps
from app.images.placement import place
from app.tasks.detection import Found, Interpreter
from tests.support.detectors import HEIGHT, WIDTH, write_detector

WHOLE = place((WIDTH, HEIGHT), (WIDTH, HEIGHT), "letterbox")


def outputs_of(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64]
) -> Outputs:
    arrays: dict[str, NDArray[Any]] = {"boxes": boxes, "scores": scores, "labels": labels}
    return Outputs({name: array[None] for name, array in arrays.items()})


@pytest.mark.parametrize("iou_threshold", [0.2, 0.5, 0.7])
def test_box_is_left_out_if_a_kept_one_of_its_class_overlaps_it(
    tmp_path: Path, iou_threshold: float
) -> None:
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 24, (60, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + generator.uniform(8, 24, (60, 2))], 1)
    boxes = boxes.astype(np.float32)
    labels = generator.integers(0, 2, 60)
    scores = np.sort(generator.uniform(0.3, 1, 60).astype(np.float32))[::-1].copy()
    kept: list[int] = []
    for index in range(60):
        same = [other for other in kept if labels[other] == labels[index]]
        if not (overlaps(boxes[index : index + 1], boxes[same]) > iou_threshold).any():
            kept.append(index)
    assert 2 < len(kept) < 60

    interpreter = Interpreter(write_detector(tmp_path), iou_threshold=iou_threshold)
    [found] = interpreter.find(outputs_of(boxes, scores, labels), [WHOLE])
    assert found.scores.tolist() == np.round(scores[kept].astype(np.float64), 6).tolist()
    assert found.labels.tolist() == labels[kept].tolist()


def test_box_in_a_margin_is_no_object(tmp_path: Path) -> None:
    """A picture four times as wide as it is high fills the middle third of the input's rows."""
    boxes = np.array([[5, 2, 30, 14], [5, 2, 30, 22], [5, 40, 5, 48]], np.float32)
    found = _find(tmp_path, boxes, max_detections=1)
    assert found.boxes.tolist() == [[62.5, 0.0, 312.5, 75.0]]
    assert found.scores.tolist() == [0.8]


def _find(store: Path, boxes: NDArray[np.float32], **parameters: Any) -> Found:
    scores = np.linspace(0.9, 0.7, len(boxes)).astype(np.float32)
    outputs = outputs_of(boxes, scores, np.zeros(len(boxes), np.int64))
    placement = place((800, 200), (WIDTH, HEIGHT), "letterbox")
    [found] = Interpreter(write_detector(store), **parameters).find(outputs, [placement])
    return found
