"""Masks as run-length encoding: the counts of COCO, in its text and as a list of numbers.

The runs go down the columns, left to right, and begin with pixels that are not set. The compressed
form writes each count, from the fourth on less the one two before, as groups of five bits, lowest
first; a sixth bit says that more follow, and 48 makes a letter of it. Source: `maskApi.c` of
github.com/cocodataset/cocoapi, `rleToString` and `rleFrString`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.images.limits import megapixels

MAX_PIXELS = 100_000_000
"""The most pixels of a mask."""

Mask = NDArray[np.bool_]
"""The pixels of one object, bool `[H,W]`."""

_BITS, _MORE, _SIGN, _ZERO = 5, 0x20, 0x10, 48
_MOST_DIGITS = 7
"""35 bits hold every count of `MAX_PIXELS` with its sign."""


def encode(mask: Mask) -> bytes:
    """Return a mask's compressed counts, as COCO's tools write them.

    Args:
        mask: bool `[H,W]`.

    Raises:
        ValueError: the mask has no pixels, more than `MAX_PIXELS`, or other values or dimensions.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"a mask is bool [H,W], not {mask.dtype} {list(mask.shape)}")
    _check_size(*mask.shape)
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    begin = [0, 0] if pixels[0] else [0]
    return _written(np.diff(np.concatenate((begin, changes, [pixels.size]))))


class Region(NamedTuple):
    """The pixels of a picture that have one value.

    Attributes:
        counts: their mask, compressed.
        area: their number.
        box: the smallest that holds them: x, y, width, height.
    """

    counts: bytes
    area: int
    box: tuple[int, int, int, int]


