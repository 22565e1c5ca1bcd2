"""Images in memory: finding, verifying, splitting and normalising them.

CIFAR-10 is read from either of its official layouts; every file is checked against its known hash
before it is parsed. A folder in ImageFolder layout (`{train,test}/<class>/*`) serves as well. Only
`training.evaluate` may call `Source.load_test`. Nothing here knows of networks.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.errors import ImageError
from app.images.decode import decode
from training.data import cifar10
from training.errors import DataError

DATA_DIR_VARIABLE = "CONVSCOPE_DATA_DIR"
DEFAULT_DATA_DIR = Path("data")
IMAGE_SIZE = (32, 32)
MAX_PIXELS = 100_000_000
LEAST_DEVIATION = 1 / 255
"""The deviation of a constant channel, which becomes zeros instead of a division by zero."""


@dataclass(frozen=True)
class Split:
    """Images uint8 `[N,32,32,3]` RGB and labels, on one device.

    The labels are int64 `[N]`. To learn from, they can be a teacher's probabilities, float32
    `[N,classes]`.
    """

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
class Source:
    """A data set that was found and verified; its images are not yet in memory.

    Attributes:
        name: `cifar-10`, or the folder's name.
        place: the data set's folder.
        classes: names by label.
        sha256: over the digests of all its files, in order.
        load_train: reads the training split.
        load_test: reads the test split; only `training.evaluate` may call it.
    """

    name: str
    place: Path
    classes: tuple[str, ...]
    sha256: str
    load_train: Callable[[], Split]
    load_test: Callable[[], Split]


def find(data_dir: Path | None, *, download: bool = True) -> Source:
    """Find a data set in `data_dir`, in `CONVSCOPE_DATA_DIR` or in `./data`, in this order.

    Args:
        data_dir: the first place to look in.
        download: fetch CIFAR-10 into the first place if none of them holds a data set.

    Raises:
        DataError: a file differs from its known hash, `data_dir` holds folders that are not a data
            set's, or there is no data set; the message names every place.
    """
    variable = os.environ.get(DATA_DIR_VARIABLE)
    named = [data_dir, Path(variable) if variable else None]
    places = [*filter(None, named), DEFAULT_DATA_DIR]
    try:
        if data_dir is not None:
            _refuse_other_folders(data_dir)
        found = next(filter(None, map(_open, places)), None)
        return found or _fetch(places[0], allowed=download)
    except (DataError, OSError) as exc:
        raise DataError(f"{exc} (looked in: {', '.join(map(str, places))})") from exc


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
            above zero.
    """
    generator = torch.Generator().manual_seed(seed)
    held = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        count = round(holdout * len(members))
        if count == len(members):
            raise DataError(
                f"holdout {holdout} leaves class {label} none of its {len(members)} images"
            )
        held.append(members[torch.randperm(len(members), generator=generator)[:count]])
    heldout = torch.cat(held).sort().values
    if holdout > 0 and len(heldout) == 0:
        raise DataError(f"holdout {holdout} of {len(labels)} images holds out none")
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[heldout] = False
    return mask.nonzero().squeeze(1), heldout


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Return each channel's mean and standard deviation over uint8 `[N,H,W,3]`, scaled to 0..1."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(3):
        counts = torch.bincount(images[..., channel].flatten(), minlength=256).cpu().double()
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


def _fetch(place: Path, *, allowed: bool) -> Source:
    if not allowed:
        raise DataError("found no data set; `convscope-train data` fetches CIFAR-10")
    cifar10.download(place)
    return _open_cifar10(place / cifar10.BINARY.folder, cifar10.BINARY)


def _refuse_other_folders(place: Path) -> None:
    """Raise if `place` itself holds the classes: another data set might be trained on instead."""
    folders = _class_folders(place) if place.is_dir() else ()
    known = {"train", "test", cifar10.BINARY.folder, cifar10.PYTHON.folder}
    if folders and known.isdisjoint(folders):
        raise DataError(
            f"{place}: holds the folders {', '.join(folders[:10])}; needed are train and test, "
            f"with a folder for each class in both, or {cifar10.BINARY.folder}"
        )


def _open(place: Path) -> Source | None:
    for layout in (cifar10.BINARY, cifar10.PYTHON):
        for folder in (place / layout.folder, place):
            if layout.folder in {folder.name, folder.resolve().name} and folder.is_dir():
                return _open_cifar10(folder, layout)
    splits = [split for split in ("train", "test") if (place / split).is_dir()]
    if len(splits) == 1:
        raise DataError(f"{place}: holds a folder {splits[0]}, but train and test are needed")
    return _open_image_folder(place) if splits else None


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


def _open_image_folder(place: Path) -> Source:
    classes = _class_folders(place / "train")
    if len(classes) < 2:
        raise DataError(f"{place / 'train'}: holds {len(classes)} classes; at least 2 are needed")
    if (found := _class_folders(place / "test")) != classes:
        raise DataError(
            f"{place / 'test'}: holds the classes {', '.join(found)}; "
            f"train has {', '.join(classes)}"
        )
    digest = hashlib.sha256()
    for split in ("train", "test"):
        for name in classes:
            for path in _picture_files(place / split / name):
                digest.update(os.fsencode(path.relative_to(place)))
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return Source(
        name=place.resolve().name,
        place=place,
        classes=classes,
        sha256=digest.hexdigest(),
        load_train=cache(partial(_read_image_folder, place / "train", classes)),
        load_test=cache(partial(_read_image_folder, place / "test", classes)),
    )


def _class_folders(place: Path) -> tuple[str, ...]:
    folders = (path for path in place.iterdir() if path.is_dir())
    return tuple(sorted(path.name for path in folders if not path.name.startswith(".")))


def _picture_files(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file())
    return sorted(path for path in files if not path.name.startswith("."))


def _read_image_folder(place: Path, classes: tuple[str, ...]) -> Split:
    """Decode every picture as the service does, so that training and serving see the same."""
    images, labels = [], []
    for label, name in enumerate(classes):
        paths = _picture_files(place / name)
        if not paths:
            raise DataError(f"{place / name}: holds no images")
        for path in paths:
            try:
                images.append(decode(path.read_bytes(), IMAGE_SIZE, MAX_PIXELS))
            except (ImageError, OSError) as exc:
                raise DataError(f"{path}: {exc}") from exc
            labels.append(label)
    return Split(torch.from_numpy(np.stack(images)), torch.tensor(labels))
