"""Annotated pictures for detection and segmentation: which reader a folder is for.

`coco` reads COCO JSON, `mask_pairs` pictures with an image of their mask. `annotated` has the
records that both return. `cifar_scenes` makes such pictures of those of CIFAR-10.
"""

from pathlib import Path

from app.commands import printable
from training.data import coco, mask_pairs
from training.data.annotated import Objects, Scene, SceneFindings, SceneSource
from training.data.class_folders import class_folders
from training.errors import DataError

__all__ = ["Objects", "Scene", "SceneFindings", "SceneSource", "find_scenes"]

_UNREAD = (
    ("labels/*.txt", "YOLO's text format"),
    ("labels/*/*.txt", "YOLO's text format"),
    ("*/labels/*.txt", "YOLO's text format"),
    ("[Aa]nnotations/*.xml", "Pascal VOC's XML"),
    ("*/[Aa]nnotations/*.xml", "Pascal VOC's XML"),
)
"""Where files of annotations lie whose format is not read."""

_NEEDED = (
    "needed are train.json and test.json in COCO's format, with the pictures in images; "
    "or annotations/instances_train*.json with train*; or train/_annotations.coco.json with the "
    "pictures beside it; or one annotations.json; or images and labels with a PNG of the same name "
    "for each picture"
)


def find_scenes(place: Path) -> SceneSource:
    """Recognise a folder's layout and read it; pictures stay in their files.

    Every picture is decoded once, to find out whether the service would.

    Raises:
        DataError: there is no such folder, its layout is not known, or it cannot be trained on. The
            message names the folder, and what was looked for or all faults.
    """
    found = open_scenes(place)
    if found is None:
        raise DataError(f"{printable(place)}: holds no annotated pictures; {_NEEDED}")
    return found


def annotations_in(place: Path) -> tuple[str, bool]:
    """Tell what annotations a folder has, without reading them.

    Returns:
        Words that follow on the folder's name, empty if no annotations are found; and whether the
        folders of pictures can be no classes.

    Raises:
        DataError: as `open_scenes`.
        OSError: the folder cannot be listed.
    """
    if layouts := coco.find_layouts(place):
        first = layouts[0].folders[0]
        where = printable(layouts[0].annotations.relative_to(place))
        sure = layouts[0].split != "all" and first.is_dir() and not class_folders(first)
        return f"is annotated for boxes or masks ({where}): yolo learns boxes, unet masks", sure
    if pairs := mask_pairs.find_layouts(place):
        where = printable(pairs[0].labels.relative_to(place))
        return f"has masks of its pictures ({where}): unet learns them", True
    for pattern, named in _UNREAD:
        if found := next(place.glob(pattern), None):
            where = printable(found.relative_to(place).parent / f"*{found.suffix}")
            # Of VOC's folders, several hold pictures.
            return f"{where}: {named} is not read; COCO JSON is", found.suffix == ".xml"
    return "", False


def open_scenes(place: Path) -> SceneSource | None:
    """As `find_scenes`, but return None if the folder holds no annotations.

    Raises:
        DataError: there is no such folder, or it cannot be trained on.
    """
    shown = printable(place)
    if not place.is_dir():
        raise DataError(f"{shown}: {'is not a folder' if place.exists() else 'no such folder'}")
    try:
        return _open(place)
    except OSError as exc:
        raise DataError(f"{shown}: {exc}") from exc


def _open(place: Path) -> SceneSource | None:
    if layouts := coco.find_layouts(place):
        return coco.read_coco(place, layouts)
    if pairs := mask_pairs.find_layouts(place):
        return mask_pairs.read_mask_pairs(place, pairs)
    others = [path for path in sorted(place.glob("*.json")) if path.name != mask_pairs.SPLITS_FILE]
    if len(others) == 1:
        return coco.read_coco(place, [coco.single(place, others[0])])
    return None
