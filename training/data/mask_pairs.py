"""Pairs of a picture and an image of its mask, a PNG of the same name.

A palette PNG has the index of a class in each pixel: 0 is the background, 255 counts for nothing.
A grey PNG has the number of an object in each pixel, 0 for the background; all are of one class.
Where all grey masks have one and the same number, 255 as a rule, and most have parts that do not
touch, the number is that of a class.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile
from skimage.measure import label as label_parts

from app.artifact.manifest import composed
from app.commands import printable
from app.images import rle
from app.images.limits import megapixels
from training.data.annotated import (
    NAMES_OF_SPLITS,
    Found,
    Gathering,
    Picture,
    SceneSource,
    objects_of,
)
from training.data.class_folders import MAX_PIXELS, first_told, is_of_system, unreadable

IMAGES = "images"
LABELS = ("labels", "masks", "annotations")
SPLITS_FILE = "splits.json"
CLASSES_FILE = "classes.txt"

MAX_TEXT_BYTES = 1 << 26
"""The largest list of names."""

IGNORED = 255
"""The index of pixels that count for nothing."""

BACKGROUNDS = {"background", "bg", "hintergrund"}
"""Names of the first line of a list that names the background too, without case and underscores."""

MOST_NAMED = 3
"""How many masks of the rarer kind an error names."""

_ONE_CLASS = "object"
_GREY = {"1", "L", "I", "I;16", "I;16B"}


class Layout(NamedTuple):
    """A folder of pictures and one of their masks.

    Attributes:
        split: `train`, `val` or `test`, or `all` where the set is not split by folders.
        images: the pictures.
        labels: the masks.
    """

    split: str
    images: Path
    labels: Path


def find_layouts(place: Path) -> list[Layout]:
    """Recognise the folders of pairs; a folder of masks holds a PNG.

    Raises:
        OSError: a folder cannot be listed.
    """
    if found := list(_pair("all", place)):
        return found
    splits = [
        layout
        for split, names in NAMES_OF_SPLITS.items()
        for name in names
        for layout in _pair(split, place / name)
    ]
    return splits if any(layout.split == "train" for layout in splits) else []


def read_mask_pairs(place: Path, layouts: Sequence[Layout]) -> SceneSource:
    """Read a set of pairs.

    Args:
        place: the set's folder.
        layouts: its folders, as `find_layouts` gives them.

    Raises:
        DataError: there is nothing to learn, masks are of both kinds, or a list of names cannot be
            read. Names every fault, or the first `MOST_TOLD`.
    """
    return _Reader(place).read(layouts)


def _pair(split: str, folder: Path) -> Iterator[Layout]:
    if not (folder / IMAGES).is_dir():
        return
    for name in LABELS:
        if any((folder / name).glob("*.png")) or any((folder / name).glob("*.PNG")):
            yield Layout(split, folder / IMAGES, folder / name)
            return


class _Unusable(Exception):
    """A mask cannot be learned from; the message says why."""


@dataclass(frozen=True)
class _Labels:
    """The numbers in the pixels of a mask, `[H,W]`, and whether they are classes."""

    numbers: NDArray[np.integer[Any]]
    are_classes: bool


@dataclass
class _Silhouettes:
    """Whether grey masks show where objects are, and not which pixel is of which.

    Attributes:
        masks: number of those that are not empty.
        in_parts: number of those of which parts do not touch.
        value: the one number of all of them; None once there are two.
    """

    masks: int = 0
    in_parts: int = 0
    value: int | None = 0

    def add(self, numbers: NDArray[np.integer[Any]]) -> None:
        """Look at a mask that is not empty."""
        highest = int(numbers.max())
        if self.value is None or np.any((numbers != 0) & (numbers != highest)):
            self.value = None
            return
        self.value = highest if self.value in {0, highest} else None
        self.masks += 1
        self.in_parts += int(label_parts(numbers != 0, connectivity=2, return_num=True)[1]) > 1

    @property
    def are_classes(self) -> bool:
        """Whether the number can only be meant as that of a class."""
        return self.value is not None and 2 * self.in_parts > self.masks

    @property
    def note(self) -> str:
        """What a user should know before training, or an empty string."""
        if self.value is None or not self.in_parts:
            return ""
        told = (
            f"every grey mask has one number, {self.value}, and {self.in_parts:,} of "
            f"{self.masks:,} have parts that do not touch: "
        )
        if self.are_classes:
            return told + (
                "it is taken for a class, and objects are not told apart; number the objects 1, 2, "
                "3… for that"
            )
        return told + "all parts in a picture are one object; number the objects 1, 2, 3… if not"


class _Reader:
    """Reads the pairs of each folder, then names their classes and splits them."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._gathering = Gathering(place)
        self._kinds: dict[bool, list[Path]] = {}
        self._silhouettes = _Silhouettes()
        self._highest = 0
        self._names: list[str] | None = None

    def read(self, layouts: Sequence[Layout]) -> SceneSource:
        self._read_names()
        found: dict[str, list[Found]] = {}
        for layout in layouts:
            found.setdefault(layout.split, []).extend(self._pairs(layout))
        if len(self._kinds) > 1:
            self._gathering.faults.append(self._both_kinds())
        if False in self._kinds and (note := self._silhouettes.note):
            self._gathering.notes.append(note)
        classes = self._classes()
        if not self._gathering.faults:
            self._split(found, len(classes))
        if {layout.split for layout in layouts} == {"train"}:
            self._gathering.without_test = (
                f"{layouts[0].images.parent.name} is the only split; with {IMAGES} and "
                f"{layouts[0].labels.name} in the folder itself, they are split"
            )
        are_classes = True in self._kinds or self._silhouettes.are_classes
        return self._gathering.source(
            classes,
            ("segmentation",) if are_classes else ("detection", "segmentation"),
            instances=not are_classes,
            why_not="its masks are of classes, in which objects are not told apart"
            if are_classes
            else "",
        )

    def _both_kinds(self) -> str:
        rare = min(self._kinds, key=lambda kind: len(self._kinds[kind]))
        named = ", ".join(
            first_told([self._gathering.relative(path) for path in self._kinds[rare]], MOST_NAMED)
        )
        said = {True: "palette, one class a number", False: "grey, one object a number"}
        others = len(self._kinds[not rare])
        return (
            f"{named}: {said[rare]}, but {others:,} other{' is' if others == 1 else 's are'} "
            f"{said[not rare]}; one kind is needed"
        )

    def _split(self, found: Mapping[str, list[Found]], classes: int) -> None:
        if "all" not in found:
            self._gathering.scenes.update(found)
            return
        path = self._place / SPLITS_FILE
        if unreadable(path) == "no such file":
            self._gathering.split(found["all"], classes)
        elif (content := self._gathering.read(path, MAX_TEXT_BYTES)) is not None:
            self._split_by_names(path, content, found["all"])

    def _split_by_names(self, path: Path, content: bytes, pairs: Sequence[Found]) -> None:
        names = dict[str, str]()
        self._gathering.faults.extend(
            f"{self._gathering.relative(path)}: {fault}" for fault in _fill_splits(names, content)
        )
        if "test" not in names.values():
            self._gathering.without_test = (
                f"{SPLITS_FILE} names none; without this file, a part is tested with"
            )
        used = set()
        for found in pairs:
            file = found.scene.file
            keys = {*map(composed, (file.name, file.stem, file.as_posix()))} & names.keys()
            if not keys:
                self._gathering.leave_out(self._place / file, f"is in no split of {SPLITS_FILE}")
                continue
            used |= keys
            self._gathering.scenes[names[min(keys)]].append(found)
        told = {item.path.stem for item in self._gathering.left_out}
        for name in sorted(names.keys() - used):
            if Path(name).stem not in told:
                self._gathering.leave_out(path, f"there is no picture {name!r} with a mask")

    def _pairs(self, layout: Layout) -> list[Found]:
        pictures = _by_stem(layout.images)
        masks = _by_stem(layout.labels)
        for stem, paths in masks.items():
            others = [path for path in paths if path.suffix.lower() != ".png"]
            for path in others:
                self._gathering.leave_out(path, "is no PNG")
            masks[stem] = [path for path in paths if path not in others]
        found = []
        for stem in sorted(pictures.keys() | masks.keys()):
            images, labels = pictures.get(stem, []), masks.get(stem, [])
            if len(images) == 1 and len(labels) == 1:
                pair = self._read_pair(images[0], labels[0])
                found.extend([pair] if pair else [])
                continue
            for path in (*images, *labels):
                self._gathering.leave_out(path, _unpaired(layout, path, images, labels))
        return found

    def _read_pair(self, image: Path, label: Path) -> Found | None:
        picture = self._gathering.picture(image)
        if picture is None:
            return None
        content = self._gathering.content(label)
        if content is None:
            return None
        height, width, _ = picture.measured
        try:
            labels = _read_labels(content)
        except _Unusable as exc:
            self._gathering.leave_out(label, str(exc))
            return None
        if labels.numbers.shape != (height, width):
            rows, columns = labels.numbers.shape
            told = f"is {columns}x{rows} pixels, but its picture is {width}x{height}"
            self._gathering.leave_out(label, told)
            return None
        if labels.numbers.any():  # an empty mask may be of either kind
            self._kinds.setdefault(labels.are_classes, []).append(label)
            if not labels.are_classes:
                self._silhouettes.add(labels.numbers)
        if labels.are_classes and (fault := self._beyond(labels.numbers)):
            self._gathering.leave_out(label, fault)
            return None
        return _found(self._place, picture, labels, content)

    def _beyond(self, numbers: NDArray[np.integer[Any]]) -> str:
        """Return what is wrong with the classes of a mask, or an empty string."""
        highest = int(numbers.max(where=numbers != IGNORED, initial=0))
        if self._names is not None and highest > len(self._names):
            return f"has the class {highest}, but {CLASSES_FILE} has {_names(self._names)}"
        self._highest = max(self._highest, highest)
        return ""

    def _read_names(self) -> None:
        path = self._place / CLASSES_FILE
        if unreadable(path) == "no such file":
            return
        content = self._gathering.read(path, MAX_TEXT_BYTES)
        if content is None:
            return
        try:
            lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as exc:
            self._gathering.faults.append(f"{CLASSES_FILE}: is not UTF-8: {exc.reason}")
            return
        self._names = [composed(line.strip()) for line in lines if line.strip()]
        self._gathering.faults.extend(
            f"{CLASSES_FILE}: {name!r} stands there {count} times; once is allowed"
            for name, count in Counter(self._names).items()
            if count > 1
        )

    def _classes(self) -> tuple[str, ...]:
        is_palette = True in self._kinds
        names = self._without_background(self._highest if is_palette else 1)
        if is_palette:
            return tuple(names or (f"class {index + 1}" for index in range(self._highest)))
        if names is not None and len(names) != 1:
            self._gathering.faults.append(
                f"{CLASSES_FILE}: has {_names(names)}; all objects of grey masks are of one class"
            )
        return tuple(names or (_ONE_CLASS,))[:1]

    def _without_background(self, classes: int) -> list[str] | None:
        """Return the names of the classes; the list may name the background first."""
        names = self._names
        if not names or names[0].strip("_").casefold() not in BACKGROUNDS:
            return names
        if len(names) > classes:
            self._gathering.notes.append(
                f"{CLASSES_FILE}: its first line, {printable(names[0])}, names the background, "
                "which is no class"
            )
            return names[1:]
        self._gathering.notes.append(
            f"{CLASSES_FILE}: its first line, {printable(names[0])}, is class 1; the background, "
            "0, has no name there"
        )
        return names


