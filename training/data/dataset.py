"""Images in memory: finding, verifying, splitting and normalising them.

CIFAR-10 is read from either of its official layouts; every file is checked against its known hash
before it is parsed. Folders of pictures serve as well, `{train,test}/<class>/**` or `<class>/**`.
Only `training.evaluate` may call `Source.load_test`. Nothing here knows of networks.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from app.commands import printable
from training.data import cifar10, scenes
from training.data.class_folders import (
    ClassFolders,
    LeftOut,
    Pictures,
    class_folders,
    first_of_same,
    first_told,
    holds_pictures,
    read_class_folders,
)
from training.errors import DataError

DATA_DIR_VARIABLE = "CONVSCOPE_DATA_DIR"
DEFAULT_DATA_DIR = Path("data")
IMAGE_SIZE = (32, 32)
TEST_PART = 0.2
TEST_SEED = 0
"""The test images of class folders that lie in no `train` and `test`: always the same part."""

MOST_LISTED = 10
"""How many folders an error names."""

_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
_NEEDED = (
    "needed are two or more folders of pictures, one for each class; or train and test with such "
    f"folders; or {cifar10.BINARY.folder}; or, for yolo and unet, annotated pictures: COCO JSON, "
    "or a mask for each"
)
LEAST_DEVIATION = 1 / 255
"""The deviation of a constant channel, which becomes zeros instead of a division by zero."""


@dataclass(frozen=True)
class Split:
    """Images uint8 `[N,32,32,3]` RGB and labels int64 `[N]`, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Split":
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "Split":
        """Return the same images on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Findings:
    """The pictures of a folder before they are learned from.

    Attributes:
        train: number of training images by label, those to hold out included.
        test: number of test images by label.
        test_files: of each test image, relative to the folder.
        repeated: number of test images with the pixels of a training image.
        left_out: what lies beside them and is not read.
    """

    train: list[int]
    test: list[int]
    test_files: tuple[Path, ...]
    repeated: int
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class Source:
    """A data set that was found and verified; pictures in class folders are decoded already.

    Attributes:
        name: `cifar-10`, or the folder's name.
        place: the data set's folder.
        classes: names by label.
        sha256: over the digests of all its files, in order.
        load_train: reads the training split.
        load_test: reads the test split; only `training.evaluate` may call it.
        findings: in a folder of pictures. The files of CIFAR-10 are known.
    """

    name: str
    place: Path
    classes: tuple[str, ...]
    sha256: str
    load_train: Callable[[], Split]
    load_test: Callable[[], Split]
    findings: Findings | None = None

    def __str__(self) -> str:
        """Return its place, which ends with its name if it is a folder of pictures."""
        place = printable(self.place)
        return place if self.findings else f"{self.name} in {place}"


def place_of(data_dir: Path | None) -> Path:
    """Return the place that is looked in: `data_dir`, else `CONVSCOPE_DATA_DIR`, else `./data`."""
    return data_dir or Path(os.environ.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR)


def find(data_dir: Path | None, *, download: bool = True) -> Source:
    """Find a data set in one place: `data_dir`, else `CONVSCOPE_DATA_DIR`, else `./data`.

    Args:
        data_dir: the only place to look in, if it is named.
        download: fetch CIFAR-10 into the other places if they hold no folders and no pictures.

    Raises:
        DataError: the place does not exist or holds no data set, a file differs from its known
            hash, or a class cannot be learned. The message names the place.
    """
    variable = os.environ.get(DATA_DIR_VARIABLE)
    place = place_of(data_dir)
    shown = printable(place)
    if variable and not data_dir:
        shown = f"{DATA_DIR_VARIABLE}={shown}"
    try:
        if (data_dir or variable) and not place.is_dir():
            raise DataError(f"{shown}: {'is not a folder' if place.exists() else 'no such folder'}")
        if (found := _open_unless_annotated(place, shown)) is not None:
            return found
        if content := _other_content(place):
            raise DataError(f"{shown}: holds {content}; {_NEEDED}")
    except OSError as exc:
        raise DataError(f"{shown}: {exc}") from exc
    if data_dir:
        raise DataError(f"{shown}: holds no pictures; {_NEEDED}")
    if not download:
        raise DataError(
            f"{shown}: holds no data set; --data-dir names the folder of one, and "
            "`convscope-train data` fetches CIFAR-10"
        )
    cifar10.download(place)
    return _open_cifar10(place / cifar10.BINARY.folder, cifar10.BINARY)


def split_holdout(labels: Tensor, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Choose the images to hold out, the same part of every class.

    Args:
        labels: int64 `[N]`.
        holdout: the part of each class, 0 to below 1, rounded to whole images.
        seed: decides the choice.

    Returns:
        Indices of the images to train on and of the images held out, int64, both ascending.

    Raises:
        DataError: a class keeps no image to train on, or nothing is held out although `holdout` is
            above zero. Names a part that works.
    """
    generator = torch.Generator().manual_seed(seed)
    held = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        count = round(holdout * len(members))
        if count == len(members):
            raise DataError(
                f"holdout {holdout} leaves class {label} none of its {len(members)} images; "
                f"{_advice(labels)}"
            )
        held.append(members[torch.randperm(len(members), generator=generator)[:count]])
    heldout = torch.cat(held).sort().values
    if holdout > 0 and len(heldout) == 0:
        raise DataError(
            f"holdout {holdout} of {len(labels)} images holds out none; {_advice(labels)}"
        )
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[heldout] = False
    return mask.nonzero().squeeze(1), heldout


def _advice(labels: Tensor) -> str:
    """Name the smallest part, in whole percent, that holds out and leaves images of each class."""
    counts = labels.unique(return_counts=True)[1].tolist()
    for part in (percent / 100 for percent in range(1, 100)):
        if all(0 < round(part * count) < count for count in counts):
            return f"--holdout {part} is the smallest that holds out images of each class"
    return "--holdout 0 trains on all of them"


