import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.artifact.tensors import Images, Probabilities
from tests.support import sample
from training.export.examples import MOST_IN_A_CELL, MOST_SHEET_BYTES, examples

Split = tuple[Images, NDArray[np.int64], Probabilities]
COUNTS = np.array([[40, 3, 0], [0, 24, 25], [1, 0, 0]])
"""How many images there are of each true class (row) and predicted one (column)."""


@pytest.fixture(scope="module")
def split() -> Split:
    """Images of three classes in no order, no two alike or equally sure."""
    random = np.random.default_rng(0)
    cells = random.permutation(np.repeat(np.arange(9), COUNTS.flatten()))
    count = len(cells)
    sure = random.permutation(np.linspace(0.5, 0.9, count))
    probabilities = ((1 - sure) / 2)[:, None].repeat(3, axis=1)
    probabilities[np.arange(count), cells % 3] = sure
    return sample.read("train")[0][:count], cells // 3, probabilities.astype(np.float32)


@pytest.fixture(scope="module")
def found(split: Split) -> dict[str, NDArray[Any]]:
    return examples(*split)


def _pictures(sheet: NDArray[np.uint8]) -> Images:
    picture = np.asarray(Image.open(io.BytesIO(sheet.tobytes())).convert("RGB"))
    rows, columns = picture.shape[0] // 32, picture.shape[1] // 32
    assert columns == 32
    grid = picture.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2)
    return grid.reshape(-1, 32, 32, 3)


def test_every_cell_keeps_its_surest_images_and_no_more_than_24(
    split: Split, found: dict[str, NDArray[Any]]
) -> None:
    _, labels, probabilities = split
    predicted, sure = probabilities.argmax(1), probabilities.max(1)
    for cell in np.ndindex(3, 3):
        inside = np.flatnonzero((labels == cell[0]) & (predicted == cell[1]))
        surest = inside[np.argsort(-sure[inside])][:MOST_IN_A_CELL]
        kept = (found["true"] == cell[0]) & (found["predicted"] == cell[1])
        assert found["index"][kept].tolist() == surest.tolist(), cell
        assert np.array_equal(found["confidence"][kept], sure[surest])
    assert len(found["index"]) == np.minimum(COUNTS, 24).sum()


def test_cells_come_in_order_each_with_the_surest_first(found: dict[str, NDArray[Any]]) -> None:
    columns = (found["true"], found["predicted"], -found["confidence"])
    order = list(zip(*(column.tolist() for column in columns), strict=True))
    assert order == sorted(order)


def test_the_arrays_have_the_types_that_the_contract_names(found: dict[str, NDArray[Any]]) -> None:
    assert {name: str(array.dtype) for name, array in found.items()} == {
        "sheet": "uint8",
        "index": "int32",
        "true": "int32",
        "predicted": "int32",
        "confidence": "float32",
    }


def test_the_sheet_shows_the_images_in_the_same_order(
    split: Split, found: dict[str, NDArray[Any]]
) -> None:
    pictures, count = _pictures(found["sheet"]), len(found["index"])
    assert np.array_equal(pictures[:count], split[0][found["index"]])
    assert len(pictures) == -(-count // 32) * 32
    assert not pictures[count:].any()


@pytest.mark.slow
def test_a_hundred_full_cells_take_at_most_two_megabytes() -> None:
    photographs = np.concatenate([sample.read(split)[0] for split in ("train", "test")])
    random = np.random.default_rng(0)
    images = photographs[random.integers(0, len(photographs), 2500)]
    shift = random.integers(-20, 21, (2500, 1, 1, 3))  # or repeated images would cost nothing
    noise = random.normal(0, 4, images.shape)
    images = np.clip(images + shift + noise, 0, 255).astype(np.uint8)
    cells = np.arange(2500) // 25
    probabilities = np.eye(10, dtype=np.float32)[cells % 10]
    found = examples(images, cells // 10, probabilities)
    assert len(found["index"]) == 2400
    assert len(found["sheet"]) <= MOST_SHEET_BYTES
    assert sum(array.nbytes for array in found.values()) < 2_000_000
    assert _pictures(found["sheet"]).shape[0] == 2400


def test_a_sheet_that_would_be_too_high_for_a_webp_loses_the_least_sure_of_each_cell() -> None:
    classes, each = 28, 24
    cells = np.repeat(np.arange(classes**2), each)
    probabilities = np.full((len(cells), classes), 0.01, np.float32)
    sure = np.tile(np.linspace(0.9, 0.5, each), classes**2)
    probabilities[np.arange(len(cells)), cells % classes] = sure
    images = np.zeros((len(cells), 32, 32, 3), np.uint8)
    found = examples(images, cells // classes, probabilities)
    assert len(found["index"]) == 511 * 32 < len(cells)
    assert Image.open(io.BytesIO(found["sheet"].tobytes())).size == (1024, 16_352)
    kept = np.bincount(found["true"] * classes + found["predicted"], minlength=classes**2)
    assert set(kept.tolist()) == {20, 21}
