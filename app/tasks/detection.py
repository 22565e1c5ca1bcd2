"""Detection: from a graph's outputs to the objects in a picture, in the picture's own pixels.

The graph has kept the best box of each object already. What a request asks for beyond that, a
higher score or less overlap, only leaves boxes out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from app.artifact.directory import Artifact
from app.artifact.tensors import BOXES, LABELS, SCORES, Outputs, overlaps
from app.errors import InvalidParameter
from app.images.placement import Placement

DEFAULT_DETECTIONS, MAX_DETECTIONS = 100, 1000
"""The most objects in an answer for one picture."""


@dataclass(frozen=True, slots=True)
class Found:
    """The n objects in a picture, the best first.

    Attributes:
        boxes: x and y of the upper left corner, width and height, in pixels of the upright picture,
            rounded to a thousandth, float64 `[n,4]`.
        labels: indices of the classes, int64 `[n]`.
        scores: probabilities, rounded to a millionth, float64 `[n]`.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]


class Interpreter:
    """Writes the answer to one request from the outputs of one model.

    Made before an image is read, so that a wrong parameter is refused at once.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> None:
        """Check the parameters.

        Args:
            artifact: the model, a detector.
            score_threshold: the least score of an object; the model's own unless given.
            iou_threshold: the most that two objects of a class overlap; the model's own unless
                given.
            max_detections: the most objects in a picture; `DEFAULT_DETECTIONS` unless given.

        Raises:
            InvalidParameter: the graph has already dropped what `iou_threshold` would keep.
            WrongTask: the model does not detect objects.
        """
        manifest = artifact.detector
        most = manifest.suppression.iou
        if iou_threshold is not None and iou_threshold > most:
            raise InvalidParameter(
                f"iou_threshold={iou_threshold:g}: the limit is the model's own, {most:g}"
            )
        self._manifest = manifest
        self._least = manifest.score_threshold if score_threshold is None else score_threshold
        self._overlap = iou_threshold
        self._most = DEFAULT_DETECTIONS if max_detections is None else max_detections

    def find(self, outputs: Outputs, placements: Sequence[Placement]) -> list[Found]:
        """Return the objects in each of N pictures.

        Args:
            outputs: of the graph, for N images.
            placements: of the pictures in these images.
        """
        return [
            self._find_in(outputs.part(index, 1), placement)
            for index, placement in enumerate(placements)
        ]

    def _find_in(self, outputs: Outputs, placement: Placement) -> Found:
        boxes, scores, labels = (outputs.arrays[name][0] for name in (BOXES, SCORES, LABELS))
        kept = np.flatnonzero((scores >= self._least) & (scores > 0))
        if self._overlap is not None:
            kept = kept[_not_suppressed(boxes[kept], labels[kept], self._overlap)]
        edges = placement.to_picture(boxes[kept])
        sized = np.round(np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1), 3)
        inside = np.flatnonzero((sized[:, 2:] > 0).all(axis=1))[: self._most]  # not in a margin
        kept, sized = kept[inside], sized[inside]
        return Found(sized, labels[kept], np.round(scores[kept].astype(np.float64), 6))

    def render(
        self,
        found: Sequence[Found],
        placements: Sequence[Placement],
        filenames: Sequence[str | None],
        warnings: Sequence[str | None],
    ) -> bytes:
        """Return the answer, the JSON of `app.api.schemas.Detections`.

        Args:
            found: the objects in N pictures.
            placements: of the N pictures.
            filenames: of the N pictures.
            warnings: of the N pictures.
        """
        manifest = self._manifest
        pictures = [
            self.describe(*each)
            for each in zip(found, placements, filenames, warnings, strict=True)
        ]
        head = {"model": manifest.name, "version": manifest.version}
        several = {"pictures": pictures}
        return orjson.dumps(head | (pictures[0] if len(pictures) == 1 else several))

    def describe(
        self, found: Found, placement: Placement, filename: str | None, warning: str | None
    ) -> dict[str, object]:
        """Return one picture's part of the answer, as in `app.api.schemas.PictureDetections`.

        Args:
            found: the objects in it.
            placement: of the picture in the graph's input.
            filename: of the picture.
            warning: of the picture.
        """
        width, height = placement.picture
        ids, names = self._manifest.category_ids, self._manifest.classes
        rows = zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
        answer: dict[str, object] = {
            "image": {"width": width, "height": height},
            "detections": [
                {
                    "bbox": box,
                    "category": names[label],
                    "category_id": ids[label],
                    "score": score,
                }
                for box, label, score in rows
            ],
        }
        if filename is not None:
            answer["filename"] = filename
        if warning is not None:
            answer["warning"] = warning
        return answer

    def labels(self, found: Sequence[Found]) -> list[str]:
        """Return the class of each object in all pictures."""
        classes = self._manifest.classes
        return [classes[label] for picture in found for label in picture.labels.tolist()]


def _not_suppressed(
    boxes: NDArray[np.float32], labels: NDArray[np.int64], most: float
) -> NDArray[np.bool_]:
    """Return which boxes no better one of their class overlaps by more than `most`, bool `[n]`.

    Args:
        boxes: left, upper, right, lower, `[n,4]`, the best first.
        labels: `[n]`.
        most: the overlap (IoU) that is allowed.
    """
    drops = (overlaps(boxes, boxes) > most) & (labels[:, None] == labels)
    kept = np.ones(len(boxes), np.bool_)
    for index in range(len(boxes)):
        if kept[index]:
            kept[index + 1 :] &= ~drops[index, index + 1 :]
    return kept
