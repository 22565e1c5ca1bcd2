"""Detection: which cells learn an object, the loss, and boxes from a network's maps.

Boxes are left, upper, right, lower, in pixels of the network's input. `Truth` has the objects of a
batch. Nothing here knows of a network, a file or a data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from training.tasks.overlap import area, pairwise_iou
from training.tasks.suppression import kept_boxes

MOST_CANDIDATES, MOST_BOXES = 300, 100
"""How many cells of a picture are looked at, and how many boxes are kept."""

MOST_CELLS = 10
"""That learn an object (Feng et al. 2021 have 13; Ultralytics' YOLOv8 has 10)."""

SCORE_POWER, OVERLAP_POWER = 0.5, 6.0
"""Of a cell's score and of its box's overlap, in its rank among those that may learn an object."""

BOX_WEIGHT, LABEL_WEIGHT, DISTANCE_WEIGHT = 7.5, 0.5, 1.5
"""Of the parts of the loss, as in Ultralytics' YOLOv8."""


@dataclass(frozen=True)
class Truth:
    """The objects of N pictures, at most M each.

    Attributes:
        boxes: float `[N,M,4]`.
        labels: int64 `[N,M]`; -1 where a picture has fewer objects, -2 for a crowd.
    """

    boxes: Tensor
    labels: Tensor

    @classmethod
    def of(cls, pictures: Sequence[tuple[Tensor, Tensor]]) -> Self:
        """Return the objects of pictures that each have boxes `[m,4]` and labels `[m]`."""
        most = max((len(labels) for _, labels in pictures), default=0)
        boxes = torch.zeros(len(pictures), most, 4)
        labels = torch.full((len(pictures), most), -1)
        for row, (some_boxes, some_labels) in enumerate(pictures):
            boxes[row, : len(some_labels)] = some_boxes
            labels[row, : len(some_labels)] = some_labels
        return cls(boxes, labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Truth":
        return Truth(self.boxes[index], self.labels[index])

    def to(self, device: torch.device) -> "Truth":
        """Return the same objects on another device."""
        return Truth(self.boxes.to(device), self.labels.to(device))

    @property
    def is_object(self) -> Tensor:
        """Bool `[N,M]`."""
        return self.labels >= 0

    @property
    def is_crowd(self) -> Tensor:
        """Bool `[N,M]`."""
        return self.labels == -2


@dataclass(frozen=True)
class Candidates:
    """The A boxes that a network gives for each picture.

    Attributes:
        boxes: float `[N,A,4]`.
        logits: of the classes, float `[N,A,C]`.
    """

    boxes: Tensor
    logits: Tensor


@dataclass(frozen=True)
class CellCandidates(Candidates):
    """What the A cells of all maps say of each picture.

    Attributes:
        distances: logits of each side's distance in cells, float `[N,A,4,bins]`.
        centres: of the cells, float `[A,2]`, x and y.
        strides: sides of the cells, float `[A]`.
    """

    distances: Tensor
    centres: Tensor
    strides: Tensor


class Finder(Protocol):
    """Reads boxes out of a network's outputs."""

    def candidates(self, outputs: Any, /) -> Candidates:
        """Return all boxes."""
        ...


class Lesson:
    """What a network with grids learns (`training.run.lessons.Lesson`).

    Args:
        strides: sides of the maps' cells.
        bins: of a distance's distribution.
    """

    count_correct = None
    """No picture is right or wrong as a whole."""

    def __init__(self, strides: Sequence[int], bins: int) -> None:
        self._strides, self._bins = strides, bins

    def candidates(self, maps: Sequence[Tensor]) -> CellCandidates:
        """Return what all cells say."""
        return candidates(maps, self._strides, self._bins)

    def losses(self, maps: Sequence[Tensor], truth: Truth, label_smoothing: float) -> Tensor:  # noqa: ARG002
        """Return each picture's loss, `[N]`. Targets are soft already."""
        return losses(self.candidates(maps), truth)


def best(
    found: Candidates, slope: Tensor | None = None, shift: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the boxes that are kept: the best of each object.

    Args:
        found: of N pictures.
        slope: multiplies each class's logit, `[C]`.
        shift: is added to it, `[C]`.

    Returns:
        Boxes, float `[N,MOST_BOXES,4]`; their scores, `[N,MOST_BOXES]`, the highest first and 0 for
        none; and their labels, int64 `[N,MOST_BOXES]`.
    """
    logits = found.logits
    if slope is not None and shift is not None:
        logits = logits * slope + shift
    count = min(MOST_CANDIDATES, logits.shape[1])
    chosen = logits.amax(2).topk(count, 1).indices
    boxes = found.boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
    classes = logits.shape[2]
    scores = logits.gather(1, chosen[..., None].expand(-1, -1, classes)).sigmoid().transpose(1, 2)
    kept = (scores * kept_boxes(boxes, scores)).flatten(1)
    top = kept.topk(min(MOST_BOXES, count), 1)
    place = top.indices % count
    return boxes.gather(1, place[..., None].expand(-1, -1, 4)), top.values, top.indices // count


def candidates(maps: Sequence[Tensor], strides: Sequence[int], bins: int) -> CellCandidates:
    """Return the boxes and classes of all cells.

    Args:
        maps: `[N,4*bins+C,h,w]` each, finest first.
        strides: sides of the maps' cells.
        bins: of a distance's distribution.
    """
    rows = torch.cat([each.flatten(2) for each in maps], 2).transpose(1, 2)  # [N,A,4*bins+C]
    centres, sides = zip(
        *(_cells(each, stride) for each, stride in zip(maps, strides, strict=True)), strict=True
    )
    centre, side = torch.cat(centres), torch.cat(sides)
    distances = rows[..., : 4 * bins].unflatten(2, (4, bins))
    lengths = distances.softmax(3) @ torch.arange(bins, dtype=rows.dtype, device=rows.device)
    lengths = lengths * side[:, None]
    boxes = torch.cat((centre - lengths[..., :2], centre + lengths[..., 2:]), 2)
    return CellCandidates(boxes, rows[..., 4 * bins :], distances, centre, side)


def _cells(grid: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Return the centres `[h*w,2]` of a map's cells and their side `[h*w]`."""
    height, width = grid.shape[2:]
    y = (torch.arange(height, dtype=grid.dtype, device=grid.device) + 0.5) * stride
    x = (torch.arange(width, dtype=grid.dtype, device=grid.device) + 0.5) * stride
    centres = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), 2)
    return centres.flatten(0, 1), torch.full_like(centres[..., 0].flatten(), stride)


def losses(found: CellCandidates, truth: Truth) -> Tensor:
    """Return each picture's loss, `[N]`.

    Binary cross-entropy of the classes, against targets that are higher the better a cell's box
    fits (Feng et al. 2021, arXiv 2108.07755); one minus the complete IoU of the boxes (Zheng et al.
    2020, arXiv 1911.08287); and the distribution focal loss of the distances. All are divided by
    the sum of the targets, as a mean over the pictures of the batch. Where several processes or
    passes share a batch, each divides by its own sum.
    """
    targets, boxes, place = assign(found, truth)
    weights = targets.sum(2)
    total = weights.sum().clamp_min(1.0) / len(targets)
    label = F.binary_cross_entropy_with_logits(found.logits, targets, reduction="none").sum(2)
    label = (label * ~_in_crowd(found.centres, truth, place)).sum(1)
    chosen = place.nonzero(as_tuple=True)
    fit = 1 - complete_iou(found.boxes[chosen], boxes[chosen])
    distance = _distance_loss(
        found.distances[chosen], boxes[chosen], found.centres[chosen[1]], found.strides[chosen[1]]
    )
    box = (BOX_WEIGHT * fit + DISTANCE_WEIGHT * distance) * weights[chosen]
    by_picture = torch.zeros_like(label).index_add(0, chosen[0], box)
    return (LABEL_WEIGHT * label + by_picture) / total


@torch.no_grad()
def assign(found: CellCandidates, truth: Truth) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the cells that learn each object.

    They are the `MOST_CELLS` within the object's box that are best in score and overlap together. A
    cell that two objects choose learns the one that its box overlaps more.

    Returns:
        Targets of the classes, `[N,A,C]`; boxes to learn, `[N,A,4]`; and which cells learn an
        object, bool `[N,A]`.
    """
    pictures, cells, classes = found.logits.shape
    objects = truth.boxes.shape[1]
    if objects == 0:
        empty = torch.zeros(pictures, cells, dtype=torch.bool, device=found.logits.device)
        return torch.zeros_like(found.logits), torch.zeros_like(found.boxes), empty
    low, high = truth.boxes[:, :, None, :2], truth.boxes[:, :, None, 2:]
    inside = ((found.centres > low) & (found.centres < high)).all(3) & truth.is_object[..., None]
    overlap = pairwise_iou(truth.boxes, found.boxes) * inside  # [N,M,A]
    label = truth.labels.clamp_min(0)
    score = found.logits.sigmoid().transpose(1, 2).gather(1, label[..., None].expand(-1, -1, cells))
    rank = score**SCORE_POWER * overlap**OVERLAP_POWER * inside
    best = rank.topk(min(MOST_CELLS, cells), 2)
    chosen = torch.zeros_like(inside).scatter(2, best.indices, best.values > 0)
    # One object a cell: the one that it overlaps most.
    most = F.one_hot(overlap.argmax(1), objects).transpose(1, 2).bool()
    several = chosen.sum(1, keepdim=True) > 1
    chosen = torch.where(several, chosen & most, chosen)
    place = chosen.any(1)
    learned = chosen.int().argmax(1)  # [N,A]
    boxes = truth.boxes.gather(1, learned[..., None].expand(-1, -1, 4))
    rank = rank * chosen
    top_rank = rank.amax(2, keepdim=True).clamp_min(1e-9)
    top_overlap = (overlap * chosen).amax(2, keepdim=True)
    quality = (rank / top_rank * top_overlap).amax(1)  # [N,A]
    hot = F.one_hot(label.gather(1, learned), classes).to(quality)
    return hot * (quality * place)[..., None], boxes, place


def _in_crowd(centres: Tensor, truth: Truth, place: Tensor) -> Tensor:
    """Return the cells in a crowd, which learn nothing, bool `[N,A]`."""
    low, high = truth.boxes[:, :, None, :2], truth.boxes[:, :, None, 2:]
    inside = ((centres > low) & (centres < high)).all(3) & truth.is_crowd[..., None]
    return inside.any(1) & ~place


def _distance_loss(logits: Tensor, boxes: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Return the cross-entropy with the two whole numbers around each distance, `[K]`.

    Args:
        logits: `[K,4,bins]`.
        boxes: to learn, `[K,4]`.
        centres: of the cells, `[K,2]`.
        strides: `[K]`.
    """
    bins = logits.shape[2]
    lengths = torch.cat((centres - boxes[:, :2], boxes[:, 2:] - centres), 1) / strides[:, None]
    lengths = lengths.clamp(0, bins - 1 - 0.01)
    lower = lengths.long()
    part = lengths - lower
    logarithms = logits.log_softmax(2)
    below = logarithms.gather(2, lower[..., None])[..., 0]
    above = logarithms.gather(2, lower[..., None] + 1)[..., 0]
    return -(below * (1 - part) + above * part).mean(1)


def complete_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the complete IoU of boxes `[K,4]`, `[K]`: less for far centres and other shapes."""
    low, high = torch.maximum(first, second), torch.minimum(first, second)
    shared = (high[:, 2:] - low[:, :2]).clamp_min(0).prod(1)
    union = area(first) + area(second) - shared
    overlap = shared / union.clamp_min(1e-9)
    around = (high[:, :2] - low[:, 2:]).square().sum(1).clamp_min(1e-9)
    centre = (first[:, :2] + first[:, 2:] - second[:, :2] - second[:, 2:]).square().sum(1) / 4
    shape = (4 / torch.pi**2) * (_slant(first) - _slant(second)).square()
    weight = (shape / (1 - overlap + shape).clamp_min(1e-9)).detach()
    return overlap - centre / around - weight * shape


def _slant(boxes: Tensor) -> Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp_min(1e-3)
    return torch.atan(sides[:, 0] / sides[:, 1])
