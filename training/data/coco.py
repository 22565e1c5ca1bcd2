"""COCO JSON: pictures with boxes, polygons and run lengths, as its many exporters write it.

The format is that of cocodataset.org/#format-data. Polygons become masks as COCO's own tools make
them. Boxes and masks are turned with a picture whose EXIF turns it, where the annotations are of
the stored picture.
"""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from faster_coco_eval.core import mask as coco_mask

from app.artifact.manifest import composed
from app.commands import printable
from app.images import rle
from training.data.annotated import (
    NAMES_OF_SPLITS,
    Found,
    Gathering,
    Objects,
    Picture,
    SceneSource,
    Task,
    objects_of,
)
from training.data.class_folders import is_like_picture, unreadable
from training.errors import DataError

MAX_JSON_BYTES = 1 << 30
"""The largest file of annotations; those of COCO's training pictures have 470 MB."""

ROBOFLOW = "_annotations.coco.json"
SINGLE = (Path("annotations.json"), Path(ROBOFLOW), Path("annotations/instances_default.json"))
"""Where one JSON may lie; the last is CVAT's."""

_FARTHEST = 10
"""Picture sizes that a polygon may reach beyond the picture: rasterising costs as much."""

_MOST_SHOWN = 60
"""Letters of a value that a message shows."""

_LEAST_CLIPPED = 0.01
"""Pixels outside the picture from which a box counts as clipped, and not as rounded."""


class Layout(NamedTuple):
    """A file of annotations.

    Attributes:
        split: `train`, `val` or `test`, or `all` where the set is not split.
        annotations: the JSON.
        folders: where its pictures may lie, the first to look in first.
    """

    split: str
    annotations: Path
    folders: tuple[Path, ...]


def find_layouts(place: Path) -> list[Layout]:
    """Recognise a JSON for each split, or one JSON of a usual name.

    Raises:
        DataError: a split has two files.
        OSError: the folder cannot be listed.
    """
    for find in (_of_roboflow, _of_coco, _of_plain_names):
        found = list(find(place))
        for first, second in pairwise(found):
            if first.split == second.split:
                paths = (first.annotations, second.annotations)
                named = " and ".join(printable(path.relative_to(place)) for path in paths)
                raise DataError(
                    f"{printable(place)}: {named} are both of {first.split}; one is needed"
                )
        if any(layout.split == "train" for layout in found):
            return found
    usual = [place / path for path in SINGLE if (place / path).is_file()]
    return [single(place, usual[0])] if usual else []


def single(place: Path, path: Path) -> Layout:
    """Return the layout of one JSON for all pictures."""
    images = place / "images"
    return Layout("all", path, (images, images / "default", place))


def read_coco(place: Path, layouts: Sequence[Layout]) -> SceneSource:
    """Read a set in COCO's format.

    Args:
        place: the set's folder.
        layouts: its files, as `find_layouts` gives them.

    Raises:
        DataError: a file is not COCO JSON, names two pictures or classes alike, or there is nothing
            to learn. Names every fault, or the first `MOST_TOLD`.
    """
    return _Reader(place).read(layouts)


def _of_roboflow(place: Path) -> Iterator[Layout]:
    for split, names in NAMES_OF_SPLITS.items():
        for folder in (place / name for name in names):
            if (folder / ROBOFLOW).is_file():
                yield Layout(split, folder / ROBOFLOW, (folder, folder / "images"))


def _of_coco(place: Path) -> Iterator[Layout]:
    images = place / "images"
    for split in NAMES_OF_SPLITS:
        for path in sorted((place / "annotations").glob(f"instances_{split}*.json")):
            name = path.stem.removeprefix("instances_")
            yield Layout(
                split,
                path,
                (place / name, images / name, place / split, images / split, images, place),
            )


def _of_plain_names(place: Path) -> Iterator[Layout]:
    images = place / "images"
    for split, names in NAMES_OF_SPLITS.items():
        for path in (place / f"{name}.json" for name in names):
            if path.is_file():
                yield Layout(split, path, (place / path.stem, images / path.stem, images, place))


class _Entry(NamedTuple):
    """An entry of `images`; the sizes are None where they are not given."""

    identity: int | str
    file_name: str
    height: int | None
    width: int | None


