import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.errors import DamagedImage, NotAnImage, TooManyPixels, UnsupportedImage
from app.images.decode import decode, decode_whole, measure
from app.images.placement import central_box
from tests.support.pictures import as_file, as_png, stored, turned

LIMIT = 10_000_000


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(20, 50), (50, 20), (1, 64), (64, 64)])
def test_picture_that_is_small_enough_keeps_all_its_pixels(size: tuple[int, int]) -> None:
    pixels = _noise(*size)
    assert (decode_whole(as_png(pixels), 64, LIMIT) == pixels).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_turned_as_its_exif_says(orientation: int) -> None:
    upright = _noise(20, 50)
    content = as_file(stored(upright, orientation), "PNG", exif=turned(orientation))
    assert (decode_whole(content, 64, LIMIT) == upright).all()
    reduced = decode_whole(content, 25, LIMIT)
    assert reduced.shape == (10, 25, 3)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 200), (32, 64)),
        ((200, 100), (64, 32)),
        ((65, 64), (64, 63)),
        ((1, 1000), (1, 64)),
        ((1000, 1), (64, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_larger_picture_is_reduced_to_the_longer_side(
    size: tuple[int, int], expected: tuple[int, int], kind: str
) -> None:
    content = as_file(np.full((*size, 3), 90, np.uint8), kind)
    pixels = decode_whole(content, 64, LIMIT)
    assert pixels.shape == (*expected, 3)
    assert np.abs(pixels.astype(int) - 90).max() <= 2


def test_transparency_lies_over_white() -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, 3:, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    found = decode_whole(buffer.getvalue(), 64, LIMIT)
    assert (found[:, :3] == 255).all()
    assert (found[:, 3:] == 0).all()


def test_square_picture_is_seen_as_the_model_sees_it() -> None:
    content = as_png(_noise(32, 32))
    assert (decode_whole(content, 1024, LIMIT) == decode(content, (32, 32), LIMIT)).all()


def test_limits_and_errors_are_those_of_a_picture_to_be_classified() -> None:
    large = as_png(np.zeros((200, 200, 3), np.uint8))
    with pytest.raises(TooManyPixels, match=r"200x200 pixels; the limit is 0\.03 megapixels"):
        decode_whole(large, 64, 30_000)
    with pytest.raises(TooManyPixels, match=r"the limit is 0\.03 megapixels for PNG"):
        decode_whole(large, 64, LIMIT, max_pixels_whole=30_000)
    with pytest.raises(NotAnImage):
        decode_whole(b"hello", 64, LIMIT)
    with pytest.raises(UnsupportedImage, match="HEIC"):
        decode_whole(b"\0\0\0\x18ftypheic", 64, LIMIT)
    with pytest.raises(DamagedImage):
        decode_whole(as_file(_noise(64, 64), "JPEG")[:300], 64, LIMIT)


@pytest.mark.parametrize(
    ("size", "target", "box"),
    [
        ((300, 100), (32, 32), (100, 0, 200, 100)),
        ((100, 300), (32, 32), (0, 100, 100, 200)),
        ((50, 50), (32, 32), (0, 0, 50, 50)),
        ((100, 100), (64, 32), (0, 25, 100, 75)),
        ((10, 5), (32, 32), (2.5, 0, 7.5, 5)),
    ],
)
def test_box_is_the_largest_centred_part_of_the_models_aspect(
    size: tuple[float, float],
    target: tuple[int, int],
    box: tuple[float, float, float, float],
) -> None:
    assert central_box(size, target) == pytest.approx(box)


def test_box_is_the_part_that_is_decoded_for_the_model() -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    left, upper, right, lower = (round(side) for side in central_box((100, 40), (32, 32)))
    pixels[upper:lower, left:right] = 255
    seen = decode(as_png(pixels), (32, 32), LIMIT)
    assert (seen[:, 2:-2] == 255).all()
    assert seen.min() > 200  # the filter reaches a pixel over the edge
    pixels[upper:lower, left : left + 2] = 0
    assert decode(as_png(pixels), (32, 32), LIMIT).min() < 50


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_image_is_measured_as_it_is_decoded(kind: str, orientation: int) -> None:
    content = as_file(_noise(301, 997), kind, exif=turned(orientation))
    height, width, told = measure(content, LIMIT)
    assert (height, width, 3) == decode_whole(content, 1000, LIMIT).shape
    assert told == (1 if kind == "TIFF" else orientation)


def test_an_image_that_cannot_be_decoded_is_not_measured() -> None:
    content = as_file(_noise(90, 80), "JPEG")
    assert measure(content, 7200) == (90, 80, 1)
    with pytest.raises(TooManyPixels, match=r"^image is 80x90 pixels; the limit is"):
        measure(content, 7199)
    with pytest.raises(DamagedImage, match=r"^JPEG image is damaged"):
        measure(content[: len(content) // 2], 7200)
    with pytest.raises(NotAnImage):
        measure(b"GIF", 7200)
