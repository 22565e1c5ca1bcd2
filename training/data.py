"""Images in memory: find them, verify them, split them, cut them into augmented batches.

CIFAR-10 is read from either of its official layouts, every file checked against its known hash
before its content is looked at; a folder in ImageFolder layout (`{train,test}/<class>/*`) serves
as well. Batches are cut and augmented as whole tensors on the device that trains. Only
`training.evaluate` may call `Source.load_test`. Nothing here knows of networks.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.errors import ImageError
from app.images import decode
from training import cifar10
from training.errors import DataError
from training.recipes import Flip

DATA_DIR_VARIABLE = "CONVSCOPE_DATA_DIR"
DEFAULT_DATA_DIR = Path("data")
IMAGE_SIZE = (32, 32)
MAX_PIXELS = 100_000_000


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
class Source:
    """A data set that has been found and verified, its images not yet in memory.

    Attributes:
        name: `cifar-10`, or the folder's name.
        place: the folder that it was found in.
        classes: the names of the classes, by label.
        sha256: over the digests of all its files, in order.
        load_train: reads the training split.
        load_test: reads the test split; for `training.evaluate` alone.
    """

    name: str
    place: Path
    classes: tuple[str, ...]
    sha256: str
    load_train: Callable[[], Split]
    load_test: Callable[[], Split]


def find(data_dir: Path | None) -> Source:
    """Find a data set in `data_dir`, in `CONVSCOPE_DATA_DIR` or in `./data`, in this order.

    Where none of them holds one, CIFAR-10 is downloaded into the first.

    Raises:
        DataError: a file differs from its known hash, or nothing is found and the download fails;
            the message names every place looked in.
    """
    variable = os.environ.get(DATA_DIR_VARIABLE)
    named = [data_dir, Path(variable) if variable else None]
    places = [*filter(None, named), DEFAULT_DATA_DIR]
    try:
        source = next(filter(None, map(_open, places)), None)
        if source is None:
            cifar10.download(places[0])
            source = _open_cifar10(places[0] / cifar10.BINARY.folder, cifar10.BINARY)
    except (DataError, OSError) as exc:
        raise DataError(f"{exc} (looked in: {', '.join(map(str, places))})") from exc
    return source


def split_holdout(labels: Tensor, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Choose images to hold out, the same part of every class.

    Args:
        labels: int64 `[N]`.
        holdout: part of each class, 0 to below 1, rounded to whole images.
        seed: of the choice.

    Returns:
        Indices of the images to train on and of those held out, int64, both ascending.

    Raises:
        DataError: a class is left with no image to train on, or nothing is held out although
            `holdout` is above zero.
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
        counts = torch.bincount(images[..., channel].flatten(), minlength=256).double().cpu()
        mean = (counts * levels).sum() / counts.sum()
        variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
        means.append(mean.item())
        deviations.append(variance.sqrt().item())
    return means, deviations


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied; all off by default.

    Attributes:
        flip: mirror each image with probability one half (`random`), or a random half of them in
            odd epochs and the others in even ones (`alternating`).
        translate: shift by up to this many pixels in each direction, reflected at the border.
        cutout: side in pixels of a square that is covered, its centre anywhere in the image.
        cover: the colour, RGB 0 to 255, that it is covered with.
    """

    flip: Flip = "off"
    translate: int = 0
    cutout: int = 0
    cover: tuple[int, ...] = (0, 0, 0)


@dataclass(frozen=True)
class Epoch:
    """Which pass over the images it is, and what its random numbers hang on.

    Attributes:
        number: the first is 1.
        seed: of the run; it decides which images `alternating` mirrors first.
    """

    number: int
    seed: int

    @property
    def own_seed(self) -> int:
        """A seed for this epoch alone."""
        return self.seed * 100_003 + self.number


