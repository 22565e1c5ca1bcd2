"""A picture in a model's input, and what is found there back in the picture's pixels."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.images.decode import decode, decode_placed
from app.images.placement import Placement, Policy, Resize, place
from tests.support.pictures import as_file, as_png, stored, turned

LIMIT = 10_000_000
POLICIES: tuple[Policy, ...] = ("crop", "letterbox", "stretch")


def white_square(height: int, width: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A black picture with a white rectangle: left, upper, right, lower."""
    left, upper, right, lower = box
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[upper:lower, left:right] = 255
    return pixels


def found_square(seen: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The rectangle of light pixels, `[1,4]`."""
    rows, columns = np.nonzero(seen[..., 0] > 190)
    edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return np.array([edges], np.float32)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [(240, 320), (320, 240), (96, 400), (240, 321)])
@pytest.mark.parametrize("target", [(64, 64), (48, 96)])
def test_box_is_found_where_it_was(
    policy: Policy, size: tuple[int, int], target: tuple[int, int]
) -> None:
    middle = size[1] // 2, size[0] // 2
    box = middle[0] - 25, middle[1] - 20, middle[0] + 15, middle[1] + 30
    content = as_png(white_square(*size, box))
    seen, placement = decode_placed(content, target, LIMIT, resize=Resize(policy=policy))
    pixel = max(size[0] / target[0], size[1] / target[1])
    assert placement.to_picture(found_square(seen))[0] == pytest.approx(box, abs=pixel)
    assert (seen == decode(content, target, LIMIT, resize=Resize(policy=policy))).all()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 95})])
def test_box_is_in_pixels_of_the_upright_picture(
    policy: Policy, orientation: int, kind: str, options: dict[str, Any]
) -> None:
    """The file is reduced while it is decoded, if it is a JPEG."""
    box = 460, 280, 540, 400
    upright = white_square(600, 1000, box)
    content = as_file(stored(upright, orientation), kind, exif=turned(orientation), **options)
    seen, placement = decode_placed(content, (96, 128), LIMIT, resize=Resize(policy=policy))
    assert placement.picture == (1000, 600)
    assert placement.to_picture(found_square(seen))[0] == pytest.approx(box, abs=8)


def test_letterbox_has_margins_of_its_colour() -> None:
    content = as_png(np.full((20, 80, 3), 255, np.uint8))
    resize = Resize(policy="letterbox", fill=(10, 20, 30))
    seen, placement = decode_placed(content, (64, 64), LIMIT, resize=resize)
    assert (seen[24:40] == 255).all()
    assert (seen[:24] == (10, 20, 30)).all()
    assert (seen[40:] == (10, 20, 30)).all()
    assert placement.picture_in_input == pytest.approx((0, 24, 64, 40))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_uneven_margins_do_not_depend_on_the_orientation(orientation: int) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (31, 64, 3), np.uint8)
    plain = decode(as_png(upright), (64, 64), LIMIT, resize=Resize(policy="letterbox"))
    content = as_file(stored(upright, orientation), "PNG", exif=turned(orientation))
    assert (decode(content, (64, 64), LIMIT, resize=Resize(policy="letterbox")) == plain).all()
    assert (plain[16:47] == upright).all()


def test_picture_of_the_inputs_size_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for policy in POLICIES:
        seen, placement = decode_placed(
            as_png(pixels), (48, 64), LIMIT, resize=Resize(policy=policy)
        )
        assert (seen == pixels).all()
        assert placement == Placement((64, 48), (64, 48), (0, 0, 64, 48))


def test_margins_of_transparent_pictures_are_not_white() -> None:
    pixels = np.zeros((16, 64, 4), np.uint8)
    seen = decode(as_png(pixels), (64, 64), LIMIT, resize=Resize(policy="letterbox"))
    assert (seen[24:40] == 255).all()
    assert (seen[:24] == 128).all()


def test_filter_is_the_models() -> None:
    content = as_png(white_square(100, 100, (40, 40, 60, 60)))
    bicubic, bilinear = (
        decode(content, (32, 32), LIMIT, resize=Resize(interpolation=each)).astype(int)
        for each in ("bicubic", "bilinear")
    )
    assert 0 < np.abs(bicubic - bilinear).max() < 60


@pytest.mark.parametrize("policy", POLICIES)
def test_boxes_are_cut_at_the_pictures_border(policy: Policy) -> None:
    placement = place((200, 100), (64, 64), policy)
    everything = np.array([[-10, -10, 80, 80]], np.float32)
    left, upper, right, lower = placement.to_picture(everything)[0]
    assert 0 <= left < right <= 200
    assert (upper, lower) == (0, 100)


def test_sliver_has_at_least_one_pixel() -> None:
    seen, placement = decode_placed(
        as_png(np.zeros((1, 1000, 3), np.uint8)), (32, 32), LIMIT, resize=Resize(policy="letterbox")
    )
    assert (seen == 0).all(axis=2).any(axis=1).sum() == 1
    assert placement.to_picture(np.array([[0, 0, 32, 32]], np.float32))[0].tolist() == [
        0,
        0,
        1000,
        1,
    ]


def seen_part(placement: Placement) -> tuple[slice, slice]:
    left, upper, right, lower = placement.seen
    return slice(upper, lower), slice(left, right)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [(240, 320), (320, 240), (96, 400), (241, 321), (20, 30), (1, 9)])
@pytest.mark.parametrize("target", [(64, 64), (48, 96)])
def test_values_come_back_to_the_pixels_that_they_are_of(
    policy: Policy, size: tuple[int, int], target: tuple[int, int]
) -> None:
    """Each pixel of the input holds its own place in the picture."""
    placement = place(size[::-1], target[::-1], policy)
    left, upper, right, lower = placement.box
    rows = upper + (np.arange(target[0]) + 0.5) * (lower - upper) / target[0]
    columns = left + (np.arange(target[1]) + 0.5) * (right - left) / target[1]
    down, across = np.meshgrid(rows, columns, indexing="ij")
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    seen = seen_part(placement)
    width = placement.seen[2] - placement.seen[0]
    for values, places, step in (
        (down, ys[seen], (lower - upper) / target[0]),
        (across, xs[seen], (right - left) / target[1]),
    ):
        near = placement.nearest(values)
        smooth = placement.smooth(values.astype(np.float32), 0, width)
        assert near.shape == smooth.shape == places.shape
        assert near.flags.f_contiguous  # or each mask of it would be a copy
        half = max(step, 1) / 2 + 1e-3
        assert np.abs(near - places).max() <= half + 0.5 * (step < 1)
        assert np.abs(smooth - places).max() <= half
        inner = (places > places.min() + step) & (places < places.max() - step)
        assert np.abs(smooth - places)[inner].max(initial=0) < 0.01 * max(size)
        middle = width // 2
        halves = [placement.smooth(values.astype(np.float32), 0, middle)]
        halves.append(placement.smooth(values.astype(np.float32), middle, width))
        assert np.concatenate(halves, axis=1) == pytest.approx(smooth, abs=1e-3)


def test_smooth_values_are_interpolated_between_centres() -> None:
    placement = place((4, 2), (2, 1), "stretch")
    smooth = placement.smooth(np.array([[0, 1]], np.float32), 0, 4)
    assert smooth == pytest.approx(np.array([[0, 0.25, 0.75, 1]] * 2))


def test_margins_have_no_part_in_smooth_values() -> None:
    placement = place((80, 20), (8, 8), "letterbox")
    values = np.full((8, 8), 9, np.float32)
    values[3:5] = 1
    assert (placement.smooth(values, 0, 80) == 1).all()
    assert (placement.nearest(values) == 1).all()


def test_crop_of_a_picture_a_pixel_wide_may_show_no_centre() -> None:
    placement = place((1, 1000), (64, 20), "crop")
    assert placement.nearest(np.zeros((20, 64))).size == 0
    assert placement.smooth(np.zeros((20, 64), np.float32), 0, 1).size == 0


@pytest.mark.parametrize("size", [(500_000, 1), (1, 500_000)])
def test_picture_of_one_line_takes_little_memory(size: tuple[int, int]) -> None:
    placement = place(size, (256, 256), "stretch")
    values = np.zeros((256, 256), np.uint16)
    tracemalloc.start()
    found = placement.nearest(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == size[::-1]
    assert peak < 40 * found.size


def test_reduced_picture_lies_at_the_same_place() -> None:
    placement = place((400, 100), (64, 64), "crop").reduced((200, 50))
    assert placement == place((200, 50), (64, 64), "crop")
