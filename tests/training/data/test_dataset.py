import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.images.decode import decode
from tests.support import sample
from tests.support.training_fixtures import files_of_at_most
from training.data import cifar10, class_folders, dataset
from training.errors import DataError


@pytest.fixture
def small_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in each official layout, made of the sample, with the hashes to match."""
    images, labels = sample.read("train")
    parts = np.array_split(np.arange(len(labels)), 5)
    for layout, to_bytes in (
        (cifar10.BINARY, sample.binary_records),
        (cifar10.PYTHON, sample.pickled_batch),
    ):
        folder = tmp_path / layout.folder
        folder.mkdir()
        for name, part in zip(layout.train, parts, strict=True):
            (folder / name).write_bytes(to_bytes(images[part], labels[part]))
        (folder / layout.test[0]).write_bytes(to_bytes(*sample.read("test")))
        digests = {
            path.name: hashlib.new(layout.algorithm, path.read_bytes()).hexdigest()
            for path in folder.iterdir()
        }
        name = "BINARY" if layout is cifar10.BINARY else "PYTHON"
        monkeypatch.setattr(cifar10, name, replace(layout, digests=digests))
    return tmp_path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with no data, no data in the environment, and no way to download."""
    monkeypatch.delenv(dataset.DATA_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(cifar10, "ARCHIVE_URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    place = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("layout", ["cifar-10-batches-bin", "cifar-10-batches-py"])
def test_both_official_layouts_give_the_same_images(small_cifar10: Path, layout: str) -> None:
    source = dataset.find(small_cifar10 / layout)
    images, labels = sample.read("train")
    train, test = source.load_train(), source.load_test()
    assert np.array_equal(train.images.numpy(), images)
    assert np.array_equal(train.labels.numpy(), labels)
    assert np.array_equal(test.images.numpy(), sample.read("test")[0])
    assert list(source.classes) == sample.class_names()


def test_the_named_folder_comes_before_the_variable_and_that_before_the_default(
    small_cifar10: Path, image_folder: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(image_folder, elsewhere / "data")
    assert dataset.find(None).place == Path("data")
    monkeypatch.setenv(dataset.DATA_DIR_VARIABLE, str(small_cifar10))
    assert dataset.find(None).place == small_cifar10 / "cifar-10-batches-bin"
    assert dataset.find(image_folder).place == image_folder


def _make_nothing(_: Path) -> None:
    pass


def _make_file(place: Path) -> None:
    place.write_text("no folder")


def _make_folder_of_text(place: Path) -> None:
    place.mkdir()
    (place / "notes.txt").write_text("no image")


def _make_one_class(place: Path) -> None:
    (place / "cat").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_make_nothing, "no such folder"),
        (_make_file, "is not a folder"),
        (_make_folder_of_text, "holds no pictures; needed are two or more folders"),
        (_make_one_class, "holds a folder cat; needed are two or more folders"),
    ],
)
def test_a_named_place_without_a_data_set_is_not_passed_over(
    make: Callable[[Path], None],
    said: str,
    image_folder: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(image_folder, elsewhere / "data")
    monkeypatch.setenv(dataset.DATA_DIR_VARIABLE, str(image_folder))
    make(Path("my-imges"))
    with pytest.raises(DataError, match=f"^my-imges: {said}"):
        dataset.find(Path("my-imges"))


def _write(place: Path, *files: str) -> None:
    """Write pictures and other files, whose content nobody reads."""
    for file in files:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(b"")


COCO = "is annotated for boxes or masks \\({}\\): yolo learns boxes, unet masks"
YOLO = "{}: YOLO's text format is not read; COCO JSON is"
VOC = "{}: Pascal VOC's XML is not read; COCO JSON is"


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("train.json", "test.json", "images/1.png"), COCO.format("train.json")),
        (("annotations.json", "images/1.png"), COCO.format("annotations.json")),
        (
            ("train.json", "val.json", "train/1.png", "val/2.png"),
            COCO.format("train.json"),
        ),
        (
            ("annotations/instances_train2017.json", "train2017/1.png", "val2017/2.png"),
            COCO.format("annotations/instances_train2017.json"),
        ),
        (
            (
                "train/_annotations.coco.json",
                "train/images/1.png",
                "test/_annotations.coco.json",
                "test/images/2.png",
            ),
            COCO.format("train/_annotations.coco.json"),
        ),
        (
            ("images/1.png", "masks/1.png"),
            r"has masks of its pictures \(masks\): unet learns them",
        ),
        (("images/1.png", "labels/1.txt"), YOLO.format(r"labels/\*\.txt")),
        (("images/train/1.png", "labels/train/1.txt"), YOLO.format(r"labels/train/\*\.txt")),
        (
            ("train/images/1.png", "train/labels/1.txt", "test/images/2.png", "test/labels/2.txt"),
            YOLO.format(r"t\w+/labels/\*\.txt"),
        ),
        (
            ("JPEGImages/1.png", "Annotations/1.xml", "SegmentationClass/1.png"),
            VOC.format(r"Annotations/\*\.xml"),
        ),
        (
            ("cat/notes.txt",),
            "holds a folder cat; needed are .* or, for yolo and unet, annotated pictures: COCO",
        ),
    ],
)
def test_annotated_pictures_are_not_taken_for_classes(files: tuple[str, ...], said: str) -> None:
    _write(Path("my-set"), *files)
    with pytest.raises(DataError, match=f"^my-set: {said}"):
        dataset.find(Path("my-set"))


