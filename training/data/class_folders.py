"""Pictures in class folders, `<class>/**`: found, told of and decoded.

A file that cannot be learned from is left out and told of. A class that cannot be learned is a
fault, and all faults are raised together. Nothing here knows of torch.
"""

import hashlib
import mimetypes
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.artifact.manifest import composed
from app.commands import printable
from app.errors import ImageError
from app.images import RgbImage
from app.images.decode import begins_like_image, decode
from training.errors import DataError

MAX_PIXELS = 100_000_000
"""The most pixels of a picture: more than the service's default, as the files are one's own."""

MAX_BYTES = 1 << 28
"""The largest file that is read."""

LEAST_DISTINCT = 3
"""The fewest different pictures of a class that can be split: one of them becomes a test image."""

MOST_TOLD = 20
"""How many faults, or files that were left out, are told one by one."""

_OF_SYSTEMS = (".DS_Store", "._*", "__MACOSX", "Thumbs.db", "desktop.ini")
"""Files of macOS and Windows beside those of the user."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of one folder of classes, by class and file.

    Attributes:
        images: uint8 `[N,H,W,3]`.
        labels: int64 `[N]`.
        files: relative to the data set's folder.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not learned from.

    Attributes:
        path: relative to the data set's folder.
        class_name: the class in whose folder it lies, or an empty string.
        reason: why it was left out.
    """

    path: Path
    class_name: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.reason}")


@dataclass(frozen=True)
class ClassFolders:
    """The pictures of a data set.

    Attributes:
        classes: names by label.
        splits: one for each folder of classes.
        sha256: over names and contents of all pictures, in order.
        left_out: files and folders beside them.
    """

    classes: tuple[str, ...]
    splits: tuple[Pictures, ...]
    sha256: str
    left_out: tuple[LeftOut, ...]


def read_class_folders(place: Path, size: tuple[int, int], *splits: str) -> ClassFolders:
    """Decode every picture as the service does, so that training and serving see the same.

    Args:
        place: the data set's folder.
        size: height and width in pixels of every image.
        splits: its folders of classes; without any, it holds the classes itself, and each of them
            needs enough pictures to be split.

    Raises:
        DataError: a class has no pictures, is not in every split or has a name that is not UTF-8,
            or there are fewer than two classes. Names every fault, or the first `MOST_TOLD`.
    """
    return _Reader(place, size).read(splits)


def class_folders(place: Path) -> list[str]:
    """Return the names of the folders that would be classes, in order."""
    folders = (path.name for path in place.iterdir() if path.is_dir())
    return sorted(name for name in folders if not name.startswith(".") and not is_of_system(name))


def holds_pictures(folder: Path) -> bool:
    """Return whether a file in a folder, or below it, is named like a picture or begins like one.

    A folder that may not be read could hold some.
    """
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        return True
    return any(is_like_picture(path) for path, reason in _below(folder) if not reason)


