import errno
import hashlib
import mimetypes
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.AvifImagePlugin import SUPPORTED as AVIF_SUPPORTED

from tests.support import sample
from training.data import dataset
from training.data.class_folders import MAX_BYTES
from training.errors import DataError


@pytest.fixture
def types_of_python_alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mimetypes, "knownfiles", [])
        mimetypes.init()
        yield
    mimetypes.init()


@pytest.fixture
def splits(image_folder: Path, tmp_path: Path) -> Path:
    """The sample as `{train,test}/<class>/*`, to be changed."""
    return shutil.copytree(image_folder, tmp_path / "splits")


@pytest.fixture
def classes(image_folder: Path, tmp_path: Path) -> Path:
    """The sample's training images, 24 of each class, as `<class>/*`, to be changed."""
    return shutil.copytree(image_folder / "train", tmp_path / "classes")


def _left_out(place: Path) -> dict[str, str]:
    findings = dataset.find(place).findings
    assert findings is not None
    return {str(item.path): item.reason for item in findings.left_out}


def _rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def _write(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (32, 32), level).save(path)


@pytest.mark.parametrize("layout", ["splits", "classes"])
def test_pictures_in_folders_in_folders_are_read(
    layout: str, request: pytest.FixtureRequest
) -> None:
    place: Path = request.getfixturevalue(layout)
    before = dataset.find(place)
    for path in sorted(place.rglob("*.png"))[::2]:
        deeper = path.parent / "some" / "deeper"
        deeper.mkdir(parents=True, exist_ok=True)
        path.rename(deeper / path.name)
    after = dataset.find(place)
    for load in ("load_train", "load_test"):
        old, new = getattr(before, load)(), getattr(after, load)()
        assert len(old) == len(new)
        assert torch.equal(old.labels.bincount(), new.labels.bincount())
    assert after.findings is not None
    assert after.findings.left_out == ()


def test_what_is_left_out_is_told_with_the_reason(splits: Path) -> None:
    cat = splits / "train" / "cat"
    whole = next(cat.iterdir()).read_bytes()
    (cat / "cut.png").write_bytes(whole[: len(whole) // 2])
    (cat / "deep").mkdir()
    (cat / "deep" / "notes.txt").write_text("no image")
    (cat / "deep" / "up").symlink_to(cat)
    (cat / "gone.png").symlink_to(splits / "nowhere.png")
    (cat / "around.png").symlink_to(cat / "around.png")
    (cat / ".hidden.png").write_bytes(whole)
    os.mkfifo(cat / "pipe")
    with (cat / "large.png").open("wb") as large:
        large.truncate(MAX_BYTES + 1)
    (splits / "train" / "loose.png").write_bytes(whole)
    (splits / "train" / "lost").symlink_to(splits / "nowhere")
    (splits / "val" / "cat").mkdir(parents=True)
    told = _left_out(splits)
    formats = told.pop("train/cat/deep/notes.txt")
    assert formats.startswith("not an image in a known format")
    assert told.pop("train/cat/cut.png").startswith("PNG image is damaged")
    assert told == {
        "train/cat/deep/up": "is a link to a folder that is read already",
        "train/cat/gone.png": "is a link to nothing",
        "train/cat/around.png": os.strerror(40),
        "train/cat/.hidden.png": "is hidden: its name begins with a dot",
        "train/cat/pipe": "is neither a file nor a folder",
        "train/cat/large.png": "is 268,435,457 bytes; the limit is 268,435,456",
        "train/loose.png": "lies in no class folder",
        "train/lost": "is a link to nothing",
        "val": "is not in train or test",
    }
    assert len(dataset.find(splits).load_train()) == 240


def test_what_systems_put_beside_pictures_is_not_told(classes: Path) -> None:
    before = dataset.find(classes).sha256
    (classes / ".DS_Store").write_bytes(b"no image")
    (classes / "__MACOSX").mkdir()
    (classes / "cat" / "._0001.png").write_bytes(b"no image")
    (classes / "cat" / "Thumbs.db").write_bytes(b"no image")
    assert _left_out(classes) == {}
    assert dataset.find(classes).sha256 == before


def test_all_faults_are_told_at_once(splits: Path) -> None:
    (splits / "train" / "cat").rename(os.fsdecode(os.fsencode(splits) + b"/train/k\xe4tzchen"))
    shutil.rmtree(splits / "test" / "dog")
    for path in (splits / "train" / "frog").iterdir():
        path.write_bytes(b"no image")
    (splits / "train" / "lost").symlink_to(splits / "nowhere")
    with pytest.raises(DataError) as caught:
        dataset.find(splits)
    for fault in (
        r"train/k\xe4tzchen: the name is not UTF-8",
        "train/cat: no such folder",
        "test/dog: no such folder",
        "train/frog: holds no pictures",
        "train/frog/0144.png: not an image in a known format",
    ):
        assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_very_many_faults_are_counted(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / "train" / f"class-{number:02d}").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"class-19: holds no pictures; and 80 more$"):
        dataset.find(tmp_path)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_classes_are_refused(splits: Path, count: int) -> None:
    for split in ("train", "test"):
        for name in sample.class_names()[count:]:
            shutil.rmtree(splits / split / name)
    with pytest.raises(DataError, match=f"{count} classes; at least 2 are needed"):
        dataset.find(splits)


def test_two_spellings_of_one_name_are_one_class(classes: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "grün") for form in ("NFC", "NFD"))
    (classes / "cat").rename(classes / composed)
    (classes / "dog").rename(classes / decomposed)
    found = dataset.find(classes)
    assert composed in found.classes
    assert len(found.classes) == 9
    assert found.findings is not None
    label = found.classes.index(composed)
    assert found.findings.train[label] + found.findings.test[label] == 48


