import numpy as np
import pytest

from app.artifact.tensors import Images, Probabilities
from app.explore.saliency import PERTURBATIONS, Heat, SaliencyMethod, class_activation_map

SIZE = (32, 32)


def _sees_a_patch(images: Images, top: int, left: int) -> Probabilities:
    """The more red a patch of 4×4 pixels is, the likelier is class 1."""
    red = images[:, top : top + 4, left : left + 4, 0].astype(np.float32).mean(axis=(1, 2)) / 255
    return _softmax(np.stack([np.zeros_like(red), 8 * red - 4], 1))


def _counts_red(images: Images) -> Probabilities:
    """The more red pixels there are, the likelier is class 1, wherever they are."""
    red = (images[..., 0] > 128).mean(axis=(1, 2))
    return _softmax(np.stack([np.zeros_like(red), 20 * red - 2], 1))


def _softmax(logits: np.ndarray) -> Probabilities:
    exp = np.exp(logits)
    probabilities: Probabilities = (exp / exp.sum(1, keepdims=True)).astype(np.float32)
    return probabilities


def _patch(top: int, left: int, side: int) -> np.ndarray:
    image = np.zeros((*SIZE, 3), np.uint8)
    image[top : top + side, left : left + side, 0] = 255
    return image


@pytest.mark.parametrize(("top", "left"), [(0, 0), (28, 28), (13, 9), (4, 27)])
def test_occlusion_finds_the_one_patch_that_an_answer_depends_on(top: int, left: int) -> None:
    image, occlusion = _patch(top, left, 4), PERTURBATIONS["occlusion"]

    after = _sees_a_patch(occlusion.copies(image), top, left)
    before = _sees_a_patch(image[np.newaxis], top, left)[0]
    heat = occlusion.heat(SIZE, 1, before, after)

    inside = heat[top : top + 4, left : left + 4]
    assert heat.shape == SIZE
    assert inside.mean() == pytest.approx(heat.max(), rel=0.3)
    rows, columns = np.nonzero(heat > heat.max() / 2)
    assert abs(rows.mean() - (top + 1.5)) < 3
    assert abs(columns.mean() - (left + 1.5)) < 3
    assert heat[np.hypot(*(np.indices(SIZE) - np.array([[[top]], [[left]]]))) > 16].max() == 0
    against = occlusion.heat(SIZE, 0, before, after)
    assert against[top + 1, left + 1] < 0


@pytest.mark.parametrize(("top", "left"), [(0, 0), (18, 18), (2, 17), (12, 10)])
def test_regions_find_what_suffices_for_a_class_and_what_it_needs(top: int, left: int) -> None:
    image, regions = _patch(top, left, 12), PERTURBATIONS["regions"]
    before = _counts_red(image[np.newaxis])[0]
    after = _counts_red(regions.copies(image))
    heat = regions.heat(SIZE, 1, before, after)
    rows, columns = np.nonzero(heat > np.quantile(heat, 0.9))
    assert abs(rows.mean() - (top + 5.5)) < 4
    assert abs(columns.mean() - (left + 5.5)) < 4
    against = regions.heat(SIZE, 0, before, after)
    assert heat[top + 6, left + 6] > 0 > against[top + 6, left + 6]


def _nothing_known(method: SaliencyMethod) -> Heat:
    perturbation = PERTURBATIONS[method]
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    answers = np.array([[0.1, 0.9]] * (1 + len(perturbation.copies(image))), np.float32)
    return perturbation.heat(SIZE, 1, answers[0], answers[1:])


@pytest.mark.parametrize("method", PERTURBATIONS)
def test_an_answer_that_never_changes_has_no_evidence(
    method: SaliencyMethod,
) -> None:
    np.testing.assert_allclose(_nothing_known(method), 0, atol=1e-6)


@pytest.mark.parametrize(("method", "count"), [("regions", 25), ("occlusion", 81)])
def test_a_map_is_finer_than_its_squares(method: SaliencyMethod, count: int) -> None:
    perturbation = PERTURBATIONS[method]
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    assert perturbation.copies(image).shape == (count, *SIZE, 3)
    answers = np.random.default_rng(1).dirichlet((1, 1), count + 1).astype(np.float32)
    heat = perturbation.heat(SIZE, 1, answers[0], answers[1:])
    for axis in (0, 1):
        assert (np.diff(heat, axis=axis) != 0).mean() > 0.75


@pytest.mark.parametrize(
    ("method", "first", "times"), [("occlusion", 0, {4}), ("regions", 9, {1, 2, 4})]
)
def test_every_pixel_is_covered_and_nothing_else_changes(
    method: SaliencyMethod, first: int, times: set[int]
) -> None:
    image = np.random.default_rng(0).integers(1, 256, (*SIZE, 3), np.uint8)
    image[:] = np.where(image == np.rint(image.mean((0, 1))).astype(np.uint8), image + 1, image)
    changed = (PERTURBATIONS[method].copies(image)[first:] != image).any(axis=3)
    assert set(np.unique(changed.sum(axis=0))) == times
    assert changed.any(axis=(1, 2)).all()


def test_the_regions_are_enlarged_parts_of_the_image() -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    image[:20, :20] = 255
    first, *others = PERTURBATIONS["regions"].copies(image)[:9]
    assert (first == 255).all()
    assert len(others) == 8
    assert all(copy.mean() < 255 for copy in others)


def test_a_class_activation_map_is_the_weighted_sum_of_the_channels() -> None:
    features = np.zeros((3, 4, 4), np.float32)
    features[1, 0, 0] = 2
    features[2, 3, 3] = 1
    heat = class_activation_map(features, np.array([5, 1, -3], np.float32), SIZE)
    assert heat.shape == SIZE
    assert heat[0, 0] == pytest.approx(2)
    assert heat[-1, -1] == pytest.approx(-3)
    assert heat[0, -1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [(28, 28), (17, 40), (96, 96)])
@pytest.mark.parametrize(("method", "copies"), [("regions", 25), ("occlusion", 81)])
def test_an_image_of_any_size_takes_as_many_copies_and_has_heat_everywhere(
    method: SaliencyMethod, copies: int, size: tuple[int, int]
) -> None:
    perturbation = PERTURBATIONS[method]
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    made = perturbation.copies(image)
    assert made.shape == (copies, *size, 3)
    assert made.dtype == np.uint8
    before = np.array([0.1, 0.9], np.float32)
    after = np.tile(np.array([0.2, 0.8], np.float32), (copies, 1))
    heat = perturbation.heat(size, 1, before, after)
    assert heat.shape == size
    assert np.isfinite(heat).all()
    covered = [(copy != image).any(-1) for copy in made[-25 if method == "regions" else 0 :]]
    assert np.any(covered, axis=0).all()