def test_a_json_beside_class_folders_is_in_nobodys_way(image_folder: Path, elsewhere: Path) -> None:
    folder = shutil.copytree(image_folder, elsewhere / "pictures")
    _write(folder, "train.json", "test.json", "annotations.json")
    assert len(dataset.find(folder).classes) == 10


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_make_nothing, "no such folder"),
        (_make_file, "is not a folder"),
        (_make_folder_of_text, "holds no data set; --data-dir names the folder of one, and `conv"),
        (_make_one_class, "holds a folder cat; needed are two or more folders"),
    ],
)
def test_the_variables_place_without_a_data_set_is_not_passed_over(
    make: Callable[[Path], None],
    said: str,
    image_folder: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(image_folder, elsewhere / "data")
    monkeypatch.setenv(dataset.DATA_DIR_VARIABLE, "my-imges")
    make(Path("my-imges"))
    with pytest.raises(DataError, match=f"^CONVSCOPE_DATA_DIR=my-imges: {said}"):
        dataset.find(None, download=False)


def test_a_named_folder_whose_classes_lie_in_no_split_is_not_passed_over(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(dataset.DATA_DIR_VARIABLE, str(image_folder))
    assert dataset.find(image_folder / "train").place == image_folder / "train"


def test_nothing_is_downloaded_where_that_was_not_allowed(
    publisher: Path, elsewhere: Path, small_cifar10: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(publisher, small_cifar10, monkeypatch)
    with pytest.raises(DataError, match=r"^data: holds no data set; .* fetches CIFAR-10"):
        dataset.find(None, download=False)
    assert list(elsewhere.iterdir()) == []


def test_nothing_is_downloaded_into_a_named_folder(
    publisher: Path, small_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(publisher, small_cifar10, monkeypatch)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=f"^{empty}: holds no pictures"):
        dataset.find(empty)
    assert list(empty.iterdir()) == []


def test_a_link_of_the_official_name_is_followed(small_cifar10: Path, tmp_path: Path) -> None:
    folder = tmp_path / "linked" / cifar10.BINARY.folder
    folder.parent.mkdir()
    (small_cifar10 / cifar10.BINARY.folder).rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert dataset.find(folder.parent).place == folder


@pytest.mark.parametrize("damage", ["changed", "short", "missing"])
@pytest.mark.parametrize("layout", [cifar10.BINARY, cifar10.PYTHON])
def test_a_damaged_file_is_named_with_both_hashes(
    small_cifar10: Path, layout: cifar10.Layout, damage: str
) -> None:
    path = small_cifar10 / layout.folder / layout.train[2]
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        changed = bytes([content[0] ^ 1]) + content[1:]
        path.write_bytes(changed if damage == "changed" else content[:-1])
    current = cifar10.BINARY if layout.folder == cifar10.BINARY.folder else cifar10.PYTHON
    with pytest.raises(DataError) as caught:
        dataset.find(small_cifar10 / layout.folder)
    message = str(caught.value)
    assert str(path) in message
    assert current.digests[path.name] in message
    if damage != "missing":
        found = hashlib.new(layout.algorithm, path.read_bytes()).hexdigest()
        assert found in message


def test_offline_the_error_names_the_place(elsewhere: Path) -> None:
    with pytest.raises(DataError, match=r"^data: holds no data set, .* cannot be downloaded"):
        dataset.find(None)
    assert list(elsewhere.iterdir()) == []


def test_a_pickle_that_builds_anything_else_is_refused() -> None:
    with pytest.raises(DataError, match="not allowed"):
        cifar10.PYTHON.parse(b"cposix\nsystem\n(S'true'\ntR.")


def test_the_known_hashes_are_those_of_the_real_files(real_cifar10: dataset.Source) -> None:
    train = real_cifar10.load_train()
    chosen, held = dataset.split_holdout(train.labels, 0.1, seed=0)
    assert (len(chosen), len(held)) == (45_000, 5_000)
    assert torch.bincount(train.labels[held]).tolist() == [500] * 10
    mean, deviation = dataset.channel_statistics(train.images)
    assert [round(value, 4) for value in mean] == [0.4914, 0.4822, 0.4465]
    assert [round(value, 4) for value in deviation] == [0.2470, 0.2435, 0.2616]


def test_an_image_folder_brings_its_own_classes_and_any_size(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, level in (("dark", 10), ("light", 240)):
            path = tmp_path / split / name / "a.png"
            path.parent.mkdir(parents=True)
            Image.new("L", (50, 40), level).save(path)
    source = dataset.find(tmp_path)
    train = source.load_train()
    assert source.classes == ("dark", "light")
    assert train.images.shape == (2, 32, 32, 3)
    assert train.images[:, 5, 5, 0].tolist() == [10, 240]
    assert train.labels.tolist() == [0, 1]


def test_a_folder_is_decoded_once_however_often_it_is_read(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []

    def recorded(content: bytes, *more: Any) -> Any:
        decoded.append(content)
        return decode(content, *more)

    monkeypatch.setattr(class_folders, "decode", recorded)
    source = dataset.find(image_folder)
    assert source.load_train() is source.load_train()
    assert source.load_test() is source.load_test()
    assert len(decoded) == 240 + 80


def test_a_file_name_need_not_be_unicode(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(image_folder, folder)
    picture = next((folder / "train" / "cat").iterdir())
    picture.rename(os.fsdecode(os.fsencode(picture.parent) + b"/k\xe4tzchen.png"))
    assert len(dataset.find(folder).load_train()) == 240


def test_a_file_that_is_no_image_is_left_out_and_named(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(image_folder, folder)
    bad = folder / "train" / "cat" / "zz.png"
    bad.write_bytes(b"no image")
    found = dataset.find(folder)
    assert found.findings is not None
    (told,) = map(str, found.findings.left_out)
    assert told.startswith("train/cat/zz.png: not an image in a known format")
    assert len(found.load_train()) == 240


def test_a_folder_without_a_test_split_is_not_passed_over(
    image_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_folder / "train", tmp_path / "train")
    with pytest.raises(DataError, match=f"{tmp_path}: holds a folder train, but train and test"):
        dataset.find(tmp_path)


def test_hidden_files_and_folders_are_not_pictures(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(image_folder, folder)
    (folder / "train" / "cat" / ".DS_Store").write_bytes(b"no image")
    (folder / "train" / ".hidden").mkdir()
    assert dataset.find(folder).sha256 == dataset.find(image_folder).sha256
    assert len(dataset.find(folder).load_train()) == 240


class _SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of the archive that a real HTTP server gives away in place of the official one."""
    folder = tmp_path / "published"
    folder.mkdir()
    handler = partial(_SilentHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
        monkeypatch.setattr(cifar10, "ARCHIVE_URL", url)
        yield folder / "cifar-10-binary.tar.gz"
        server.shutdown()


def _publish(archive: Path, cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(archive, "w:gz") as file:
        file.add(cifar / cifar10.BINARY.folder, cifar10.BINARY.folder)
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())


def test_an_archive_is_downloaded_when_nothing_is_found(
    publisher: Path, small_cifar10: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(publisher, small_cifar10, monkeypatch)
    source = dataset.find(None)
    assert source.place == Path("data") / cifar10.BINARY.folder
    assert np.array_equal(source.load_train().images.numpy(), sample.read("train")[0])


def test_what_keeps_an_archive_from_being_written_is_said(
    publisher: Path, small_cifar10: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(publisher, small_cifar10, monkeypatch)
    with files_of_at_most(100_000), pytest.raises(DataError, match="File too large"):
        dataset.find(None)


def test_an_archive_that_is_not_the_official_one_is_named_with_both_hashes(
    publisher: Path,
) -> None:
    publisher.write_bytes(b"something else")
    with pytest.raises(DataError) as caught:
        dataset.find(None)
    assert hashlib.md5(b"something else").hexdigest() in str(caught.value)
    assert cifar10.ARCHIVE_MD5 in str(caught.value)


def test_splits_with_other_classes_are_refused(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(image_folder, folder)
    (folder / "test" / "cat").rename(folder / "test" / "lynx")
    with pytest.raises(DataError, match="lynx"):
        dataset.find(folder)


def test_the_holdout_takes_the_same_part_of_every_class() -> None:
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 10)
    chosen, held = dataset.split_holdout(labels, 0.2, seed=1)
    assert torch.bincount(labels[held]).tolist() == [20, 10, 2]
    assert sorted([*chosen.tolist(), *held.tolist()]) == list(range(160))


def test_the_seed_alone_decides_what_is_held_out() -> None:
    labels = torch.arange(10).repeat(50)
    first, again, other = (dataset.split_holdout(labels, 0.1, seed)[1] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_holdout_trains_on_all() -> None:
    chosen, held = dataset.split_holdout(torch.arange(10).repeat(5), 0.0, seed=0)
    assert (len(chosen), len(held)) == (50, 0)


@pytest.mark.parametrize(
    ("holdout", "counts", "said", "works"),
    [
        (0.05, (8, 8, 8), "holdout 0.05 of 24 images holds out none", 0.07),
        (0.9, (3, 40), "holdout 0.9 leaves class 0 none of its 3 images", 0.17),
        (0.1, (4, 1), "holdout 0.1 of 5 images holds out none", 0),
    ],
)
def test_a_holdout_that_does_not_fit_is_refused_with_one_that_does(
    holdout: float, counts: Sequence[int], said: str, works: float
) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    with pytest.raises(DataError, match=f"^{said}; --holdout {works} ") as caught:
        dataset.split_holdout(labels, holdout, seed=0)
    _, held = dataset.split_holdout(labels, works, seed=0)
    assert len(labels[held].unique()) == (len(counts) if works else 0), caught.value


def test_channel_statistics_are_numpys() -> None:
    images, _ = sample.read("train")
    mean, deviation = dataset.channel_statistics(torch.from_numpy(images))
    scaled = images.reshape(-1, 3) / 255
    assert np.allclose(mean, scaled.mean(0), atol=1e-12)
    assert np.allclose(deviation, scaled.std(0), atol=1e-12)


def test_a_channel_that_is_everywhere_the_same_becomes_zeros() -> None:
    images = torch.from_numpy(sample.read("train")[0].copy())
    images[..., 2] = 200
    normalized = dataset.normalize(images, *dataset.channel_statistics(images))
    assert normalized[:, 2].abs().max() < 1e-4
    assert torch.allclose(normalized[:, :2].std((0, 2, 3)), torch.ones(2), atol=1e-4)


def test_normalized_images_have_mean_zero_and_deviation_one() -> None:
    images = torch.from_numpy(sample.read("train")[0])
    normalized = dataset.normalize(images, *dataset.channel_statistics(images))
    assert normalized.shape == (240, 3, 32, 32)
    assert normalized.dtype == torch.float32
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(normalized.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(normalized.std((0, 2, 3)), torch.ones(3), atol=1e-4)
