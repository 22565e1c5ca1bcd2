import pytest
import torch
from torch import Tensor

from training.tasks import detection
from training.tasks.detection import CellCandidates, Truth, assign, candidates, complete_iou, losses
from training.vision import import_torchvision

BINS = 12


def map_of(height: int, width: int, classes: int) -> Tensor:
    return torch.zeros(1, 4 * BINS + classes, height, width)


def truth(*objects: tuple[float, float, float, float, int]) -> Truth:
    table = torch.tensor(objects).reshape(-1, 5)
    return Truth(table[None, :, :4], table[None, :, 4].long())


def certain(boxes: Tensor, labels: Tensor, stride: int = 8) -> CellCandidates:
    """Cells of which each is sure of one box and class, in a picture of 64×64."""
    grid = map_of(64 // stride, 64 // stride, 2)
    found = candidates([grid], [stride], BINS)
    logits = torch.full_like(found.logits, -12.0)
    logits[0, torch.arange(len(labels)), labels] = 12.0
    lengths = torch.cat((found.centres - boxes[:, :2], boxes[:, 2:] - found.centres), 1) / stride
    bins = torch.arange(BINS)
    distances = -60 * (bins - lengths[..., None]).abs()[None]
    return CellCandidates(boxes[None], logits, distances, found.centres, found.strides)


def test_cells_say_how_far_the_sides_are() -> None:
    grid = map_of(4, 6, 1)
    for side, cells in enumerate((1, 2, 3, 4)):
        grid[0, side * BINS + cells, 2, 5] = 100.0
    found = candidates([grid], [16], BINS)
    centre = 5.5 * 16, 2.5 * 16
    assert found.centres[2 * 6 + 5].tolist() == list(centre)
    expected = [centre[0] - 16, centre[1] - 32, centre[0] + 48, centre[1] + 64]
    assert found.boxes[0, 2 * 6 + 5].tolist() == pytest.approx(expected, abs=1e-3)


def test_maps_follow_each_other() -> None:
    found = candidates([map_of(4, 6, 2), map_of(2, 3, 2)], [8, 16], BINS)
    assert found.boxes.shape == (1, 30, 4)
    assert found.logits.shape == (1, 30, 2)
    assert found.strides.tolist() == 24 * [8] + 6 * [16]


def test_object_is_learned_by_cells_in_it() -> None:
    found = candidates([map_of(8, 8, 2)], [8], BINS)
    targets, boxes, place = assign(found, truth((8, 8, 40, 40, 1)))
    inside = ((found.centres > 8) & (found.centres < 40)).all(1)
    assert 1 <= place.sum() <= detection.MOST_CELLS
    assert (place[0] <= inside).all()
    assert (boxes[place] == torch.tensor([8.0, 8, 40, 40])).all()
    assert (targets[..., 0] == 0).all()
    assert ((targets[..., 1] > 0) == place).all()


def test_cell_that_two_objects_choose_learns_the_one_that_it_covers_more() -> None:
    objects = truth((0, 0, 64, 64, 0), (24, 24, 40, 40, 1))
    centre_boxes = certain(torch.tensor([[24.0, 24, 40, 40]]).repeat(64, 1), torch.ones(64).long())
    targets, _, place = assign(centre_boxes, objects)
    middle = ((centre_boxes.centres > 24) & (centre_boxes.centres < 40)).all(1)
    assert place[0][middle].all()
    assert (targets[0][middle, 1] > 0).all()
    assert (targets[0][middle, 0] == 0).all()


def test_right_answers_cost_nothing() -> None:
    """A box whose sides are whole cells away: other distances lie between two numbers."""
    box = torch.tensor([[12.0, 20, 44, 60]])
    found = certain(box.repeat(64, 1), torch.zeros(64).long())
    inside = ((found.centres > box[0, :2]) & (found.centres < box[0, 2:])).all(1)
    found.logits[0, ~inside] = -12.0
    _, _, place = assign(found, truth((12, 20, 44, 60, 0)))
    found.logits[0, ~place[0]] = -12.0
    assert losses(found, truth((12, 20, 44, 60, 0))).item() < 0.01
    found.logits[0, place[0]] = -12.0
    assert losses(found, truth((12, 20, 44, 60, 0))).item() > 1


def test_picture_without_objects_is_learned_as_background() -> None:
    found = candidates([map_of(8, 8, 2)], [8], BINS)
    empty = Truth(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.long))
    assert losses(found, empty).item() > 1
    found.logits.fill_(-12.0)
    assert losses(found, empty).item() < 0.01
    padded = Truth(torch.zeros(1, 3, 4), torch.full((1, 3), -1))
    assert losses(found, padded).item() < 0.01


def test_crowd_is_neither_object_nor_background() -> None:
    found = candidates([map_of(8, 8, 2)], [8], BINS)
    outside = ~((found.centres > 8) & (found.centres < 56)).all(1)
    found.logits[0, outside] = -12.0
    assert losses(found, truth((8, 8, 56, 56, -2))).item() < 0.01
    assert losses(found, truth((8, 8, 24, 24, -2))).item() > 1


def test_losses_are_each_pictures_own() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(3, 4 * BINS + 2, 8, 8), torch.randn(3, 4 * BINS + 2, 4, 4)]
    boxes = torch.tensor([[8.0, 8, 40, 40], [20, 8, 60, 30], [30, 30, 60, 60]])[:, None]
    labels = torch.tensor([[0], [1], [-1]])
    together = losses(candidates(maps, [8, 16], BINS), Truth(boxes, labels))
    first = [each[:1] for each in maps]
    second = [each[1:2] for each in maps]
    alone = [
        losses(candidates(each, [8, 16], BINS), Truth(boxes[at : at + 1], labels[at : at + 1]))
        for at, each in enumerate((first, second))
    ]
    # Divided by the mean of all targets, so only their ratio to each other's targets changes.
    assert together.shape == (3,)
    assert together[0] / alone[0] == pytest.approx(together[0].item() / alone[0].item())
    assert (together > 0).all()


def test_complete_iou_is_torchvisions() -> None:
    import_torchvision()
    from torchvision.ops import complete_box_iou

    torch.manual_seed(0)
    corners = torch.rand(50, 2, 2, 2) * 100
    boxes = torch.cat((corners.amin(2), corners.amin(2) + 1 + corners.amax(2)), 2)
    expected = complete_box_iou(boxes[:, 0], boxes[:, 1]).diagonal()
    assert complete_iou(boxes[:, 0], boxes[:, 1]).tolist() == pytest.approx(
        expected.tolist(), abs=1e-4
    )