def epoch_batches(
    split: Split, batch_size: int, epoch: Epoch, augmentation: Augmentation
) -> Iterator[Split]:
    """Yield every image once, in random order, augmented, uint8 batches `[B,32,32,3]`.

    Flip and translation are one gather: each image has its own row and column indices, mirrored
    or shifted, and reflected back where they leave the image.

    Args:
        split: the images, already on the device that trains.
        batch_size: images a batch; the last may be smaller.
        epoch: decides order and augmentation, on the processor, whatever the device.
        augmentation: how the images are varied.
    """
    generator = torch.Generator().manual_seed(epoch.own_seed)
    count, device = len(split), split.images.device
    height, width = split.images.shape[1:3]
    order = torch.randperm(count, generator=generator)
    rows = _shifted(height, count, augmentation.translate, generator)
    columns = _shifted(width, count, augmentation.translate, generator)
    if augmentation.flip != "off":
        mirrored = _mirrored(order, epoch, augmentation.flip, generator)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    covered = [_covered(size, count, augmentation.cutout, generator) for size in (height, width)]
    order, rows, columns = order.to(device), rows.to(device), columns.to(device)
    covered_rows, covered_columns = (part.to(device) for part in covered)
    cover = torch.tensor(augmentation.cover, dtype=torch.uint8, device=device)
    for start in range(0, count, batch_size):
        chosen = slice(start, start + batch_size)
        index = order[chosen]
        if augmentation.flip != "off" or augmentation.translate:
            images = split.images[
                index[:, None, None], rows[chosen, :, None], columns[chosen, None, :]
            ]
        else:
            images = split.images[index]
        if augmentation.cutout:
            square = covered_rows[chosen, :, None] & covered_columns[chosen, None, :]
            images = torch.where(square[..., None], cover, images)
        yield Split(images, split.labels[index])


def normalize(images: Tensor, mean: list[float], deviation: list[float]) -> Tensor:
    """Return float32 `[N,3,H,W]` (channels last in memory) from uint8 `[N,H,W,3]`.

    `(x / 255 - mean) / deviation` for each channel.
    """
    scale = 1 / (255 * torch.tensor(deviation, device=images.device))
    shift = torch.tensor(mean, device=images.device) / torch.tensor(deviation, device=images.device)
    return (images * scale - shift).permute(0, 3, 1, 2)


def _shifted(size: int, count: int, limit: int, generator: torch.Generator) -> Tensor:
    """Return int64 `[count,size]`: 0..size-1 shifted at random, reflected at both borders."""
    shifts = torch.randint(-limit, limit + 1, (count, 1), generator=generator)
    index = (torch.arange(size) + shifts).abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def _mirrored(order: Tensor, epoch: Epoch, flip: Flip, generator: torch.Generator) -> Tensor:
    """Return bool `[count]`: which images of the order are mirrored in this epoch."""
    if flip == "random":
        return torch.rand(len(order), generator=generator) < 0.5
    first = torch.rand(len(order), generator=torch.Generator().manual_seed(epoch.seed)) < 0.5
    return first[order] ^ (epoch.number % 2 == 0)


def _covered(size: int, count: int, side: int, generator: torch.Generator) -> Tensor:
    """Return bool `[count,size]`: the rows or columns of a square with its centre anywhere."""
    if side == 0:
        return torch.zeros(count, size, dtype=torch.bool)
    start = torch.randint(0, size, (count, 1), generator=generator) - side // 2
    place = torch.arange(size)
    return (place >= start) & (place < start + side)


def _open(place: Path) -> Source | None:
    for layout in (cifar10.BINARY, cifar10.PYTHON):
        for folder in (place / layout.folder, place):
            if folder.resolve().name == layout.folder and folder.is_dir():
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
                digest.update(str(path.relative_to(place)).encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return Source(
        name=place.resolve().name,
        place=place,
        classes=classes,
        sha256=digest.hexdigest(),
        load_train=partial(_read_image_folder, place / "train", classes),
        load_test=partial(_read_image_folder, place / "test", classes),
    )


def _class_folders(place: Path) -> tuple[str, ...]:
    folders = (path for path in place.iterdir() if path.is_dir())
    return tuple(sorted(path.name for path in folders if not path.name.startswith(".")))


def _picture_files(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file())
    return sorted(path for path in files if not path.name.startswith("."))


def _read_image_folder(place: Path, classes: tuple[str, ...]) -> Split:
    """Decode every picture as the service would, so that training and serving see the same."""
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
