"""Annotated pictures: their records, and how a reader gathers them.

A picture or an annotation that cannot be learned from is left out and told of. What makes the whole
set useless is a fault, and all faults are raised together. Pictures stay in their files: a scene
gives its bytes, and `app.images.decode` makes pixels of them, as the service does.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.commands import printable
from app.errors import ImageError
from app.images import RgbImage, rle
from app.images.decode import Measured, decode_whole, measure
from training.data.class_folders import (
    MAX_BYTES,
    MAX_PIXELS,
    LeftOut,
    first_told,
    folded,
    said,
    unreadable,
)
from training.errors import DataError

Task = Literal["detection", "segmentation"]

SPLITS = ("train", "val", "test")

NAMES_OF_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The names that splits have in folders and files."""

TEST_PART = 0.2
SPLIT_SEED = 0
"""The test pictures of a set that does not say what to test with: always the same ones."""


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one picture.

    Attributes:
        boxes: float32 `[n,4]`: x, y, width, height in pixels of the upright picture.
        labels: int64 `[n]`.
        crowd: bool `[n]`: a region of many objects that were not told apart.
        masks: compressed run lengths (`app.images.rle`) of each, in the upright picture's size;
            None where there are only boxes.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    masks: tuple[bytes, ...] | None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture with its objects.

    Attributes:
        file: relative to the set's folder; of a scene that lies in no file, a name.
        height: in pixels, upright.
        width: likewise.
        objects: in the picture.
        load: returns the bytes of its image file.
        ignored: run lengths of the pixels that count for nothing, or None.
    """

    file: Path
    height: int
    width: int
    objects: Objects
    load: Callable[[], bytes]
    ignored: bytes | None = None

    def pixels(self) -> RgbImage:
        """Decode the upright picture as the service does: uint8 `[height,width,3]`.

        Raises:
            ImageError: the file has changed since it was found.
            OSError: likewise.
        """
        return decode_whole(self.load(), max(self.height, self.width), MAX_PIXELS)

    def ignored_pixels(self) -> NDArray[np.bool_] | None:
        """Return the pixels that count for nothing, bool `[height,width]`, if there are any."""
        return None if self.ignored is None else rle.decode(self.ignored, self.height, self.width)


@dataclass(frozen=True)
class SceneFindings:
    """The pictures and objects of a set before they are learned from.

    Attributes:
        pictures: their number by split.
        objects: their number by split, and there by label; crowds count as one.
        repeated: number of test pictures whose file is that of a picture to train or choose with.
        notes: what was changed or decided, a sentence each.
        left_out: pictures, annotations and files that are not learned from.
    """

    pictures: dict[str, int]
    objects: dict[str, tuple[int, ...]]
    repeated: int
    notes: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class HeldOut:
    """The part of a data set's training images that a run does not learn from.

    Attributes:
        sha256: of the data set.
        holdout: the part, 0 to below 1.
        split_seed: decided which images these are.
    """

    sha256: str
    holdout: float
    split_seed: int


@dataclass(frozen=True)
class SceneSource:
    """A set of annotated pictures that was found and verified.

    Attributes:
        name: of its folder.
        place: its folder.
        tasks: those that its annotations can teach.
        instances: whether an object is one thing; otherwise it is all that a picture has of a
            class.
        why_not: why the other task cannot be learned, or an empty string.
        classes: names by label.
        sha256: over names and contents of all files that were read, in order.
        train: pictures to train on.
        val: pictures to choose with; may be none.
        test: pictures that only `training.evaluate` may look at.
        findings: what was found and what was left out.
        category_ids: of the classes in the set's COCO file; otherwise from 1.
        made_of: the images in pictures to choose with, if they are made of another data set's.
    """

    name: str
    place: Path
    tasks: tuple[Task, ...]
    instances: bool
    why_not: str
    classes: tuple[str, ...]
    sha256: str
    train: tuple[Scene, ...]
    val: tuple[Scene, ...]
    test: tuple[Scene, ...]
    findings: SceneFindings
    category_ids: tuple[int, ...]
    made_of: HeldOut | None = None

    def __str__(self) -> str:
        return printable(self.place)


class Picture(NamedTuple):
    """An image file that can be decoded.

    Attributes:
        path: the file.
        measured: its upright size and its orientation.
        digest: SHA-256 of its content.
    """

    path: Path
    measured: Measured
    digest: bytes

    def scene(self, place: Path, objects: Objects, ignored: bytes | None = None) -> Scene:
        """Return the picture with its objects."""
        height, width, _ = self.measured
        load = partial(Path.read_bytes, self.path)
        return Scene(self.path.relative_to(place), height, width, objects, load, ignored)


@dataclass(frozen=True)
class Found:
    """A picture of a set, and the digests of the files that it comes from, its own first."""

    scene: Scene
    digests: tuple[bytes, ...]


@dataclass
class Gathering:
    """What a reader gathers: scenes by split, faults, and what is left out.

    Attributes:
        place: the set's folder.
        scenes: by split, in order.
        faults: reasons for which the set cannot be trained on.
        notes: what was changed or decided.
        left_out: what is not learned from.
        without_test: in a set that names none to test with, what to do about that.
    """

    place: Path
    scenes: dict[str, list[Found]] = field(default_factory=lambda: {name: [] for name in SPLITS})
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    without_test: str = ""
    _read: list[tuple[Path, bytes]] = field(default_factory=list)

    def leave_out(self, path: Path, reason: str, class_name: str = "") -> None:
        """Tell of a file below the set's folder, or of an annotation in it."""
        self.left_out.append(LeftOut(self.relative(path), class_name, reason))

    def relative(self, path: Path) -> Path:
        """Return a path as messages give it."""
        return path.relative_to(self.place)

    def read(self, path: Path, limit: int) -> bytes | None:
        """Return the content of a file that the whole set needs; None becomes a fault.

        Args:
            path: the file.
            limit: bytes that it may have.
        """
        content, reason = _content(path, limit)
        if reason:
            self.faults.append(f"{self.relative(path)}: {reason}")
            return None
        self._read.append((path, hashlib.sha256(content).digest()))
        return content

    def content(self, path: Path) -> bytes | None:
        """Return the content of a file that one picture needs; leave it out if it is not read."""
        content, reason = _content(path, MAX_BYTES)
        if reason:
            self.leave_out(path, reason)
        return None if reason else content

    def picture(self, path: Path, also: str = "") -> Picture | None:
        """Measure a picture as the service decodes it; leave it out if it cannot be.

        Args:
            path: the file.
            also: what is left out with it, for the message.
        """
        content, reason = _content(path, MAX_BYTES)
        try:
            measured = None if reason else measure(content, MAX_PIXELS)
        except ImageError as exc:
            measured, reason = None, str(exc)
        if measured is None:
            self.leave_out(path, f"{reason}{also}")
            return None
        return Picture(path, measured, hashlib.sha256(content).digest())

    def split(self, unsplit: Sequence[Found], classes: int) -> None:
        """Split pictures always in the same way, those of the same file on one side.

        The order is that of the hashes of seed and content, so it depends on no names. A picture
        with the last object of a class that is left to train on is not tested with.

        Args:
            unsplit: the pictures.
            classes: number of labels.
        """
        alike: dict[bytes, list[Found]] = {}
        for found in unsplit:
            alike.setdefault(found.digests[0], []).append(found)
        seed = SPLIT_SEED.to_bytes(8)
        order = sorted(alike, key=lambda digest: hashlib.sha256(seed + digest).digest())
        to_train = _counts([found.scene for found in unsplit], classes)
        wanted, tested = max(round(TEST_PART * len(order)), 1), set[bytes]()
        for digest in order[: max(len(order) - 1, 0)]:
            counts = _counts([found.scene for found in alike[digest]], classes)
            if len(tested) < wanted and not np.any((counts > 0) & (counts == to_train)):
                tested.add(digest)
                to_train -= counts
        for found in unsplit:
            self.scenes["test" if found.digests[0] in tested else "train"].append(found)

    def source(
        self,
        classes: Sequence[str],
        tasks: tuple[Task, ...],
        *,
        instances: bool = True,
        why_not: str = "",
        name: str | None = None,
        ids: Mapping[str, int | str] | None = None,
    ) -> SceneSource:
        """Return the set.

        Args:
            classes: names by label. Those without any object are dropped, and a note tells.
            tasks: those that the annotations can teach. Without segmentation, masks are dropped.
            instances: whether an object is one thing.
            why_not: why the other task cannot be learned.
            name: of the set; by default its folder's.
            ids: of the classes, by name.

        Raises:
            DataError: there are faults, or nothing to train on or to test with. Names every fault,
                or the first `MOST_TOLD`. What was left out is named where it is the cause.
        """
        self._test_with_val()
        kept = self._keep_used(classes)
        if "segmentation" not in tasks:
            self._change(lambda objects: replace(objects, masks=None))
        if faults := [*map(printable, self.faults)] or self._lacks(kept):
            raise DataError(f"{printable(self.place)}: cannot be trained on", first_told(faults))
        scenes = {split: tuple(found.scene for found in self.scenes[split]) for split in SPLITS}
        counts = {split: _counts(scenes[split], len(kept)) for split in SPLITS}
        self._note_gaps(kept, counts)
        return SceneSource(
            name=name or printable(self.place.resolve().name),
            place=self.place,
            tasks=tasks,
            instances=instances,
            why_not=why_not,
            classes=kept,
            sha256=self._sha256(),
            train=scenes["train"],
            val=scenes["val"],
            test=scenes["test"],
            category_ids=_whole_ids(kept, ids or {}),
            findings=SceneFindings(
                pictures={split: len(scenes[split]) for split in SPLITS},
                objects={split: tuple(counts[split].tolist()) for split in SPLITS},
                repeated=self._repeated(),
                notes=tuple(self.notes),
                left_out=tuple(self.left_out),
            ),
        )

    def note(self, count: int, one: str, many: str) -> None:
        """Add a note of a number of things, if there are any."""
        if count:
            self.notes.append(f"{count:,} {one if count == 1 else many}")

    def _lacks(self, classes: Sequence[str]) -> list[str]:
        """Return what is missing, after what was left out and could be the cause."""
        lacks = [f"no picture {_PURPOSES[name]}" for name in _PURPOSES if not self.scenes[name]]
        lacks += [] if classes else ["no object in any picture"]
        if self.without_test and lacks == [f"no picture {_PURPOSES['test']}"]:
            return [f"{lacks[0]}: {printable(self.without_test)}"]
        return [*folded(self.left_out), *lacks] if lacks else []

    def _test_with_val(self) -> None:
        if self.scenes["val"] and not self.scenes["test"]:
            self.scenes["test"], self.scenes["val"] = self.scenes["val"], []
            self.notes.append(
                "there is no test split: val is tested with, and a part of train is held out in "
                "its place"
            )

    def _keep_used(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Drop the classes without objects, and return the others."""
        scenes = [found.scene for name in SPLITS for found in self.scenes[name]]
        used = _counts(scenes, len(classes)) > 0
        labels = np.cumsum(used) - 1
        self._change(lambda objects: replace(objects, labels=labels[objects.labels]))
        self.notes.extend(
            f"{printable(name)} has no objects; it becomes no class"
            for name, is_used in zip(classes, used, strict=True)
            if not is_used
        )
        return tuple(name for name, is_used in zip(classes, used, strict=True) if is_used)

    def _change(self, change: Callable[[Objects], Objects]) -> None:
        for all_found in self.scenes.values():
            all_found[:] = [
                replace(found, scene=replace(found.scene, objects=change(found.scene.objects)))
                for found in all_found
            ]

    def _note_gaps(self, classes: Sequence[str], counts: dict[str, NDArray[np.int64]]) -> None:
        for name in ("train", "test"):
            self.notes.extend(
                f"{printable(label)} has no object {_PURPOSES[name]}"
                for label, count in zip(classes, counts[name].tolist(), strict=True)
                if count == 0
            )
        empty = sum(not len(one.scene.objects) for each in self.scenes.values() for one in each)
        self.note(empty, "picture has no objects", "pictures have no objects")

    def _repeated(self) -> int:
        known = {one.digests[0] for name in ("train", "val") for one in self.scenes[name]}
        return sum(found.digests[0] in known for found in self.scenes["test"])

    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for path, content in self._read:
            digest.update(os.fsencode(self.relative(path).as_posix()))
            digest.update(content)
        for name in SPLITS:
            for found in self.scenes[name]:
                digest.update(os.fsencode(found.scene.file.as_posix()))
                digest.update(b"".join(found.digests))
        return digest.hexdigest()


def _whole_ids(names: Sequence[str], ids: Mapping[str, int | str]) -> tuple[int, ...]:
    """Return the classes' ids if all are whole numbers from 0; otherwise numbers from 1."""
    found = [ids.get(name) for name in names]
    whole = tuple(one for one in found if isinstance(one, int) and one >= 0)
    return whole if len(set(whole)) == len(names) else tuple(range(1, len(names) + 1))


_PURPOSES = {"train": "to train on", "test": "to test with"}


def objects_of(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    crowd: Sequence[bool],
    masks: Sequence[bytes] | None,
) -> Objects:
    """Return the objects of lists, each with an entry for each object."""
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(crowd, np.bool_),
        None if masks is None else tuple(masks),
    )


def _content(path: Path, limit: int) -> tuple[bytes, str]:
    """Return a file's content, or the reason why it is not read."""
    if reason := unreadable(path, limit):
        return b"", reason
    try:
        return path.read_bytes(), ""
    except OSError as exc:
        return b"", said(exc)


def _counts(scenes: Sequence[Scene], classes: int) -> NDArray[np.int64]:
    """Return the number of objects by label, int64 `[classes]`."""
    labels = [scene.objects.labels for scene in scenes]
    return np.bincount(np.concatenate([*labels, np.zeros(0, np.int64)]), minlength=classes)