def test_a_data_set_whose_name_is_not_utf8_is_named_by_escapes(classes: Path) -> None:
    place = classes.rename(os.fsdecode(os.fsencode(classes.parent) + b"/caf\xe9"))
    found = dataset.find(place)
    assert found.name == r"caf\xe9"


def test_the_digest_is_of_names_and_contents(splits: Path) -> None:
    expected = hashlib.sha256()
    for split in ("train", "test"):
        for path in sorted((splits / split).rglob("*.png")):
            expected.update(os.fsencode(path.relative_to(splits)))
            expected.update(hashlib.sha256(path.read_bytes()).digest())
    assert dataset.find(splits).sha256 == expected.hexdigest()


def test_class_folders_alone_are_split_by_class_and_nothing_is_lost(classes: Path) -> None:
    source = dataset.find(classes)
    train, test = source.load_train(), source.load_test()
    assert train.labels.bincount().tolist() == [19] * 10
    assert test.labels.bincount().tolist() == [5] * 10
    images, labels = sample.read("train")
    assert _rows(train.images).isdisjoint(_rows(test.images))
    assert _rows(train.images) | _rows(test.images) == _rows(torch.from_numpy(images))
    by_pixels = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for split in (train, test):
        assert [by_pixels[image.numpy().tobytes()] for image in split.images] == list(split.labels)


@pytest.mark.parametrize("layout", ["splits", "classes"])
def test_every_test_image_has_its_file(layout: str, request: pytest.FixtureRequest) -> None:
    place: Path = request.getfixturevalue(layout)
    source = dataset.find(place)
    images = source.load_test().images
    assert source.findings is not None
    assert len(source.findings.test_files) == len(images)
    for file, image in zip(source.findings.test_files, images, strict=True):
        with Image.open(place / file) as picture:
            assert picture.tobytes() == image.numpy().tobytes()


def test_class_folders_are_split_the_same_way_every_time_and_anywhere(
    classes: Path, tmp_path: Path
) -> None:
    first = dataset.find(classes)
    again = dataset.find(classes.rename(tmp_path / "moved"))
    assert torch.equal(first.load_test().images, again.load_test().images)
    assert first.sha256 == again.sha256
    # Not the first or last ones of each class.
    firsts = _rows(torch.from_numpy(sample.read("train")[0][:5]))
    lasts = _rows(torch.from_numpy(sample.read("train")[0][19:24]))
    assert _rows(first.load_test().images[:5]) not in (firsts, lasts)


def test_pictures_with_the_same_pixels_are_on_one_side(classes: Path) -> None:
    for name in ("cat", "dog"):
        for path in list((classes / name).iterdir()):
            with Image.open(path) as picture:
                picture.save(classes / name / f"again-{path.stem}.bmp")
    shutil.copy(next((classes / "cat").glob("*.png")), classes / "bird" / "a-cat.png")
    source = dataset.find(classes)
    train, test = source.load_train(), source.load_test()
    assert len(train) + len(test) == 240 + 48 + 1
    assert _rows(train.images).isdisjoint(_rows(test.images))
    chosen, held = dataset.split_distinct(train, 0.3, seed=0)
    assert len(held) > 60
    assert _rows(train.images[chosen]).isdisjoint(_rows(train.images[held]))
    assert sorted([*chosen.tolist(), *held.tolist()]) == list(range(len(train)))


def test_without_equal_images_the_split_is_that_of_the_labels() -> None:
    images, labels = map(torch.from_numpy, sample.read("train"))
    expected = dataset.split_holdout(labels, 0.25, seed=3)
    found = dataset.split_distinct(dataset.Split(images, labels), 0.25, seed=3)
    assert all(map(torch.equal, found, expected))


def test_a_class_with_too_few_different_pictures_cannot_be_split(classes: Path) -> None:
    for path in sorted((classes / "cat").iterdir())[2:]:
        path.unlink()
    shutil.copy(next((classes / "cat").iterdir()), classes / "cat" / "copy.png")
    message = "cat: 3 pictures, of which 2 differ from each other and .*; a split needs 3"
    with pytest.raises(DataError, match=message):
        dataset.find(classes)