@dataclass
class _Document:
    """One file of annotations, its types checked.

    `names` are the names of classes by category id.
    """

    layout: Layout
    entries: list[_Entry] = field(default_factory=list)
    names: dict[int | str, str] = field(default_factory=dict)
    annotations: list[Any] = field(default_factory=list)

    def name_of(self, category: Any) -> str:
        """Return the name of a category id."""
        identity = _identity(category)
        if identity not in self.names:
            raise _Unusable(f"there is no category with id {_short(category)}")
        return self.names[identity]


@dataclass
class _Drawn:
    """The annotations of a picture that can be used, in its upright pixels."""

    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    masks: list[bytes | None] = field(default_factory=list)


@dataclass
class _Some:
    """Counts annotations, and keeps the name of the first."""

    count: int = 0
    first: str = ""

    def add(self, called: str) -> None:
        """Count an annotation."""
        self.count += 1
        self.first = self.first or called

    @property
    def named(self) -> str:
        """The first, as it stands at the end of a sentence."""
        return f"{': ' if self.count == 1 else '; the first is '}{self.first}"


class _Unusable(Exception):
    """An annotation, or a picture, cannot be learned from; the message says why."""


class _Reader:
    """Reads the documents, then the pictures that they name, then the annotations of each."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._gathering = Gathering(place)
        self._count: Counter[str] = Counter()
        self._named: set[Path] = set()
        self._clipped, self._unmasked = _Some(), _Some()

    def read(self, layouts: Sequence[Layout]) -> SceneSource:
        documents = []
        for layout in layouts:
            content = self._gathering.read(layout.annotations, MAX_JSON_BYTES)
            if content is not None:
                documents.append(self._document(layout, content))
        names = dict.fromkeys(name for one in documents for name in one.names.values())
        labels = {name: label for label, name in enumerate(names)}
        # Faults are told before all pictures are read: they may be many.
        for document in documents if not self._gathering.faults else ():
            scenes = self._scenes(document, labels)
            if document.layout.split == "all":
                self._gathering.split(scenes, len(labels))
            else:
                self._gathering.scenes[document.layout.split] = scenes
        self._leave_out_unnamed({layout.annotations for layout in layouts})
        self._tell()
        ids = {name: key for one in documents for key, name in one.names.items()}
        if {layout.split for layout in layouts} == {"train"}:
            only = self._gathering.relative(layouts[0].annotations)
            self._gathering.without_test = (
                f"there is only {only}, of train; named annotations.json, with its pictures in "
                "images, it is split"
            )
        why_not = self._why_no_masks()
        tasks: tuple[Task, ...] = ("detection",) if why_not else ("detection", "segmentation")
        return self._gathering.source(tuple(labels), tasks, why_not=why_not, ids=ids)

    def _why_no_masks(self) -> str:
        """Return why only boxes can be learned, or an empty string."""
        objects, masks = self._count["objects"], self._count["masks"]
        if objects == masks > 0:
            return ""
        if not masks:
            return "no object has a mask"
        have = "has" if objects - masks == 1 else "have"
        why_not = (
            f"{objects - masks:,} of {objects:,} objects {have} a box and no mask"
            f"{self._unmasked.named}"
        )
        self._gathering.notes.append(f"only boxes can be learned: {why_not}")
        return why_not

    def _tell(self) -> None:
        note = self._gathering.note
        note(
            self._clipped.count,
            f"box reaches beyond its picture and is clipped{self._clipped.named}",
            f"boxes reach beyond their pictures and are clipped{self._clipped.named}",
        )
        note(
            self._count["crowds"],
            "region is a crowd (iscrowd), which is neither learned nor counted",
            "regions are crowds (iscrowd), which are neither learned nor counted",
        )
        note(
            self._count["turned"],
            "picture is annotated as it is stored; its boxes and masks are turned with it",
            "pictures are annotated as they are stored; their boxes and masks are turned with them",
        )
        note(
            self._count["unclear"],
            "picture is turned by its EXIF and has the same size before; its annotations are taken "
            "to be of the upright picture",
            "pictures are turned by their EXIF and have the same size before; their annotations "
            "are taken to be of the upright pictures",
        )

    def _document(self, layout: Layout, content: bytes) -> _Document:
        document = _Document(layout)
        where = self._gathering.relative(layout.annotations)
        try:
            tree = json.loads(content)
        except (ValueError, RecursionError) as exc:
            self._gathering.faults.append(f"{where}: is not JSON: {exc}")
        else:
            faults = _fill(document, tree)
            self._gathering.faults.extend(f"{where}: {fault}" for fault in faults)
        return document

    def _scenes(self, document: _Document, labels: Mapping[str, int]) -> list[Found]:
        of_image: dict[int | str, list[tuple[int, dict[str, Any]]]] = {
            entry.identity: [] for entry in document.entries
        }
        for index, annotation in enumerate(document.annotations):
            if not isinstance(annotation, dict):
                self._gathering.leave_out(
                    document.layout.annotations, f"annotation at {index}: is no object"
                )
            elif (identity := _identity(annotation.get("image_id"))) in of_image:
                of_image[identity].append((index, annotation))
            else:
                told = f"there is no image with id {_short(annotation.get('image_id'))}"
                self._gathering.leave_out(
                    document.layout.annotations, f"{_called(index, annotation)}: {told}"
                )
        scenes = []
        for entry in document.entries:
            scene = self._scene(document, entry, of_image[entry.identity], labels)
            if scene:
                scenes.append(scene)
        return scenes

    def _scene(
        self,
        document: _Document,
        entry: _Entry,
        annotations: list[tuple[int, dict[str, Any]]],
        labels: Mapping[str, int],
    ) -> Found | None:
        count = len(annotations)
        also = f"; with it {count} annotation{'s' if count > 1 else ''}" if count else ""
        try:
            path = self._path(document, entry)
        except _Unusable as exc:
            self._gathering.leave_out(
                document.layout.annotations, f"image {entry.identity!r}: {exc}{also}"
            )
            return None
        picture = self._gathering.picture(path, also)
        if picture is None:
            return None
        try:
            frame = self._frame(picture, entry)
        except _Unusable as exc:
            self._gathering.leave_out(path, f"{exc}{also}")
            return None
        objects = self._objects(document, picture, frame, annotations, labels)
        return Found(picture.scene(self._place, objects), (picture.digest,))

    def _path(self, document: _Document, entry: _Entry) -> Path:
        """Return the picture's file, which may not exist."""
        name = entry.file_name.replace("\\", "/")
        told = f"file_name {_short(entry.file_name)}"
        if (
            PurePosixPath(name).is_absolute()
            or PureWindowsPath(name).anchor
            or ".." in PurePosixPath(name).parts
        ):
            raise _Unusable(f"{told} leaves the folder of the set")
        if name in {"", "."} or "\0" in name:
            raise _Unusable(f"{told} is no name of a file")
        # A file that was named on macOS may be written with other code points than in the JSON.
        forms = dict.fromkeys((name, composed(name), unicodedata.normalize("NFD", name)))
        candidates = [folder / form for folder in document.layout.folders for form in forms]
        existing = [path for path in candidates if unreadable(path) != "no such file"]
        path = (existing or candidates)[0]
        if path in self._named:
            raise _Unusable(f"{told} is named by another image")
        self._named.add(path)
        return path

    def _frame(self, picture: Picture, entry: _Entry) -> "_Frame":
        height, width, orientation = picture.measured
        given = entry.width or width, entry.height or height
        if given == (width, height):
            self._count["unclear"] += orientation > 1 and (orientation < 5 or width == height)
            return _Frame(height, width, 1)
        if orientation >= 5 and given == (height, width):
            self._count["turned"] += 1
            return _Frame(width, height, orientation)
        raise _Unusable(f"is {width}x{height} pixels, but annotated as {given[0]}x{given[1]}")

    def _objects(
        self,
        document: _Document,
        picture: Picture,
        frame: "_Frame",
        annotations: list[tuple[int, dict[str, Any]]],
        labels: Mapping[str, int],
    ) -> Objects:
        drawn = _Drawn()
        for index, annotation in annotations:
            name = ""
            called = f"{_called(index, annotation)} of {self._gathering.relative(picture.path)}"
            try:
                name = document.name_of(annotation.get("category_id"))
                self._draw(drawn, frame, annotation, name, called)
            except _Unusable as exc:
                told = f"{_called(index, annotation)}: {exc}"
                self._gathering.leave_out(picture.path, told, name)
        masks = [mask for mask in drawn.masks if mask is not None]
        self._count["objects"] += len(drawn.names)
        self._count["masks"] += len(masks)
        return objects_of(
            drawn.boxes,
            [labels[name] for name in drawn.names],
            drawn.crowd,
            masks if len(masks) == len(drawn.names) else None,
        )

    def _draw(
        self,
        drawn: _Drawn,
        frame: "_Frame",
        annotation: Mapping[str, Any],
        name: str,
        called: str,
    ) -> None:
        box, mask = _box(annotation.get("bbox")), frame.mask(annotation.get("segmentation"))
        crowd = annotation.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise _Unusable(f"its iscrowd is {_short(crowd)}; 0 and 1 are allowed")
        if box is None:
            if mask is None:
                raise _Unusable("has neither box nor mask")
            left, top, width, height = rle.bounds(mask, frame.height, frame.width) or (0, 0, 0, 0)
            box = _Box(left, top, width, height)
        clipped = frame.clip(box)
        if clipped.differs(box):
            self._clipped.add(called)
        if mask is None:
            self._unmasked.add(called)
        self._count["crowds"] += crowd
        drawn.boxes.append(frame.turn_box(clipped))
        drawn.masks.append(None if mask is None else frame.turn_mask(mask))
        drawn.names.append(name)
        drawn.crowd.append(bool(crowd))

    def _leave_out_unnamed(self, read: set[Path]) -> None:
        """Tell of the pictures that lie beside others and are named by no annotations."""
        for folder in sorted({path.parent for path in self._named}):
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path not in self._named | read and is_like_picture(path):
                    self._gathering.leave_out(path, "is named by no annotations")


