from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.artifact.directory import Artifact, read_artifact
from app.artifact.sheets import pack_sheet, unpack_sheet
from app.errors import ArtifactError
from tests.support import sample

FITS = 1_000_000


@pytest.fixture(scope="module")
def photographs() -> NDArray[np.uint8]:
    """Eighty photographs, one in each of 80 rows."""
    return sample.read("test")[0][:, np.newaxis]


@pytest.fixture
def artifact(store_path: Path) -> Artifact:
    return read_artifact(store_path / "colour" / "1")


def _loss(artifact: Artifact, data: NDArray[np.uint8], pictures: NDArray[np.uint8]) -> float:
    found = unpack_sheet(artifact, "x.npz", data, 1, None)
    assert found.shape == pictures.shape
    return float(np.abs(found.astype(int) - pictures).mean())


def test_a_picture_that_fits_loses_nothing(
    artifact: Artifact, photographs: NDArray[np.uint8]
) -> None:
    data = pack_sheet(photographs, FITS)
    assert data.dtype == np.uint8
    assert _loss(artifact, data, photographs) == 0
    assert np.array_equal(pack_sheet(photographs, len(data)), data)


def test_a_picture_that_does_not_fit_is_as_good_as_fits(
    artifact: Artifact, photographs: NDArray[np.uint8]
) -> None:
    exact = len(pack_sheet(photographs, FITS))
    found = [pack_sheet(photographs, exact - 1)]
    while len(smaller := pack_sheet(photographs, len(found[-1]) - 1)) < len(found[-1]):
        found.append(smaller)
    assert len(found) == 5
    losses = [_loss(artifact, data, photographs) for data in found]
    assert losses == sorted(losses)
    assert 0 < losses[0] < losses[-1]


def test_what_cannot_fit_takes_as_little_as_is_worth_looking_at(
    artifact: Artifact, photographs: NDArray[np.uint8]
) -> None:
    least = pack_sheet(photographs, 1)
    assert len(least) > 1
    assert _loss(artifact, least, photographs) < 25


def test_without_a_limit_hardly_a_loss_is_seen(
    artifact: Artifact, photographs: NDArray[np.uint8]
) -> None:
    data = pack_sheet(photographs)
    assert len(data) < len(pack_sheet(photographs, FITS))
    assert _loss(artifact, data, photographs) < 4


@pytest.mark.parametrize("height", [None, 8])
def test_pictures_come_back_in_their_rows_and_columns(
    artifact: Artifact, photographs: NDArray[np.uint8], height: int | None
) -> None:
    grid = photographs[:12, 0].reshape(3, 4, 32, 32, 3)[:, :, :height]
    data = pack_sheet(grid, FITS)
    assert np.array_equal(unpack_sheet(artifact, "x.npz", data, 4, height), grid)


def test_data_that_are_no_webp_name_their_file(artifact: Artifact) -> None:
    png = np.frombuffer(b"\x89PNG\r\n\x1a\n", np.uint8)
    with pytest.raises(ArtifactError, match=r"colour/1/x\.npz: holds no picture"):
        unpack_sheet(artifact, "x.npz", png, 4, None)
