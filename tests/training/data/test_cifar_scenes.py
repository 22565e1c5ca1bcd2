import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from app.images import rle
from tests.support.scene_folders import masks_of
from training.data.cifar_scenes import (
    MOST_COVERED,
    MOST_OBJECTS,
    SIDE,
    SIDES,
    make_scenes,
    scene_source,
)
from training.errors import DataError

CLASSES = ("plain", "noisy", "never")


def images(first: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Flat grey images of label 0 and noise of label 1, by turns."""
    random = np.random.default_rng(first)
    pixels = random.integers(0, 256, (20, 32, 32, 3), np.uint8)
    pixels[::2] = pixels[::2, :1, :1, :1]
    return pixels, np.arange(20) % 2


def decoded(counts: tuple[bytes, ...] | None) -> NDArray[np.bool_]:
    assert counts is not None
    return np.array([rle.decode(mask, SIDE, SIDE) for mask in counts])


def test_boxes_and_masks_are_exactly_those_of_what_is_seen() -> None:
    """Each image is of one colour, that no background has, so the pixels tell whose they are."""
    levels = np.arange(0, 250, 10).astype(np.uint8)
    pixels = np.zeros((25, 32, 32, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = 255, levels[:, None, None]
    for scene, objects in make_scenes(pixels, np.arange(25), 60, seed=1):
        masks = decoded(objects.masks)
        assert (masks.sum(0) <= 1).all()
        for mask, box, label in zip(masks, objects.boxes, objects.labels, strict=True):
            assert (scene[mask] == (255, 0, levels[label])).all()
            rows, columns = mask.nonzero()
            assert box.tolist() == [
                columns.min(),
                rows.min(),
                np.ptp(columns) + 1,
                np.ptp(rows) + 1,
            ]
        theirs = (scene[..., 0] == 255) & (scene[..., 1] == 0)
        assert np.array_equal(theirs, masks.any(0))


def test_a_scene_has_one_to_six_objects_of_some_sizes_and_shapes() -> None:
    scenes = make_scenes(*images(), 150, seed=0)
    numbers = [len(objects) for _, objects in scenes]
    assert {*numbers} == {*range(1, MOST_OBJECTS + 1)}
    alone = [objects for _, objects in scenes if len(objects) == 1]
    sides = np.concatenate([objects.boxes[:, 2:].max(1) for objects in alone])
    assert SIDES[0] <= sides.min()
    assert sides.max() <= SIDES[1]
    filled = np.concatenate(
        [decoded(one.masks).sum((1, 2)) / one.boxes[:, 2:].prod(1) for one in alone]
    )
    assert (filled == 1).any()
    assert ((filled > 0.74) & (filled < 0.83)).any()
    assert ((filled > 0.9) & (filled < 0.97)).any()
    for pixels, objects in scenes:
        assert pixels.shape == (SIDE, SIDE, 3)
        assert pixels.dtype == np.uint8
        assert objects.boxes.dtype == np.float32
        assert objects.labels.dtype == np.int64
        assert not objects.crowd.any()


def test_an_object_is_covered_by_at_most_its_part() -> None:
    seen = []
    for _, objects in make_scenes(*images(), 200, seed=3):
        areas = decoded(objects.masks).sum((1, 2))
        seen.extend(areas / objects.boxes[:, 2:].max(1) ** 2)
    # An ellipse has at least pi / 4 * 0.6 of its square; what is seen of it, this part of that.
    assert min(seen) >= np.pi / 4 * 0.59 * (1 - MOST_COVERED / 100)
    assert sum(part < 0.46 for part in seen) > 5


def test_objects_can_be_told_from_what_is_round_them() -> None:
    grey = np.full((4, 32, 32, 3), 128, np.uint8)
    differences = []
    for scene, objects in make_scenes(grey, np.zeros(4, np.int64), 100, seed=0):
        masks = decoded(objects.masks)
        for mask in masks:
            ring = binary_dilation(mask, iterations=3) & ~masks.any(0)
            if ring.any():
                differences.append(np.abs(scene[ring].mean(0) - 128).max())
    assert np.mean(np.array(differences) > 20) > 0.8


def test_backgrounds_are_not_flat() -> None:
    slopes = []
    for scene, objects in make_scenes(*images(), 40, seed=5):
        free = np.array(~decoded(objects.masks).any(0))
        assert scene[free].std(0).min() > 5
        halves = [scene[:, half][free[:, half]].mean(0) for half in (slice(0, 40), slice(88, None))]
        slopes.append(np.abs(halves[0] - halves[1]).max())
    assert np.median(slopes) > 25


def test_a_seed_makes_the_same_scenes_on_any_machine() -> None:
    first, again, other = (make_scenes(*images(), count, seed) for count, seed in _SEEDS)
    for (pixels, objects), (pixels_again, objects_again) in zip(first, again[:3], strict=True):
        assert np.array_equal(pixels, pixels_again)
        assert objects.masks == objects_again.masks
        assert objects.labels.tolist() == objects_again.labels.tolist()
    assert not np.array_equal(first[0][0], other[0][0])
    digest = hashlib.sha256(b"".join(pixels.tobytes() for pixels, _ in first)).hexdigest()
    assert digest == "112fc9219c4b2cda418b2896e50cedade976cde7c3e49807fb4a8194e8d93285"


_SEEDS = ((3, 7), (5, 7), (1, 8))


def test_images_without_labels_make_no_scenes() -> None:
    with pytest.raises(ValueError, match=r"^20 images and 19 labels; one or more pairs are needed"):
        make_scenes(images()[0], images()[1][1:], 1, 0)
    with pytest.raises(ValueError, match=r"^0 images and 0 labels"):
        make_scenes(images()[0][:0], images()[1][:0], 1, 0)


def test_scenes_of_a_set_are_decoded_to_the_pixels_that_were_made(tmp_path: Path) -> None:
    splits = {"train": images(0), "val": images(1), "test": images(2)}
    counts = {"train": 5, "val": 2, "test": 3}
    source = scene_source(tmp_path, CLASSES, splits, counts, seed=4)
    assert source.name == "cifar-scenes"
    assert source.tasks == ("detection", "segmentation")
    assert source.classes == CLASSES[:2]
    assert source.findings.pictures == counts
    assert source.findings.repeated == 0
    made = make_scenes(*splits["test"], 3, seed=4 * 3 + 2)
    for scene, (pixels, objects) in zip(source.test, made, strict=True):
        assert np.array_equal(scene.pixels(), pixels)
        assert np.array_equal(masks_of(scene), decoded(objects.masks))
        assert (scene.height, scene.width) == (SIDE, SIDE)
    assert [str(scene.file) for scene in source.val] == ["val/00000.png", "val/00001.png"]


def test_the_hash_of_a_set_is_of_pixels_and_objects(tmp_path: Path) -> None:
    counts = {"train": 2, "test": 2}

    def sha256(label: int = 0, seed: int = 0) -> str:
        pixels, labels = images()
        splits = {"train": (pixels, labels + label), "test": images(1)}
        return scene_source(tmp_path, CLASSES, splits, counts, seed).sha256

    assert sha256() == sha256()
    assert len({sha256(), sha256(seed=1), sha256(label=1)}) == 3


def test_a_set_without_test_scenes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture to test with"):
        scene_source(tmp_path, CLASSES, {"train": images()}, {"train": 2}, seed=0)
