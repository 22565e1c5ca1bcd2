from collections.abc import Callable

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.explore.heat_maps import draw_heat, draw_overlay, signed_colours
from tests.conftest import Connect, Picture
from tests.support.fakes import PatchBackend
from tests.support.pictures import as_file, as_png, read_png, shown, turned
from tests.support.problems import check

pytestmark = pytest.mark.anyio

WHITE = [247, 247, 247]


def _colourful(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a picture is not grey, `[H,W]`."""
    spread = pixels.max(axis=-1).astype(int) - pixels.min(axis=-1)
    return np.asarray(spread > 16)


def _as_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).convert("L"))


def _red_at(rows: slice, columns: slice, size: tuple[int, int] = (32, 32)) -> NDArray[np.uint8]:
    image = np.zeros((*size, 3), np.uint8)
    image[rows, columns, 0] = 255
    return image


def test_orange_speaks_for_purple_against_and_white_is_neither() -> None:
    heat = np.array([[2, -2], [0, 1]], np.float32)
    pixels = read_png(draw_heat(heat, 3))
    assert pixels.shape == (6, 6, 3)
    orange, purple, white, pale = pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1]
    assert orange[0] > orange[2] + 50
    assert purple[2] > purple[1] + 50
    assert white.tolist() == WHITE
    assert orange[2] < pale[2] < white[2]
    assert (pixels[:3, :3] == orange).all()


def test_map_of_nothing_is_white() -> None:
    assert (read_png(draw_heat(np.zeros((4, 4), np.float32), 1)) == 247).all()


def test_colours_are_told_apart_without_seeing_hue() -> None:
    values = np.linspace(0, 1, 20, dtype=np.float32)
    for side in (values, -values):
        luminance = signed_colours(side) @ np.array([0.2126, 0.7152, 0.0722])
        assert (np.diff(luminance) < 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (3, 2), (101, 100)])
def test_picture_of_any_shape_has_a_map_laid_over_it(size: tuple[int, int]) -> None:
    height, width = size
    side, heat = min(size), np.ones((32, 32), np.float32)
    left, upper = (width - side) / 2, (height - side) / 2
    box = (left, upper, width - left, height - upper)
    pixels = read_png(draw_overlay(np.full((height, width, 3), 200, np.uint8), box, heat, 1))
    assert pixels.shape == (height, width, 3)
    assert _colourful(pixels).sum() == side * side


def test_part_that_the_model_does_not_see_is_darkened_and_the_rest_is_not() -> None:
    picture = np.full((20, 60, 3), 200, np.uint8)
    pixels = read_png(draw_overlay(picture, (20, 0, 40, 20), np.zeros((32, 32), np.float32), 1))
    assert (pixels[:, 20:40] == 200).all()
    assert np.abs(pixels[:, :20].astype(int) - 80).max() <= 1
    assert np.abs(pixels[:, 40:].astype(int) - 80).max() <= 1


def test_weak_values_leave_the_picture_visible() -> None:
    heat = np.zeros((2, 2), np.float32)
    heat[0] = 1, -0.25
    pixels = read_png(draw_overlay(np.full((2, 2, 3), 200, np.uint8), (0, 0, 2, 2), heat, 1))
    strong, weak, none = (pixels[place].astype(int) for place in ((0, 0), (0, 1), (1, 0)))
    assert none.tolist() == [200, 200, 200]
    assert np.abs(strong - 200).max() > 2 * np.abs(weak - 200).max() > 0
    assert strong[0] > strong[2]
    assert weak[2] > weak[1]


async def test_heat_map_is_a_picture_where_that_is_accepted(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    for headers, query in (({"Accept": "image/png"}, ""), ({}, "?format=png")):
        response = await client.post(f"/explain{query}", content=picture("red"), headers=headers)
        assert shown(response).shape == (256, 256, 3)
        assert response.headers["vary"] == "Accept"
    response = await client.post(
        "/explain?format=json", content=picture("red"), headers={"Accept": "image/png"}
    )
    assert response.headers["content-type"] == "application/json"
    response = await client.post(
        "/explain", content=picture("red"), headers={"Accept": "text/html"}
    )
    assert "application/json, image/png" in check(response, 406).detail


async def test_heat_map_is_orange_at_what_the_answer_depends_on(connect: Connect) -> None:
    image = _red_at(slice(8, 12), slice(20, 24))
    async with connect(PatchBackend(8, 20)) as client:
        path = "/explain?method=occlusion&format=png"
        pixels = shown(await client.post(path, content=as_png(image)))
    red, _, blue = pixels[9 * 8 + 4, 21 * 8 + 4].astype(int)
    assert red > blue + 50
    assert pixels[4, 4].tolist() == WHITE


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 150), (300, 150)),
        ((256, 128), (256, 128)),
        ((255, 100), (510, 200)),
        ((32, 32), (256, 256)),
        ((3000, 1500), (1024, 512)),
        ((500, 2000), (256, 1024)),
        ((1024, 1025), (1023, 1024)),
        ((10, 10), (260, 260)),
        ((1, 1), (256, 256)),
        ((1, 1000), (1, 1000)),
        ((3000, 1), (1024, 1)),
    ],
)
async def test_overlay_has_the_pictures_aspect_and_256_to_1024_pixels_on_its_longer_side(
    client: httpx.AsyncClient,
    picture: Picture,
    size: tuple[int, int],
    expected: tuple[int, int],
) -> None:
    content = picture("red", size=size)
    pixels = shown(await client.post("/explain?format=overlay", content=content))
    assert pixels.shape == (expected[1], expected[0], 3)


async def test_each_pixel_of_a_small_picture_stays_visible_in_its_overlay(connect: Connect) -> None:
    image = np.random.default_rng(2).integers(0, 256, (16, 24, 3), np.uint8)
    async with connect(PatchBackend(14, 14)) as client:
        path = "/explain?method=occlusion&format=overlay"
        response = await client.post(path, content=as_png(image))
    pixels = shown(response)
    assert pixels.shape == (16 * 11, 24 * 11, 3)
    squares = pixels.reshape(16, 11, 24, 11, 3)
    assert (squares == squares[:, :1, :, :1]).all()
    grey = _as_grey(image)[:3, 4:7]  # seen by the model, far from its patch
    assert (squares[:3, 0, 4:7, 0] == grey[..., np.newaxis]).all()


# Where the upper left corner of what is shown is stored.
_STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda pixels: pixels,
    3: lambda pixels: pixels[::-1, ::-1],
    6: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
    8: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", _STORED)
async def test_overlay_is_turned_as_the_picture_is_shown(
    connect: Connect, orientation: int
) -> None:
    upright = _red_at(slice(4 * 4, 8 * 4), slice(64 + 20 * 4, 64 + 24 * 4), (128, 256))
    stored = np.ascontiguousarray(_STORED[orientation](upright))
    content = as_file(stored, "PNG", exif=turned(orientation))
    async with connect(PatchBackend(4, 20)) as client:
        path = "/explain?method=occlusion&format=overlay&class=green"
        pixels = shown(await client.post(path, content=content))
    assert pixels.shape == upright.shape
    rows, columns = np.nonzero(_colourful(pixels))
    assert abs(rows.mean() - 6 * 4) < 8
    assert abs(columns.mean() - (64 + 22 * 4)) < 8
    assert columns.min() >= 64
    assert columns.max() < 64 + 128


async def test_overlay_shows_all_of_a_picture_that_the_model_sees_in_part(
    connect: Connect,
) -> None:
    image = np.full((100, 300, 3), 200, np.uint8)
    image[:, :10], image[:, -10:] = 255, 0
    async with connect(PatchBackend(14, 14)) as client:
        response = await client.post("/explain?format=overlay", content=as_png(image))
        pixels = shown(response)
    assert not _colourful(pixels[:, :100]).any()
    assert not _colourful(pixels[:, 200:]).any()
    assert pixels[50, 5, 0] > pixels[50, 50, 0] > pixels[50, 295, 0]
    assert pixels[50, 50, 0] < 200
    assert pixels[2, 102, 0] == 200


async def test_overlay_of_a_jpeg_that_is_reduced_while_it_is_decoded(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    content = picture("red", "JPEG", size=(4000, 2000))
    assert shown(await client.post("/explain?format=overlay", content=content)).shape == (
        512,
        1024,
        3,
    )