def _names(names: Sequence[str]) -> str:
    return f"{len(names)} name{'' if len(names) == 1 else 's'}"


def _found(place: Path, picture: Picture, labels: _Labels, content: bytes) -> Found:
    regions = rle.encode_each(labels.numbers)
    regions.pop(0, None)
    ignored = regions.pop(IGNORED, None) if labels.are_classes else None
    objects = objects_of(
        [region.box for region in regions.values()],
        [value - 1 if labels.are_classes else 0 for value in regions],
        [False] * len(regions),
        [region.counts for region in regions.values()],
    )
    digests = picture.digest, hashlib.sha256(content).digest()
    counts = None if ignored is None else ignored.counts
    return Found(picture.scene(place, objects, counts), digests)


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a folder by their names without the ending."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if not is_of_system(path.name):
            found.setdefault(composed(path.stem), []).append(path)
    return found


def _unpaired(layout: Layout, path: Path, images: list[Path], labels: list[Path]) -> str:
    """Return why a file is no part of a pair."""
    if path in images and not labels:
        return f"has no PNG of this name in {layout.labels.name}"
    if path in labels and not images:
        return f"has no picture of this name in {layout.images.name}"
    alike = images if len(images) > 1 else labels
    return f"{' and '.join(one.name for one in alike)} have the same name"


