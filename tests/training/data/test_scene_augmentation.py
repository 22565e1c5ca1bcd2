"""Boxes and masks move with the picture: each is compared with one moved in another way."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.data.scene_augmentation import (
    Move,
    SceneAugmentation,
    Window,
    draw_moves,
    move_boxes,
    paste,
    recolour,
)

SHAPE = (60, 84)
VARIED = SceneAugmentation(mirror=True, turn=True, scale=(0.6, 1.6), mosaic=0.5)


def discs(count: int = 5) -> NDArray[np.int32]:
    """A map of discs that do not touch, each with a number of its own, int32 `[60,84]`."""
    generator = np.random.default_rng(3)
    rows, columns = np.mgrid[:60, :84]
    objects = np.zeros(SHAPE, np.int32)
    for number in range(1, count + 1):
        centre = generator.uniform((10, 8 + 16 * (number - 1)), (50, 8 + 16 * (number - 1) + 1))
        near = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < generator.uniform(4, 7) ** 2
        objects[near] = number
    return objects


def boxes_of(objects: Tensor) -> dict[int, list[int]]:
    """The boxes of the objects of a map by their numbers: left, upper, right, lower."""
    found = {}
    for number in objects.unique().tolist():
        rows, columns = (objects == number).nonzero(as_tuple=True)
        edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        found[number] = [int(edge) for edge in edges]
    found.pop(0, None)
    return found


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_picture_moves_as_pillow_moves_it(mirrored: bool, turns: int, scale: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
    expected = Image.fromarray(pixels)
    if mirrored:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = expected.rotate(90 * turns, expand=True)
    size = round(expected.height * scale), round(expected.width * scale)
    expected = expected.resize(size[::-1], Image.Resampling.BILINEAR)
    move = Move(mirrored, turns, size, 0, 0)
    found = move.image(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0)
    assert np.abs(found.numpy().astype(int) - np.asarray(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("seed", range(40))
def test_boxes_are_those_of_the_moved_masks(seed: int) -> None:
    objects = torch.from_numpy(discs())
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.zeros(SHAPE, dtype=torch.int32)
    numbers = torch.arange(1, 6)
    before = torch.tensor([boxes_of(objects)[int(number)] for number in numbers]).float()
    seen: dict[int, list[float]] = {}
    for part, (move, window) in enumerate(draw_moves(VARIED, SHAPE, generator)):
        moved = move.map(objects)
        paste(canvas, torch.where(moved > 0, moved + 10 * part, 0), move, window)
        boxes, labels = move_boxes(before, numbers, move, window, SHAPE)
        seen |= {
            int(label) + 10 * part: box for label, box in zip(labels, boxes.tolist(), strict=True)
        }
    drawn = boxes_of(canvas)
    assert seen.keys() <= drawn.keys()
    for number, box in seen.items():
        assert box == pytest.approx(drawn[number], abs=1.5)
    for number in drawn.keys() - seen.keys():  # only a small part is left of these
        left, upper, right, lower = drawn[number]
        largest = (before[number % 10 - 1, 2:] - before[number % 10 - 1, :2]).max() * 1.6
        assert (right - left) * (lower - upper) < 0.5 * largest**2


@pytest.mark.parametrize("seed", range(20))
def test_picture_and_map_are_cut_alike(seed: int) -> None:
    objects = torch.from_numpy(discs())
    image = torch.stack([objects.to(torch.uint8) * 40] * 3)
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.zeros(SHAPE, dtype=torch.int32)
    picture = torch.zeros(3, *SHAPE, dtype=torch.uint8)
    for move, window in draw_moves(VARIED, SHAPE, generator):
        paste(canvas, move.map(objects), move, window)
        paste(picture, move.image(image), move, window)
    inner = torch.nn.functional.max_pool2d((canvas == 0).float()[None], 5, 1, 2)[0] == 0
    assert (picture[0].int()[inner] - 40 * canvas[inner]).abs().max() <= 1


@pytest.mark.parametrize("seed", range(20))
def test_parts_of_a_mosaic_do_not_overlap(seed: int) -> None:
    moves = draw_moves(
        SceneAugmentation(mosaic=1.0, scale=(0.5, 2.0)), SHAPE, torch.Generator().manual_seed(seed)
    )
    covered = torch.zeros(SHAPE)
    for _, window in moves:
        covered[window.upper : window.lower, window.left : window.right] += 1
    assert len(moves) == 4
    assert covered.max() == 1


def test_nothing_changes_by_default() -> None:
    ((move, window),) = draw_moves(SceneAugmentation(), SHAPE, torch.Generator().manual_seed(0))
    assert move == Move(mirrored=False, turns=0, size=SHAPE, upper=0, left=0)
    assert window == Window(0, 60, 0, 84)
    image = torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8)
    assert torch.equal(recolour(image, 0.0, torch.Generator()), image)


def test_object_of_which_little_is_left_is_not_learned() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 30], [70, 10, 90, 30], [76, 10, 96, 30]])
    move = Move(mirrored=False, turns=0, size=SHAPE, upper=0, left=0)
    kept, labels = move_boxes(boxes, torch.tensor([0, 1, 2]), move, Window(0, 60, 0, 80), SHAPE)
    assert labels.tolist() == [0, 1]
    assert kept.tolist() == [[10, 10, 30, 30], [70, 10, 80, 30]]


def test_crowd_stays_however_little_is_left_of_it() -> None:
    move = Move(mirrored=False, turns=0, size=SHAPE, upper=0, left=0)
    boxes, crowd = torch.tensor([[70.0, 10, 200, 30]]), torch.tensor([-2])
    kept, labels = move_boxes(boxes, crowd, move, Window(0, 60, 0, 80), SHAPE)
    assert labels.tolist() == [-2]
    assert kept.tolist() == [[70, 10, 80, 30]]


def test_colours_change_by_at_most_the_part() -> None:
    image = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    values = {
        int(recolour(image, 0.2, torch.Generator().manual_seed(seed))[0, 0, 0])
        for seed in range(50)
    }
    assert min(values) >= 80
    assert max(values) <= 120
    assert len(values) > 10
