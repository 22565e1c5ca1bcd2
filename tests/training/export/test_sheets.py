import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.support import sample
from training.export.sheets import webp


def _pixels(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data.tobytes()), formats=["WEBP"]) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """Eighty photographs above one another."""
    return sample.read("test")[0].reshape(-1, 32, 3)


def _loss(data: NDArray[np.uint8], picture: NDArray[np.uint8]) -> float:
    return float(np.abs(_pixels(data).astype(int) - picture).mean())


def test_a_picture_that_fits_loses_nothing(picture: NDArray[np.uint8]) -> None:
    data = webp(picture, 1_000_000)
    assert data.dtype == np.uint8
    assert np.array_equal(_pixels(data), picture)
    assert np.array_equal(webp(picture, len(data)), data)


def test_a_picture_that_does_not_fit_is_as_good_as_fits(picture: NDArray[np.uint8]) -> None:
    exact = len(webp(picture, 1_000_000))
    found = [webp(picture, exact - 1)]
    while len(smaller := webp(picture, len(found[-1]) - 1)) < len(found[-1]):
        found.append(smaller)
    assert len(found) == 5
    losses = [_loss(data, picture) for data in found]
    assert losses == sorted(losses)
    assert 0 < losses[0] < losses[-1]


def test_what_cannot_fit_takes_as_little_as_is_worth_looking_at(picture: NDArray[np.uint8]) -> None:
    least = webp(picture, 1)
    assert len(least) > 1
    assert _pixels(least).shape == picture.shape
    assert _loss(least, picture) < 25


def test_without_a_limit_hardly_a_loss_is_seen(picture: NDArray[np.uint8]) -> None:
    data = webp(picture)
    assert len(data) < len(webp(picture, 1_000_000))
    assert _loss(data, picture) < 4
