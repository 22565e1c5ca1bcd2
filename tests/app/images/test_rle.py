from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.images import rle


def _masks() -> list[NDArray[np.bool_]]:
    random = np.random.default_rng(0)
    noise = [random.random((height, width)) < part for height, width, part in _NOISE]
    blob = np.zeros((300, 400), np.bool_)
    blob[100:200, 50:350] = True
    return [*noise, blob, ~blob, np.zeros((3, 4), np.bool_), np.ones((3, 4), np.bool_)]


_NOISE = [(1, 1, 0.5), (7, 5, 0.5), (64, 48, 0.01), (480, 640, 0.3), (1, 90, 0.9), (90, 1, 0.1)]


@pytest.mark.parametrize("index", range(len(_NOISE) + 4))
def test_a_mask_is_read_as_it_was_written(index: int) -> None:
    mask = _masks()[index]
    read = rle.decode(rle.encode(mask), *mask.shape)
    assert read.dtype == np.bool_
    assert np.array_equal(read, mask)


def test_counts_are_those_of_the_tools_of_coco() -> None:
    reference = pytest.importorskip("faster_coco_eval.core.mask", reason="only training needs it")
    for mask in _masks():
        theirs = reference.encode(np.asfortranarray(mask, np.uint8))
        counts = theirs["counts"]
        assert rle.encode(mask) == (counts.encode() if isinstance(counts, str) else counts)
        assert np.array_equal(reference.decode(theirs), rle.decode(counts, *mask.shape))


def test_runs_go_down_the_columns_and_begin_with_pixels_not_set() -> None:
    expected = [[False, True, True], [False, True, False]]
    assert rle.decode([2, 3, 1], 2, 3).tolist() == expected
    assert rle.decode(b"231", 2, 3).tolist() == expected
    assert rle.decode("231", 2, 3).tolist() == expected
    assert rle.encode(np.array(expected)) == b"231"
    assert rle.encode(np.ones((2, 3), np.bool_)) == b"06"


def test_a_run_without_pixels_is_read() -> None:
    assert rle.decode([0, 1, 0, 1, 2, 0], 2, 2).tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_the_masks_of_all_values_are_those_of_each(dtype: type[np.integer[Any]]) -> None:
    random = np.random.default_rng(0)
    for labels in (random.integers(0, 5, (9, 7)), np.repeat(random.integers(0, 250, 30), 8)):
        picture = np.atleast_2d(labels).astype(dtype)
        found = rle.encode_each(picture)
        assert list(found) == sorted(set(picture.ravel().tolist()))
        for value, region in found.items():
            mask = picture == value
            assert region.counts == rle.encode(mask)
            assert region.area == mask.sum()
            assert region.box == rle.bounds(region.counts, *picture.shape)


def test_the_masks_of_a_picture_of_one_value_and_of_one_pixel_are_whole() -> None:
    for shape in ((1, 1), (3, 5)):
        assert rle.encode_each(np.full(shape, 7)) == {
            7: (rle.encode(np.ones(shape, np.bool_)), shape[0] * shape[1], (0, 0, *shape[::-1]))
        }


def test_the_bounds_of_a_mask_hold_it_alone() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        height, width = random.integers(1, 9, 2).tolist()
        mask = random.random((height, width)) < random.choice((0.0, 0.1, 0.3, 1.0))
        rows, columns = mask.nonzero()
        expected = None
        if rows.size:
            left, top = columns.min(), rows.min()
            expected = (left, top, columns.max() - left + 1, rows.max() - top + 1)
        assert rle.bounds(rle.encode(mask), height, width) == expected


def test_a_run_without_pixels_has_no_bounds() -> None:
    assert rle.bounds(b"204", 2, 3) is None
    assert rle.bounds(b"20111", 2, 3) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([2, -1, 5], "a run of -1 pixels; none is shorter than 0"),
        ([2, 3], "the runs make 5 pixels; 3x2 are 6"),
        ([2, 3, 2], "the runs make 7 pixels; 3x2 are 6"),
        ([], "the runs make 0 pixels; 3x2 are 6"),
        ([2, 1.5, 2.5], "a run of 1.5 pixels; whole numbers are needed"),
        ([True] * 6, "a run of True pixels; whole numbers are needed"),
        ([10**30], "a run is longer than 100 megapixels"),
        (b"", "the runs make 0 pixels; 3x2 are 6"),
        (b"2 31", "counts hold b' ' at 1; '0' to 'o' are"),
        (b"23p", "counts hold b'p' at 2; '0' to 'o' are"),
        ("23é", "counts hold 'é'; they are ASCII letters"),
        (b"23P", "counts are cut: the last number is not complete"),
        (b"2" + b"P" * 8 + b"1", "counts hold a number of 9 letters; the limit is 7"),
        (b"23M", "a run of -3 pixels; none is shorter than 0"),
        (b"oooooo?" * 40, "the runs make"),
    ],
)
def test_counts_that_are_no_mask_are_refused(counts: bytes | str | list[int], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        rle.decode(counts, 2, 3)


@pytest.mark.parametrize(
    ("height", "width", "said"),
    [
        (0, 3, "a mask of 3x0 pixels; at least 1x1 is needed"),
        (2, -3, "a mask of -3x2 pixels; at least 1x1 is needed"),
        (100_000, 100_000, "a mask of 100000x100000 pixels; the limit is 100 megapixels"),
    ],
)
def test_sizes_beyond_reason_are_refused(height: int, width: int, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        rle.decode([height * width], height, width)


def test_only_masks_are_written() -> None:
    with pytest.raises(ValueError, match=r"^a mask is bool \[H,W\], not uint8 \[2, 3\]$"):
        rle.encode(np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"^a mask of 3x0 pixels; at least 1x1 is needed$"):
        rle.encode(np.zeros((0, 3), np.bool_))
    with pytest.raises(ValueError, match=r"^labels are \[H,W\], not \[6\]$"):
        rle.encode_each(np.zeros(6, np.uint8))
    with pytest.raises(ValueError, match=r"^a mask of 0x3 pixels; at least 1x1 is needed$"):
        rle.encode_each(np.zeros((3, 0), np.uint8))