def encode_each(labels: NDArray[np.integer[Any]]) -> dict[int, Region]:
    """Return the region of each value of a picture, ascending, in one pass over all runs.

    Args:
        labels: whole numbers `[H,W]`.

    Raises:
        ValueError: the picture has no pixels, more than `MAX_PIXELS`, or other dimensions.
    """
    if labels.ndim != 2:
        raise ValueError(f"labels are [H,W], not {list(labels.shape)}")
    _check_size(*labels.shape)
    pixels, height = labels.ravel(order="F"), labels.shape[0]
    starts = np.concatenate(([0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1))
    ends = np.append(starts[1:], pixels.size)
    order = np.argsort(pixels[starts], kind="stable")
    starts, ends = starts[order], ends[order]
    values = pixels[starts]
    first = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    last = np.append(first[1:], len(values)) - 1
    texts = _written_each(starts, ends, first, last, pixels.size)
    areas = np.add.reduceat(ends - starts, first)
    left, right = starts[first] // height, (ends[last] - 1) // height
    goes_on = np.logical_or.reduceat(starts // height != (ends - 1) // height, first)
    top = np.where(goes_on, 0, np.minimum.reduceat(starts % height, first))
    bottom = np.where(goes_on, height - 1, np.maximum.reduceat((ends - 1) % height, first))
    boxes = np.stack((left, top, right - left + 1, bottom - top + 1), 1).tolist()
    return {
        value: Region(text, area, (x, y, across, down))
        for value, text, area, (x, y, across, down) in zip(
            values[first].tolist(), texts, areas.tolist(), boxes, strict=True
        )
    }


def _written_each(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    size: int,
) -> list[bytes]:
    """Return the compressed counts of masks.

    Args:
        starts: of the runs of all masks, one mask after the other.
        ends: likewise.
        first: the place of each mask's first run.
        last: and of its last one.
        size: pixels of the picture.
    """
    before = np.append(0, ends[:-1])
    before[first] = 0
    runs = np.stack((starts - before, ends - starts), 1).ravel()
    rest = size - ends[last]  # after a mask's last pixel; none is written if there is none
    places = 2 * (last + 1)
    runs = np.insert(runs, places[rest > 0], rest[rest > 0])
    begins = 2 * first + np.append(0, np.cumsum(rest > 0)[:-1])
    lengths = np.diff(np.append(begins, len(runs)))
    within = np.arange(len(runs)) - np.repeat(begins, lengths)
    text, digits = _digits(_without_the_one_before(runs, within))
    cuts = np.cumsum(np.add.reduceat(digits, begins)).tolist()
    return [text[start:end] for start, end in zip([0, *cuts[:-1]], cuts, strict=True)]


def area(counts: bytes, height: int, width: int) -> int:
    """Return the number of a mask's pixels.

    Raises:
        ValueError: as `decode` does.
    """
    return int(_runs(counts, height, width)[1::2].sum())


def bounds(counts: bytes, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Return the smallest box that holds a mask: x, y, width, height; None if it is empty.

    Raises:
        ValueError: as `decode` does.
    """
    ends = np.cumsum(_runs(counts, height, width))
    firsts, afters = ends[:-1:2], ends[1::2]
    firsts, lasts = firsts[afters > firsts], afters[afters > firsts] - 1
    if not firsts.size:
        return None
    left, right = int(firsts[0]) // height, int(lasts[-1]) // height
    if np.any(firsts // height != lasts // height):  # one goes on in the next column
        return left, 0, right - left + 1, height
    top, bottom = int((firsts % height).min()), int((lasts % height).max())
    return left, top, right - left + 1, bottom - top + 1


def decode(counts: bytes | str | Sequence[int], height: int, width: int) -> Mask:
    """Return the mask of compressed counts, or of counts as numbers.

    Args:
        counts: COCO's text, or the lengths of the runs.
        height: of the mask in pixels.
        width: of the mask in pixels.

    Returns:
        bool `[height,width]`.

    Raises:
        ValueError: the size is not positive or above `MAX_PIXELS`; the text is cut or has other
            letters; a run is negative or no whole number; the runs are not as long as the mask.
    """
    runs = _runs(counts, height, width)
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def _runs(counts: bytes | str | Sequence[int], height: int, width: int) -> NDArray[np.int64]:
    """Return the lengths of runs that fill a mask of this size."""
    _check_size(height, width)
    runs = _read(counts) if isinstance(counts, bytes | str) else _numbers(counts)
    if runs.size and (least := int(runs.min())) < 0:
        raise ValueError(f"a run of {least} pixels; none is shorter than 0")
    # Each is at most the limit before they are added, so that the sum cannot overflow.
    total = int(runs.sum()) if not runs.size or runs.max() <= height * width else int(runs.max())
    if total != height * width:
        raise ValueError(f"the runs make {total} pixels; {width}x{height} are {height * width}")
    return runs


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"a mask of {width}x{height} pixels; at least 1x1 is needed")
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"a mask of {width}x{height} pixels; the limit is {megapixels(MAX_PIXELS)}"
        )


def _written(runs: NDArray[np.int64]) -> bytes:
    return _digits(_without_the_one_before(runs, np.arange(len(runs))))[0]


def _without_the_one_before(
    runs: NDArray[np.int64], within: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return runs, from a mask's fourth on less the one two before.

    Args:
        runs: of one mask or several.
        within: the place of each within its mask.
    """
    rest = runs.copy()
    later = np.flatnonzero(within > 2)
    rest[later] -= runs[later - 2]
    return rest


def _digits(numbers: NDArray[np.int64]) -> tuple[bytes, NDArray[np.int64]]:
    """Return the letters of numbers, and how many each has."""
    rest, digits, used = numbers, [], []
    active = np.ones(len(numbers), np.bool_)
    while active.any():
        digit = rest & (_MORE - 1)
        rest = rest >> _BITS
        more = np.where(digit & _SIGN, rest != -1, rest != 0)
        digits.append(digit + _MORE * more + _ZERO)
        used.append(active)
        active = active & more
    table = np.stack(used, 1)
    return np.stack(digits, 1)[table].astype(np.uint8).tobytes(), table.sum(1)


def _read(text: bytes | str) -> NDArray[np.int64]:
    try:
        letters = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError as exc:
        raise ValueError(f"counts hold {text[exc.start]!r}; they are ASCII letters") from exc
    digits = np.frombuffer(letters, np.uint8).astype(np.int64) - _ZERO
    strange = (digits < 0) | (digits >= 2 * _MORE)
    if strange.any():
        place = int(strange.argmax())
        raise ValueError(f"counts hold {letters[place : place + 1]!r} at {place}; '0' to 'o' are")
    if not digits.size:
        return digits
    ends = np.flatnonzero(digits < _MORE)
    if not ends.size or ends[-1] != digits.size - 1:
        raise ValueError("counts are cut: the last number is not complete")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if (most := int(lengths.max())) > _MOST_DIGITS:
        raise ValueError(f"counts hold a number of {most} letters; the limit is {_MOST_DIGITS}")
    shifts = _BITS * (np.arange(digits.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((digits & (_MORE - 1)) << shifts, starts)
    numbers -= ((digits[ends] & _SIGN) != 0) * (np.int64(1) << (_BITS * lengths))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _numbers(counts: Sequence[int]) -> NDArray[np.int64]:
    strange = [one for one in counts if not isinstance(one, int) or isinstance(one, bool)]
    if strange:
        raise ValueError(f"a run of {strange[0]!r:.40} pixels; whole numbers are needed")
    if any(abs(count) > MAX_PIXELS for count in counts):
        raise ValueError(f"a run is longer than {megapixels(MAX_PIXELS)}")
    return np.array(counts, np.int64)
