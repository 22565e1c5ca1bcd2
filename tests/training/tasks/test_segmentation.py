import numpy as np
import pytest
import torch

from training.tasks.segmentation import IGNORED, depth_of, losses


def test_depth_grows_from_the_border_to_the_middle() -> None:
    objects = np.zeros((20, 30), np.int64)
    objects[5:14, 4:13] = 1
    depth = depth_of(objects)
    assert (depth[objects == 0] == 0).all()
    assert depth[9, 8] == 1
    assert depth[9, 4:9].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_objects_that_touch_have_a_border_between_them() -> None:
    objects = np.zeros((11, 22), np.int64)
    objects[:, :11], objects[:, 11:] = 1, 2
    depth = depth_of(objects)
    assert depth[5, 10] < 0.3
    assert depth[5, 11] < 0.3
    assert (depth.max(0).reshape(2, 11).max(1) == 1).all()


def test_small_object_is_as_deep_as_a_large_one() -> None:
    objects = np.zeros((40, 40), np.int64)
    objects[2:30, 2:30], objects[35, 35] = 1, 2
    depth = depth_of(objects)
    assert depth[objects == 1].max() == 1
    assert depth[35, 35] == 1


def test_picture_without_objects_has_no_depth() -> None:
    assert (depth_of(np.zeros((4, 5), np.int64)) == 0).all()


def test_right_answers_cost_nothing_but_the_depths_own_entropy() -> None:
    classes = torch.zeros(2, 16, 16, dtype=torch.long)
    classes[:, 4:12, 4:12] = 1
    logits = torch.where(classes[:, None] == torch.arange(2)[:, None, None], 20.0, -20.0)
    assert losses(logits, classes, None).max() < 0.01
    depth = classes.float()
    with_depth = torch.cat((logits, 40 * depth[:, None] - 20), 1)
    assert losses(with_depth, classes, depth).max() < 0.01
    assert losses(-with_depth, classes, depth).min() > 10


def test_ignored_pixels_are_not_learned_from() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 8, 8, requires_grad=True)
    classes = torch.randint(0, 3, (1, 8, 8))
    classes[:, 2:6, 2:6] = IGNORED
    losses(logits, classes, torch.rand(1, 8, 8)).sum().backward()
    assert logits.grad is not None
    unknown = (classes == IGNORED)[:, None].expand_as(logits)
    assert (logits.grad[unknown] == 0).all()
    assert (logits.grad[~unknown] != 0).any()


def test_picture_of_ignored_pixels_alone_has_no_loss_of_its_own() -> None:
    classes = torch.full((1, 8, 8), IGNORED)
    assert losses(torch.randn(1, 3, 8, 8), classes, None).isfinite().all()


def test_object_whose_border_is_out_of_sight_is_deep_everywhere() -> None:
    assert (depth_of(np.ones((8, 8), np.int64)) == 1).all()
