import numpy as np
import pytest

from app.artifact.tensors import Images, Probabilities
from app.explore.saliency import class_activation_map, occlude, occlusion_map

SIZE = (32, 32)


def _sees_a_patch(images: Images, top: int, left: int) -> Probabilities:
    """The more red a patch of 4×4 pixels is, the likelier is class 1."""
    red = images[:, top : top + 4, left : left + 4, 0].astype(np.float32).mean(axis=(1, 2)) / 255
    logits = np.stack([np.zeros_like(red), 8 * red - 4], 1)
    exp = np.exp(logits)
    probabilities: Probabilities = (exp / exp.sum(1, keepdims=True)).astype(np.float32)
    return probabilities


@pytest.mark.parametrize(("top", "left"), [(0, 0), (28, 28), (13, 9), (4, 27)])
def test_occlusion_finds_the_one_patch_that_an_answer_depends_on(top: int, left: int) -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    image[top : top + 4, left : left + 4, 0] = 255

    covered = occlude(image)
    after = _sees_a_patch(covered, top, left)
    before = _sees_a_patch(image[np.newaxis], top, left)[0]
    heat = occlusion_map(SIZE, 1, before, after)

    inside = heat[top : top + 4, left : left + 4]
    assert heat.shape == SIZE
    assert inside.mean() == pytest.approx(heat.max(), rel=0.3)
    rows, columns = np.nonzero(heat > heat.max() / 2)
    assert abs(rows.mean() - (top + 1.5)) < 3
    assert abs(columns.mean() - (left + 1.5)) < 3
    assert heat[np.hypot(*(np.indices(SIZE) - np.array([[[top]], [[left]]]))) > 16].max() == 0
    against = occlusion_map(SIZE, 0, before, after)
    assert against[top + 1, left + 1] < 0


def test_every_pixel_is_covered_equally_often_and_nothing_else_changes() -> None:
    image = np.random.default_rng(0).integers(1, 256, (*SIZE, 3), np.uint8)
    image[:] = np.where(image == np.rint(image.mean((0, 1))).astype(np.uint8), image + 1, image)
    changed = (occlude(image) != image).any(axis=3)
    assert set(np.unique(changed.sum(axis=0))) == {4}
    assert changed.any(axis=(1, 2)).all()


def test_a_class_activation_map_is_the_weighted_sum_of_the_channels() -> None:
    features = np.zeros((3, 4, 4), np.float32)
    features[1, 0, 0] = 2
    features[2, 3, 3] = 1
    heat = class_activation_map(features, np.array([5, 1, -3], np.float32), SIZE)
    assert heat.shape == SIZE
    assert heat[0, 0] == pytest.approx(2)
    assert heat[-1, -1] == pytest.approx(-3)
    assert heat[0, -1] == pytest.approx(0, abs=1e-6)
