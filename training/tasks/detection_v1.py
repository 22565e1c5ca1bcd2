"""Detection as in the first YOLO (Redmon et al. 2016, arXiv 1506.02640, section 2).

For each box of a cell, a network gives its centre within the cell, the square roots of its width
and height as parts of the picture's, and its confidence; and for each cell, the probability of each
class. All are plain numbers, learned by their squared errors. Boxes are left, upper, right, lower,
in pixels of the network's input.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from training.tasks.detection import Candidates, Truth
from training.tasks.overlap import pairwise_iou

PLACE_WEIGHT, EMPTY_WEIGHT = 5.0, 0.5
"""Of the errors of boxes that learn an object, and of the confidence of all others."""

LEAST = 1e-6
"""How far a score stays from 0 and from 1, so that it has a logit."""


class Lesson:
    """What a network with one grid learns (`training.run.lessons.Lesson`).

    Args:
        size: height and width of the network's input.
        boxes: of a cell.
    """

    count_correct = None
    """No picture is right or wrong as a whole."""

    def __init__(self, size: tuple[int, int], boxes: int) -> None:
        self._size, self._boxes = size, boxes

    def candidates(self, grid: Tensor) -> Candidates:
        """Return all boxes of all cells; a score is confidence times the class's probability."""
        found = self._split(grid)
        boxes = self._corners(found[0]).flatten(1, 3)
        scores = (found[1][..., None] * found[2][..., None, :]).flatten(1, 3)
        return Candidates(boxes, scores.clamp(LEAST, 1 - LEAST).logit())

    def losses(self, grid: Tensor, truth: Truth, label_smoothing: float) -> Tensor:  # noqa: ARG002
        """Return each picture's loss, `[N]`: the paper's equation 3.

        The cell of an object's centre learns its class; the box of the cell that overlaps the
        object most learns its place, and as confidence this overlap. Of objects whose centres share
        a cell, only the first is learned. Cells with the centre of a crowd learn nothing.
        """
        places, confidences, classes = self._split(grid)
        rows, columns = confidences.shape[1:3]
        picture, cell, object_ = learned_objects(truth, self._size, (rows, columns))
        row, column = cell // columns, cell % columns
        height, width = self._size
        box = truth.boxes[picture, object_]
        scale = box.new_tensor([width, height])
        middle = (box[:, :2] + box[:, 2:]) / 2 / scale * box.new_tensor([columns, rows])
        wanted = torch.cat((middle - middle.floor(), ((box[:, 2:] - box[:, :2]) / scale).sqrt()), 1)
        with torch.no_grad():
            here = self._corners(places)[picture, row, column]
            overlap = pairwise_iou(box[:, None], here)[:, 0]  # [K,boxes]
        best, chosen = overlap.max(1)
        place = (places[picture, row, column, chosen] - wanted).square().sum(1)
        confidence = (confidences[picture, row, column, chosen] - best).square()
        label = F.one_hot(truth.labels[picture, object_], classes.shape[3])
        label = (classes[picture, row, column] - label).square().sum(1)
        empty = confidences.square() * ~_of_crowds(truth, self._size, (rows, columns))[..., None]
        confident = EMPTY_WEIGHT * empty[picture, row, column, chosen]
        loss = EMPTY_WEIGHT * empty.flatten(1).sum(1)
        return loss.index_add(0, picture, PLACE_WEIGHT * place + confidence + label - confident)

    def _split(self, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return places `[N,S,S,B,4]`, confidences `[N,S,S,B]` and classes `[N,S,S,C]`."""
        cells = grid.permute(0, 2, 3, 1)
        boxes = cells[..., : 5 * self._boxes].unflatten(3, (self._boxes, 5))
        return boxes[..., :4], boxes[..., 4], cells[..., 5 * self._boxes :]

    def _corners(self, places: Tensor) -> Tensor:
        """Return boxes in pixels, `[N,S,S,B,4]`."""
        rows, columns = places.shape[1:3]
        height, width = self._size
        x = torch.arange(columns, dtype=places.dtype, device=places.device)[None, :, None]
        y = torch.arange(rows, dtype=places.dtype, device=places.device)[:, None, None]
        across, down = (places[..., 0] + x) * width / columns, (places[..., 1] + y) * height / rows
        half = places[..., 2:].square() / 2
        wide, high = half[..., 0] * width, half[..., 1] * height
        return torch.stack((across - wide, down - high, across + wide, down + high), 4)


def learned_objects(
    truth: Truth, size: tuple[int, int], cells: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures, cells and numbers of the objects that are learned, int64 `[K]` each.

    Args:
        truth: the objects.
        size: height and width of the network's input.
        cells: along its height and its width; they are counted row by row.
    """
    cell = _cell_of(truth, size, cells)
    objects = cell.shape[1]
    same = (cell[:, :, None] == cell[:, None]) & truth.is_object[:, None]
    earlier = torch.ones(objects, objects, dtype=torch.bool, device=cell.device).tril(-1)
    picture, object_ = (truth.is_object & ~(same & earlier).any(2)).nonzero(as_tuple=True)
    return picture, cell[picture, object_], object_


def _of_crowds(truth: Truth, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Return the cells with a crowd's centre, bool `[N,S,S]`."""
    crowds = torch.zeros(len(truth), cells[0] * cells[1], device=truth.boxes.device)
    crowds.scatter_add_(1, _cell_of(truth, size, cells), truth.is_crowd.float())
    found: Tensor = (crowds > 0).unflatten(1, cells)
    return found


def _cell_of(truth: Truth, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Return the cell of each centre, counted row by row, int64 `[N,M]`."""
    (height, width), (rows, columns) = size, cells
    x, y = ((truth.boxes[..., :2] + truth.boxes[..., 2:]) / 2).unbind(2)
    column = (x / width * columns).long().clamp(0, columns - 1)
    row = (y / height * rows).long().clamp(0, rows - 1)
    return row * columns + column