def first_of_same(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return for each image the index of the first one with the same pixels, int64 `[N]`."""
    first: dict[bytes, int] = {}
    digests = (hashlib.blake2b(image.tobytes()).digest() for image in images)
    return np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], np.int64)


def first_told(told: Sequence[object], most: int = MOST_TOLD) -> list[str]:
    """Return the first `most` as text, and how many more there are."""
    more = [f"and {len(told) - most:,} more"] if len(told) > most else []
    return [*map(str, told[:most]), *more]


def folded(left_out: Sequence[LeftOut], *, by_class: bool = False) -> list[str]:
    """Return a line for each reason, the most frequent first, with the first file that has it.

    Args:
        left_out: files. Reasons that differ in numbers alone are one.
        by_class: whether those of two classes differ.
    """
    kinds = [
        (item.class_name if by_class else "", re.sub(r"[0-9]+", "0", item.reason))
        for item in left_out
    ]
    first = dict(zip(reversed(kinds), reversed(left_out), strict=True))
    return [
        f"{first[kind]}{f' (and {count - 1:,} more like it)' if count > 1 else ''}"
        for kind, count in Counter(kinds).most_common()
    ]


class _Reader:
    """Collects the faults of a data set and the files that it leaves out."""

    def __init__(self, place: Path, size: tuple[int, int]) -> None:
        self._place = place
        self._size = size
        self._faults: list[str] = []
        self._left_out: list[LeftOut] = []
        self._digest = hashlib.sha256()

    def read(self, splits: Sequence[str]) -> ClassFolders:
        if splits:
            self._leave_out_others(splits)
        folders = [self._find_classes(self._place / split) for split in splits or ("",)]
        classes = sorted(set().union(*folders))
        if len(classes) < 2:
            self._faults.append(f"{len(classes)} classes; at least 2 are needed")
        pictures = tuple(
            self._read_split(split, classes, found)
            for split, found in zip(splits or ("",), folders, strict=True)
        )
        if not splits:
            self._check_enough(classes, pictures[0])
        if self._faults:
            told = first_told([*self._faults, *folded(self._left_out, by_class=True)])
            raise DataError(f"{printable(self._place)}: cannot be trained on", told)
        return ClassFolders(
            tuple(classes), pictures, self._digest.hexdigest(), tuple(self._left_out)
        )

    def _leave_out_others(self, splits: Sequence[str]) -> None:
        for path in sorted(self._place.iterdir()):
            if path.name not in splits and not is_of_system(path.name):
                self._leave_out(path, f"is not in {' or '.join(splits)}")

    def _find_classes(self, place: Path) -> dict[str, list[Path]]:
        """Return the folders of each class by its name; two spellings of one name are one class."""
        found: dict[str, list[Path]] = {}
        for path in sorted(place.iterdir()):
            if is_of_system(path.name):
                continue
            if path.name.startswith(".") or not path.is_dir():
                self._leave_out(path, _reason(path) or "lies in no class folder")
                continue
            found.setdefault(composed(path.name), []).append(path)
        return found

    def _read_split(
        self, split: str, classes: Sequence[str], found: dict[str, list[Path]]
    ) -> Pictures:
        images: list[RgbImage] = []
        labels: list[int] = []
        files: list[Path] = []
        for label, name in enumerate(classes):
            where = printable(Path(split, name))
            if not _is_utf8(name):
                self._faults.append(f"{where}: the name is not UTF-8")
            if name not in found:
                self._faults.append(f"{where}: no such folder")
                continue
            pictures = [one for folder in found[name] for one in self._read_class(folder, name)]
            if not pictures:
                self._faults.append(f"{where}: holds no pictures")
            files.extend(file for file, _ in pictures)
            images.extend(image for _, image in pictures)
            labels.extend([label] * len(pictures))
        stacked = np.array(images, np.uint8).reshape(-1, *self._size, 3)
        return Pictures(stacked, np.array(labels, np.int64), tuple(files))

    def _read_class(self, folder: Path, name: str) -> list[tuple[Path, RgbImage]]:
        pictures = []
        for path, reason in sorted(_below(folder)):
            if reason:
                self._leave_out(path, reason, name)
                continue
            try:
                content = path.read_bytes()
                image = decode(content, self._size, MAX_PIXELS)
            except (ImageError, OSError) as exc:
                self._leave_out(path, said(exc), name)
                continue
            file = path.relative_to(self._place)
            pictures.append((file, image))
            self._digest.update(os.fsencode(file))
            self._digest.update(hashlib.sha256(content).digest())
        return pictures

    def _check_enough(self, classes: Sequence[str], pictures: Pictures) -> None:
        first = first_of_same(pictures.images) == np.arange(len(pictures.images))
        for label, name in enumerate(classes):
            members = pictures.labels == label
            count = np.sum(members)
            if count > 0 and (distinct := np.sum(first[members])) < LEAST_DISTINCT:
                self._faults.append(
                    f"{printable(name)}: {count} pictures, of which {distinct} differ from each "
                    f"other and from those of earlier classes; a split needs {LEAST_DISTINCT}"
                )

    def _leave_out(self, path: Path, reason: str, class_name: str = "") -> None:
        self._left_out.append(LeftOut(path.relative_to(self._place), class_name, reason))


def _below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file below a folder, with the reason to leave it out or an empty string.

    Folders in folders are entered, each once and none above: a link may lead back.
    """
    whole = folder.resolve()
    waiting, entered = [folder], {whole, *whole.parents}
    while waiting:
        here = waiting.pop()
        try:
            paths = sorted(here.iterdir())
        except OSError as exc:
            yield here, said(exc)
            continue
        for path in paths:
            if is_of_system(path.name):
                continue
            reason = _reason(path)
            if reason or not path.is_dir():
                yield path, reason
            elif (target := path.resolve()) in entered:
                yield path, "is a link to a folder that is read already"
            else:
                entered.add(target)
                waiting.append(path)


def is_like_picture(path: Path) -> bool:
    """Ask the name of a file, and its first bytes if the name says nothing."""
    kind, _ = mimetypes.guess_type(path.name, strict=False)
    if kind is not None:
        return kind.startswith("image/")
    try:
        with path.open("rb") as file:
            return begins_like_image(file.read(32))
    except OSError:
        return False


def _reason(path: Path) -> str:
    """Return why a path is neither a folder nor a file to read, or an empty string."""
    if path.name.startswith("."):
        return "is hidden: its name begins with a dot"
    return "" if path.is_dir() else unreadable(path)


def unreadable(path: Path, limit: int = MAX_BYTES) -> str:
    """Return why a path is no file to read, or an empty string.

    Args:
        path: what a folder or an annotation names.
        limit: bytes of the largest file.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return "is a link to nothing" if path.is_symlink() else "no such file"
    except (OSError, ValueError) as exc:  # a name with a zero in it is a ValueError
        return said(exc)
    if stat.S_ISDIR(found.st_mode):
        return "is a folder"
    if not stat.S_ISREG(found.st_mode):
        return "is neither a file nor a folder"
    if found.st_size > limit:
        return f"is {found.st_size:,} bytes; the limit is {limit:,}"
    return ""


def said(error: Exception) -> str:
    """Return an error's sentence, without the path that the operating system adds."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def is_of_system(name: str) -> bool:
    """Return whether an operating system puts files of this name beside those of the user."""
    return any(fnmatch(name, pattern) for pattern in _OF_SYSTEMS)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