class _Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float

    def differs(self, other: "_Box") -> bool:
        """Return whether a side lies elsewhere by more than what rounding does."""
        sides = (self.x, self.y, self.x + self.width, self.y + self.height)
        others = (other.x, other.y, other.x + other.width, other.y + other.height)
        return any(abs(a - b) > _LEAST_CLIPPED for a, b in zip(sides, others, strict=True))


class _Frame(NamedTuple):
    """The picture as its annotations see it, and the EXIF orientation that makes it upright."""

    height: int
    width: int
    orientation: int

    def clip(self, box: _Box) -> _Box:
        """Return the part of a box that lies in the picture."""
        left, top = max(box.x, 0.0), max(box.y, 0.0)
        right = min(box.x + box.width, float(self.width))
        bottom = min(box.y + box.height, float(self.height))
        if right <= left or bottom <= top:
            raise _Unusable(
                f"its box {_numbers(box)} is outside the picture of {self.width}x{self.height}"
            )
        return _Box(left, top, right - left, bottom - top)

    def turn_box(self, box: _Box) -> _Box:
        """Turn a box with the picture."""
        x, y, width, height = box
        right, bottom = self.width - x - width, self.height - y - height
        match self.orientation:
            case 5:
                return _Box(y, x, height, width)
            case 6:
                return _Box(bottom, x, height, width)
            case 7:
                return _Box(bottom, right, height, width)
            case 8:
                return _Box(y, right, height, width)
        return box

    def turn_mask(self, mask: bytes) -> bytes:
        """Turn a mask with the picture."""
        if self.orientation == 1:
            return mask
        swapped = rle.decode(mask, self.height, self.width).T
        step = {5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[self.orientation]
        return rle.encode(swapped[:: step[0], :: step[1]])

    def mask(self, segmentation: Any) -> bytes | None:
        """Return the run lengths of polygons or of COCO's own; None if there are none."""
        if segmentation is None or segmentation in ([], {}, [[]]):
            return None
        if isinstance(segmentation, list):
            mask = self._drawn(segmentation)
        elif isinstance(segmentation, dict):
            mask = self._decoded(segmentation)
        else:
            raise _Unusable(f"its segmentation is {_short(segmentation)}; no polygons, no counts")
        if not mask.any():
            raise _Unusable("its mask has no pixel in the picture")
        return rle.encode(mask)

    def _drawn(self, polygons: list[Any]) -> rle.Mask:
        if not isinstance(polygons[0], list | dict):
            polygons = [polygons]  # one polygon, which is not in a list
        checked = [self._polygon(one) for one in polygons]
        # The tools take four numbers for a box. Fewer than three points have no area.
        drawn = [one for one in checked if len(one) >= 6]
        if not drawn:
            raise _Unusable("its polygons have fewer than 3 points")
        parts = coco_mask.frPyObjects(drawn, self.height, self.width)
        counts = coco_mask.merge(parts)["counts"]
        return rle.decode(counts, self.height, self.width)

    def _polygon(self, polygon: Any) -> list[float]:
        if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
            raise _Unusable("its polygon is not a list of numbers x, y, x, y")
        if len(polygon) % 2:
            raise _Unusable(f"its polygon has {len(polygon)} numbers; an even number is needed")
        points = [float(number) for number in polygon]
        limit = _FARTHEST * max(self.height, self.width)
        for number in points:
            if not abs(number) <= limit:
                raise _Unusable(f"its polygon has a point at {number:g}; the limit is {limit}")
        return points

    def _decoded(self, segmentation: dict[str, Any]) -> rle.Mask:
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [self.height, self.width]:
            raise _Unusable(
                f"its mask has the size {_short(size)}; that of the picture is "
                f"{[self.height, self.width]}"
            )
        if not isinstance(counts, str | list):
            raise _Unusable(f"its counts are {_short(counts)}; text or a list is needed")
        try:
            return rle.decode(counts, self.height, self.width)
        except ValueError as exc:
            raise _Unusable(f"its mask cannot be read: {exc}") from exc


def _box(box: Any) -> _Box | None:
    """Return the box of an annotation, None if it has none."""
    if box is None or box == []:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise _Unusable(f"its box is {_short(box)}; four numbers are needed")
    try:
        x, y, width, height = map(float, box)
    except OverflowError:
        raise _Unusable("its box is not finite") from None
    if not all(map(math.isfinite, (x, y, width, height, x + width, y + height))):
        raise _Unusable(f"its box {_short(box)} is not finite")
    if width <= 0 or height <= 0:
        raise _Unusable(f"its box {_short(box)} has no area")
    return _Box(x, y, width, height)


def _fill(document: _Document, tree: Any) -> list[str]:
    """Fill a document from its JSON, and return what is wrong with it."""
    if not isinstance(tree, dict):
        return [f"is {_short(tree)}; an object with images, annotations and categories is needed"]
    faults = []
    for key in ("images", "annotations", "categories"):
        if key not in tree:
            faults.append(f"has no {key}")
        elif not isinstance(tree[key], list):
            faults.append(f"{key} is {_short(tree[key])}; a list is needed")
    if faults:
        return faults
    document.annotations = tree["annotations"]
    faults.extend(_fill_entries(document.entries, tree["images"]))
    faults.extend(_fill_names(document.names, tree["categories"]))
    return faults


def _fill_entries(entries: list[_Entry], images: list[Any]) -> Iterator[str]:
    places: dict[int | str, int] = {}
    for index, image in enumerate(images):
        where = f"images[{index}]"
        if not isinstance(image, dict):
            yield f"{where} is {_short(image)}; an object is needed"
            continue
        identity, name = _identity(image.get("id")), image.get("file_name")
        sizes = [image.get("height"), image.get("width")]
        if identity is None:
            yield f"{where}.id is {_short(image.get('id'))}; a whole number is needed"
        elif identity in places:
            yield f"{where}.id is {identity!r}, as that of images[{places[identity]}]"
        elif not isinstance(name, str):
            yield f"{where}.file_name is {_short(name)}; text is needed"
        elif not all(size is None or _is_number(size) for size in sizes):
            yield f"{where}: height and width are {_short(sizes)}; numbers are needed"
        else:
            places[identity] = index
            entries.append(_Entry(identity, name, *sizes))


def _fill_names(names: dict[int | str, str], categories: list[Any]) -> Iterator[str]:
    for index, category in enumerate(categories):
        where = f"categories[{index}]"
        if not isinstance(category, dict):
            yield f"{where} is {_short(category)}; an object is needed"
            continue
        identity, name = _identity(category.get("id")), category.get("name")
        if identity is None:
            yield f"{where}.id is {_short(category.get('id'))}; a whole number is needed"
        elif identity in names:
            yield f"{where}.id is {identity!r}, as that of {names[identity]!r}"
        elif not isinstance(name, str) or not name.strip():
            yield f"{where}.name is {_short(name)}; a name is needed"
        elif composed(name) in names.values():
            yield f"{where}.name is {name!r}, as that of another category"
        else:
            names[identity] = composed(name)


def _identity(value: Any) -> int | str | None:
    """Return an id; some exporters write text, or numbers with a fraction of zero."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _called(index: int, annotation: Mapping[str, Any]) -> str:
    identity = _identity(annotation.get("id"))
    return f"annotation at {index}" if identity is None else f"annotation {identity}"


def _numbers(box: _Box) -> str:
    return f"[{', '.join(f'{number:g}' for number in box)}]"


def _short(value: Any) -> str:
    """Return a value of a JSON as messages show it."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
