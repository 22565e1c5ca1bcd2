import pytest
import torch
from torch import Tensor

from training.tasks.detection import Truth, best
from training.tasks.detection_v1 import Lesson

SIZE = (96, 192)
LESSON = Lesson(SIZE, boxes=2)
CELLS = (3, 3)  # of 32 rows and 64 columns


def empty_grid(pictures: int = 1, classes: int = 2) -> Tensor:
    return torch.zeros(pictures, 10 + classes, *CELLS)


def truth_of(*objects: tuple[list[float], int]) -> Truth:
    boxes, labels = zip(*objects, strict=True)
    return Truth(torch.tensor([boxes]), torch.tensor([labels]))


def test_box_is_read_from_its_cell_and_its_roots() -> None:
    grid = empty_grid()
    grid[0, 5:12, 1, 2] = torch.tensor([0.25, 0.5, 0.5, 0.5, 0.8, 0.1, 0.9])
    found = LESSON.candidates(grid)
    assert found.boxes.shape == (1, 18, 4)
    boxes, scores, labels = best(found)
    assert boxes[0, 0].tolist() == pytest.approx([144 - 24, 48 - 12, 144 + 24, 48 + 12])
    assert scores[0, 0].item() == pytest.approx(0.72, abs=1e-5)
    assert labels[0, 0] == 1
    assert scores[0, 1].item() == pytest.approx(0.08, abs=1e-5)
    assert scores[0, 2:].max() == 0


def test_right_answer_costs_nothing() -> None:
    grid = empty_grid()
    grid[0, :5, 1, 1] = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0])
    grid[0, 11, 1, 1] = 1.0
    truth = truth_of(([72.0, 36.0, 120.0, 60.0], 1))
    assert LESSON.losses(grid, truth, 0).tolist() == pytest.approx([0.0], abs=1e-6)


def test_errors_are_weighed_as_in_the_paper() -> None:
    grid = empty_grid()
    grid[0, :5, 1, 1] = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0])
    grid[0, 11, 1, 1] = 1.0
    truth = truth_of(([72.0, 36.0, 120.0, 60.0], 1))

    def loss_with(channel: int, row: int, column: int, added: float) -> float:
        moved = grid.clone()
        moved[0, channel, row, column] += added
        return LESSON.losses(moved, truth, 0).item()

    assert loss_with(4, 1, 1, 0.2) == pytest.approx(0.04, abs=1e-6)
    assert loss_with(10, 1, 1, 0.2) == pytest.approx(0.04, abs=1e-6)
    assert loss_with(9, 1, 1, 0.2) == pytest.approx(0.5 * 0.04, abs=1e-6)
    assert loss_with(4, 0, 0, 0.2) == pytest.approx(0.5 * 0.04, abs=1e-6)
    assert loss_with(10, 0, 0, 0.2) == pytest.approx(0, abs=1e-6)
    # A moved box overlaps less, and its confidence should be less as well: 40 of 56 columns.
    assert loss_with(0, 1, 1, 0.125) == pytest.approx(5 * 0.125**2 + (1 - 40 / 56) ** 2, abs=1e-5)


def test_box_that_overlaps_most_learns_the_object() -> None:
    grid = empty_grid()
    grid[0, :4, 1, 1] = torch.tensor([0.5, 0.5, 0.1, 0.1])
    grid[0, 5:9, 1, 1] = torch.tensor([0.5, 0.5, 0.4, 0.4])
    grid.requires_grad_()
    LESSON.losses(grid, truth_of(([72.0, 36.0, 120.0, 60.0], 1)), 0).sum().backward()
    assert grid.grad is not None
    assert grid.grad[0, :4].abs().max() == 0
    assert grid.grad[0, 7:9, 1, 1].abs().min() > 0


def test_cell_learns_one_object() -> None:
    first, second = ([72.0, 36.0, 120.0, 60.0], 1), ([80.0, 40.0, 110.0, 58.0], 0)
    grid = torch.randn(1, 12, *CELLS, generator=torch.Generator().manual_seed(0))
    both = LESSON.losses(grid, truth_of(first, second), 0)
    assert torch.equal(both, LESSON.losses(grid, truth_of(first), 0))
    assert not torch.equal(both, LESSON.losses(grid, truth_of(second), 0))


def test_crowd_and_padding_are_no_objects() -> None:
    grid = empty_grid()
    grid[0, 4] = 1.0
    box = [72.0, 36.0, 120.0, 60.0]
    assert LESSON.losses(grid, truth_of((box, -1)), 0).item() == pytest.approx(0.5 * 9)
    assert LESSON.losses(grid, truth_of((box, -2)), 0).item() == pytest.approx(0.5 * 8)


def test_picture_without_objects_is_learned_from() -> None:
    nothing = Truth(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64))
    assert LESSON.losses(empty_grid(2) + 1, nothing, 0).tolist() == [0.5 * 18] * 2