def split_distinct(images: Split, part: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split as `split_holdout` does, with images of the same pixels on one side.

    An image counts for the class of the first one with its pixels.
    """
    first = torch.from_numpy(first_of_same(images.images.numpy()))
    firsts = (first == torch.arange(len(first))).nonzero().squeeze(1)
    _, chosen = split_holdout(images.labels[firsts], part, seed)
    mask = torch.isin(first, firsts[chosen])
    return (~mask).nonzero().squeeze(1), mask.nonzero().squeeze(1)


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Return each channel's mean and standard deviation over uint8 `[N,H,W,3]`, scaled to 0..1."""
    return channel_statistics_of([images])


def channel_statistics_of(batches: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """As `channel_statistics`, over batches of any sizes."""
    total = torch.zeros(3, 256, dtype=torch.float64)
    for images in batches:
        for channel in range(3):
            values = images[..., channel].flatten()
            total[channel] += torch.bincount(values, minlength=256).cpu().double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for counts in total:
        mean = (counts * levels).sum() / counts.sum()
        variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
        means.append(mean.item())
        deviations.append(max(variance.sqrt().item(), LEAST_DEVIATION))
    return means, deviations


def normalize(images: Tensor, mean: list[float], deviation: list[float]) -> Tensor:
    """Return float32 `[N,3,H,W]` (channels last in memory) from uint8 `[N,H,W,3]`.

    `(x / 255 - mean) / deviation` for each channel.
    """
    scale = 1 / (255 * torch.tensor(deviation))
    shift = torch.tensor(mean) / torch.tensor(deviation)
    # Each image is one row: arithmetic on rows of three channels is several times slower.
    pixels = images.shape[1] * images.shape[2]
    scale, shift = (part.to(images.device).repeat(pixels) for part in (scale, shift))
    rows = images.flatten(1).float().mul_(scale).sub_(shift)
    return rows.view(images.shape).permute(0, 3, 1, 2)


def _other_content(place: Path) -> str:
    """Return a place's folders or pictures that are not a data set's, or an empty string."""
    folders = class_folders(place) if place.is_dir() else []
    if folders:
        return _listed(folders)
    return "pictures in no folder" if holds_pictures(place) else ""


def _open_unless_annotated(place: Path, shown: str) -> Source | None:
    """As `_open`.

    Raises:
        DataError: there are annotations instead of classes; or as `_open`.
    """
    told, sure = scenes.annotations_in(place) if place.is_dir() else ("", False)
    try:
        found = None if sure else _open(place)
    except DataError:
        if not told:
            raise
        found = None
    if found is None and told:
        raise DataError(f"{shown}: {told}")
    return found


def _open(place: Path) -> Source | None:
    for layout in (cifar10.BINARY, cifar10.PYTHON):
        for folder in (place / layout.folder, place):
            if layout.folder in {folder.name, folder.resolve().name} and folder.is_dir():
                return _open_cifar10(folder, layout)
    folders = class_folders(place) if place.is_dir() else []
    if {"train", "test"} <= set(folders):
        return _open_splits(place)
    splits = [
        name for name in folders if name.casefold() in _SPLITS and class_folders(place / name)
    ]
    if splits:
        raise DataError(
            f"{printable(place)}: holds {_listed(splits)}, but train and test are needed"
        )
    if sum(holds_pictures(place / name) for name in folders) < 2:
        return None
    return _open_classes(place)


def _open_cifar10(folder: Path, layout: cifar10.Layout) -> Source:
    digest = layout.verify(folder)

    def load(files: tuple[str, ...]) -> Split:
        images, labels = layout.read(folder, files)
        return Split(torch.from_numpy(images), torch.from_numpy(labels))

    return Source(
        name="cifar-10",
        place=folder,
        classes=cifar10.CLASSES,
        sha256=digest,
        load_train=partial(load, layout.train),
        load_test=partial(load, layout.test),
    )


def _open_splits(place: Path) -> Source:
    found = read_class_folders(place, IMAGE_SIZE, "train", "test")
    train, test = map(_split, found.splits)
    return _source(place, found, train, test, found.splits[1].files)


def _open_classes(place: Path) -> Source:
    """Split class folders always in the same way, as no folder says what to test with."""
    found = read_class_folders(place, IMAGE_SIZE)
    images = _split(found.splits[0])
    train, test = split_distinct(images, TEST_PART, TEST_SEED)
    files = found.splits[0].files
    test_files = tuple(files[index] for index in test.tolist())
    return _source(place, found, images[train], images[test], test_files)


def _source(
    place: Path, found: ClassFolders, train: Split, test: Split, test_files: tuple[Path, ...]
) -> Source:
    train_counts, test_counts = (
        split.labels.bincount(minlength=len(found.classes)).tolist() for split in (train, test)
    )
    return Source(
        name=printable(place.resolve().name),
        place=place,
        classes=found.classes,
        sha256=found.sha256,
        load_train=lambda: train,
        load_test=lambda: test,
        findings=Findings(
            train_counts, test_counts, test_files, _repeated(train, test), found.left_out
        ),
    )


def _repeated(train: Split, test: Split) -> int:
    first = first_of_same(torch.cat((train.images, test.images)).numpy())
    return int((first[len(train) :] < len(train)).sum())


def _split(pictures: Pictures) -> Split:
    return Split(torch.from_numpy(pictures.images), torch.from_numpy(pictures.labels))


def _listed(folders: list[str]) -> str:
    names = ", ".join(first_told([*map(printable, folders)], MOST_LISTED))
    return f"a folder {names}" if len(folders) == 1 else f"the folders {names}"