def test_three_pictures_of_a_class_give_one_to_test_with(tmp_path: Path) -> None:
    for level in range(6):
        _write(tmp_path / ("dark" if level < 3 else "light") / f"{level}.png", 40 * level)
    source = dataset.find(tmp_path)
    assert source.load_test().labels.tolist() == [0, 1]
    assert source.load_train().labels.tolist() == [0, 0, 1, 1]


@pytest.mark.usefixtures("types_of_python_alone")
def test_pictures_are_known_where_the_system_knows_no_types(tmp_path: Path) -> None:
    for level in range(6):
        _write(tmp_path / ("dark" if level < 3 else "light") / f"{level}.WebP", 40 * level)
    assert dataset.find(tmp_path).classes == ("dark", "light")


@pytest.mark.parametrize("suffix", ["", ".jpg_large", ".png?width=600", ".1"])
def test_pictures_whose_names_say_nothing_are_known_by_their_bytes(
    tmp_path: Path, suffix: str
) -> None:
    for level in range(6):
        path = tmp_path / ("dark" if level < 3 else "light") / f"{level}.png"
        _write(path, 40 * level)
        path.rename(path.with_name(f"{level}{suffix}"))
    assert dataset.find(tmp_path).classes == ("dark", "light")


@pytest.mark.skipif(not AVIF_SUPPORTED, reason="Pillow was built without AVIF")
def test_avif_without_a_suffix_is_known_by_its_bytes(tmp_path: Path) -> None:
    for level in range(6):
        path = tmp_path / ("dark" if level < 3 else "light") / str(level)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * level,) * 3).save(path, "AVIF")
    assert dataset.find(tmp_path).classes == ("dark", "light")


def test_folders_that_may_not_be_read_are_named(
    classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read every folder, so the system's refusal is a double."""
    folders = sorted(classes.iterdir())
    iterdir, access = Path.iterdir, os.access

    def refuse(path: Path) -> Iterator[Path]:
        if path in folders[1:]:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: path not in folders and access(path, mode))
    with pytest.raises(DataError) as caught:
        dataset.find(classes)
    for folder in folders[1:]:
        assert f"; {folder.name}: Permission denied" in str(caught.value)


def test_test_images_that_are_learned_from_are_counted(splits: Path) -> None:
    for number in range(3):
        old = sorted((splits / "train" / "dog").iterdir())[number]
        shutil.copy(old, splits / "test" / "cat" / f"again-{number}.png")
    found = dataset.find(splits).findings
    assert found is not None
    assert found.repeated == 3


@pytest.mark.parametrize("names", [("Train", "Test"), ("train", "val"), ("training", "validation")])
def test_splits_under_other_names_are_not_taken_for_classes(
    splits: Path, names: tuple[str, str]
) -> None:
    for old, new in zip(("train", "test"), names, strict=True):
        (splits / old).rename(splits / f"{new}.")
        (splits / f"{new}.").rename(splits / new)
    listed = " and ".join(sorted(names)).replace(" and ", ", ")
    with pytest.raises(DataError, match=f"holds the folders {listed}, but train and test are"):
        dataset.find(splits)


def test_a_class_may_be_called_train(classes: Path) -> None:
    (classes / "cat").rename(classes / "train")
    assert "train" in dataset.find(classes).classes


def test_pictures_in_no_folder_are_not_passed_over(
    classes: Path, splits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(dataset.DATA_DIR_VARIABLE, str(splits))
    message = f"{classes / 'cat'}: holds pictures in no folder; needed are two or more folders"
    with pytest.raises(DataError, match=re.escape(message)):
        dataset.find(classes / "cat")


def test_folders_without_pictures_are_no_data_set(
    splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    for name in ("logs", "plots", "tables"):
        (other / name).mkdir(parents=True)
    (other / "logs" / "log.txt").write_text("no image")
    _write(other / "plots" / "plot.png", 0)
    monkeypatch.chdir(splits.parent)
    splits.rename(splits.with_name("data"))
    monkeypatch.setenv(dataset.DATA_DIR_VARIABLE, str(other))
    for place in (None, other):
        with pytest.raises(DataError, match="holds the folders logs, plots, tables; needed are"):
            dataset.find(place)


def test_a_link_that_leads_back_is_not_followed(classes: Path) -> None:
    (classes / "cat" / "again").symlink_to(classes / "cat")
    (classes / "cat" / "all").symlink_to(classes)
    found = dataset.find(classes).findings
    assert found is not None
    assert sum(found.train + found.test) == 240
    assert [str(item) for item in found.left_out] == [
        "cat/again: is a link to a folder that is read already",
        "cat/all: is a link to a folder that is read already",
    ]