def _read_labels(content: bytes) -> _Labels:
    """Return the numbers of a PNG as the file has them, without its palette's colours."""
    try:
        image = PngImageFile(io.BytesIO(content))
        _check_kind(image)
        numbers = np.asarray(image)
    except _Unusable:
        raise
    except Exception as exc:  # Pillow documents no list of what its decoders raise
        raise _Unusable(f"is no PNG, or damaged: {exc or type(exc).__name__}") from exc
    return _Labels(numbers.astype(np.int32), image.mode == "P")


def _check_kind(image: PngImageFile) -> None:
    if image.width * image.height > MAX_PIXELS:
        limit = megapixels(MAX_PIXELS)
        raise _Unusable(f"is {image.width}x{image.height} pixels; the limit is {limit}")
    if image.mode != "P" and image.mode not in _GREY:
        raise _Unusable(f"is of the kind {image.mode}; a palette or grey is needed")


def _fill_splits(names: dict[str, str], content: bytes) -> Iterator[str]:
    """Fill in the split of each name, and yield what is wrong with the file."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as exc:
        yield f"is not JSON: {exc}"
        return
    known = {name: split for split, all_names in NAMES_OF_SPLITS.items() for name in all_names}
    if not isinstance(tree, dict) or not tree.keys() <= known.keys():
        yield 'is not of the form {"train": [...], "val": [...], "test": [...]}'
        return
    for key, listed in tree.items():
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            yield f"{key} is no list of names"
            continue
        for name in map(composed, listed):
            if names.setdefault(name, known[key]) != known[key]:
                yield f"{name!r} is in {names[name]} and in {known[key]}"
