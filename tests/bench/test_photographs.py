"""Figures of photographs, on folders of which the answer is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.artifact.directory import Artifact, read_artifact
from bench import ARTIFACT
from bench.quality.photographs import COLUMNS, measure, photograph_kinds, photograph_table
from tests.support import sample
from training.data import dataset


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return read_artifact(ARTIFACT)


@pytest.fixture(scope="module")
def test() -> dataset.Split:
    images, labels = sample.read("test")
    return dataset.Split(torch.from_numpy(images), torch.from_numpy(labels))


def _save(folder: Path, images: np.ndarray) -> None:
    folder.mkdir()
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number}.png")


def test_photographs_are_known_by_their_folder_and_others_are_foreign(
    artifact: Artifact, test: dataset.Split, tmp_path: Path
) -> None:
    images, labels = test.images.numpy(), test.labels.numpy()
    for label in (0, 3):
        _save(tmp_path / artifact.manifest.classes[label], images[labels == label])
    _save(tmp_path / "boats", images[labels == 8])
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    _save(tmp_path / "noise", noise)
    found = measure(artifact, photograph_kinds(tmp_path)[0], test)
    assert 0.5 < float(found["right"]) < 1
    assert 0.8 < float(found["in the set"]) <= 1
    assert float(found["flagged"]) < 0.2
    assert (found["worst kind"], found["best kind"]) == ("boats", "noise")
    assert float(found["worst"]) < 0.7 < 0.99 < float(found["best"])
    foreign = len(noise) + int((labels == 8).sum())
    assert float(found["foreign flagged"]) >= len(noise) / foreign - 1e-3
    row = photograph_table({"simple-cnn/1": found}).splitlines()[2]
    assert row.count("|") == len(COLUMNS) + 2
    assert f"{float(found['best']):.3f} (noise)" in row


def test_the_hash_is_of_the_pictures_files(tmp_path: Path) -> None:
    images = sample.read("test")[0]
    for name, part in (("cat", images[:4]), ("dog", images[4:8])):
        _save(tmp_path / name, part)
    _, before = photograph_kinds(tmp_path)
    assert photograph_kinds(tmp_path)[1] == before
    (tmp_path / "cat" / "1.png").unlink()
    assert photograph_kinds(tmp_path)[1] != before


def test_a_file_that_is_no_picture_is_named_in_a_folder_and_left_out_beside_them(
    tmp_path: Path,
) -> None:
    images = sample.read("test")[0]
    for name, part in (("cat", images[:4]), ("dog", images[4:8])):
        _save(tmp_path / name, part)
    (tmp_path / "sources.txt").write_text("from the web")
    assert photograph_kinds(tmp_path)[0].keys() == {"cat", "dog"}
    (tmp_path / "dog" / "notes.txt").write_text("brown")
    with pytest.raises(SystemExit, match=r"dog/notes\.txt: "):
        photograph_kinds(tmp_path)


def test_a_folder_of_too_few_pictures_is_named(tmp_path: Path) -> None:
    images = sample.read("test")[0]
    for name, part in (("cat", images[:4]), ("dog", images[4:5])):
        _save(tmp_path / name, part)
    with pytest.raises(SystemExit, match=r"dog: 1 pictures.*needs 3"):
        photograph_kinds(tmp_path)
