import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.images import rle
from tests.support.pictures import turned
from tests.support.scene_folders import masks_of
from training.data.scenes import SceneSource, find_scenes
from training.errors import DataError

HEIGHT, WIDTH = 20, 30


def picture(path: Path, level: int, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (level, 0, 0)).save(path, **options)


def mask(path: Path, labels: NDArray[Any], palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if palette:
        image.putpalette([*range(256)] * 3)
        assert image.mode == "P"
    image.save(path)


def two_objects(dtype: type[np.generic] = np.uint16) -> NDArray[Any]:
    labels = np.zeros((HEIGHT, WIDTH), dtype)
    labels[2:5, 3:10] = 7
    labels[8:18, 20:22] = 200 if dtype is np.uint8 else 60_000
    return labels


def pairs(place: Path, count: int = 3, labels: str = "labels", dtype: Any = np.uint16) -> Path:
    for number in range(count):
        picture(place / "images" / f"{number}.jpg", 20 * number)
        mask(place / labels / f"{number}.png", two_objects(dtype))
    return place


def indexed(place: Path, *all_labels: NDArray[np.uint8]) -> Path:
    for number, labels in enumerate(all_labels):
        picture(place / "images" / f"{number}.png", number)
        mask(place / "labels" / f"{number}.png", labels, palette=True)
    return place


def classes_in(source: SceneSource) -> dict[str, list[str]]:
    """The names of the objects by picture."""
    scenes = (*source.train, *source.val, *source.test)
    return {
        scene.file.stem: [source.classes[label] for label in scene.objects.labels]
        for scene in scenes
    }


def left_out(source: SceneSource) -> dict[str, str]:
    return {item.path.as_posix(): item.reason for item in source.findings.left_out}


def split_by(place: Path, content: Any) -> None:
    (place / "splits.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("folder", ["labels", "masks", "annotations"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_each_value_of_a_grey_mask_is_an_object(dtype: Any, folder: str, tmp_path: Path) -> None:
    source = find_scenes(pairs(tmp_path, labels=folder, dtype=dtype))
    assert source.tasks == ("detection", "segmentation")
    assert source.instances
    assert source.classes == ("object",)
    assert source.findings.left_out == ()
    assert source.findings.pictures == {"train": 2, "val": 0, "test": 1}
    for scene in (*source.train, *source.test):
        assert scene.objects.boxes.tolist() == [[3, 2, 7, 3], [20, 8, 2, 10]]
        assert scene.objects.labels.tolist() == [0, 0]
        assert not scene.objects.crowd.any()
        labels = two_objects(dtype)
        expected = [labels == 7, labels > 7]
        assert np.array_equal(masks_of(scene), expected)
        assert scene.ignored is None
        assert scene.pixels().shape == (HEIGHT, WIDTH, 3)


def test_each_value_of_a_palette_mask_is_a_class(tmp_path: Path) -> None:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:4, :4] = labels[10:, 10:] = 2
    labels[5, 5] = 1
    labels[0] = 255
    source = find_scenes(indexed(tmp_path, labels, np.zeros_like(labels), np.minimum(labels, 1)))
    assert source.tasks == ("segmentation",)
    assert not source.instances
    assert source.classes == ("class 1", "class 2")
    scene = next(one for one in (*source.train, *source.test) if one.file.name == "0.png")
    assert scene.objects.labels.tolist() == [0, 1]
    assert np.array_equal(masks_of(scene), [labels == 1, labels == 2])
    assert scene.ignored is not None
    assert np.array_equal(rle.decode(scene.ignored, HEIGHT, WIDTH), labels == 255)
    assert [note for note in source.findings.notes if "no object to test" not in note] == [
        "1 picture has no objects"
    ]
    assert classes_in(source)["1"] == []


def test_an_empty_mask_may_be_of_either_kind(tmp_path: Path) -> None:
    labels = np.ones((HEIGHT, WIDTH), np.uint8)
    indexed(tmp_path, labels, labels, labels)
    mask(tmp_path / "labels" / "1.png", np.zeros_like(labels))
    source = find_scenes(tmp_path)
    assert not source.instances
    assert classes_in(source) == {"0": ["class 1"], "1": [], "2": ["class 1"]}


def test_classes_are_named_without_the_background(tmp_path: Path) -> None:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:4], labels[8:] = 1, 3
    beyond = np.full_like(labels, 4)
    indexed(tmp_path, labels, labels.copy(), beyond)
    (tmp_path / "classes.txt").write_bytes("\ufeffroad\r\nsky\r\nTu\u0308r\r\n\r\n".encode())
    source = find_scenes(tmp_path)
    assert source.classes == ("road", "Tür")
    assert classes_in(source) == {"0": ["road", "Tür"], "1": ["road", "Tür"]}
    assert "sky has no objects; it becomes no class" in source.findings.notes
    assert left_out(source) == {"labels/2.png": "has the class 4, but classes.txt has 3 names"}


def test_objects_may_have_one_name(tmp_path: Path) -> None:
    pairs(tmp_path)
    (tmp_path / "classes.txt").write_text("nucleus\n")
    assert find_scenes(tmp_path).classes == ("nucleus",)
    (tmp_path / "classes.txt").write_text("nucleus\nother\n")
    with pytest.raises(
        DataError, match=r"classes\.txt: has 2 names; all objects of grey masks are"
    ):
        find_scenes(tmp_path)


def test_a_list_of_classes_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    labels = np.ones((HEIGHT, WIDTH), np.uint8)
    indexed(tmp_path, labels, labels)
    (tmp_path / "classes.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"classes\.txt: 'a' stands there 2 times; once is allowed"):
        find_scenes(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"classes\.txt: is not UTF-8"):
        find_scenes(tmp_path)


def test_masks_of_both_kinds_are_refused(tmp_path: Path) -> None:
    pairs(tmp_path)
    mask(tmp_path / "labels" / "1.png", two_objects(np.uint8), palette=True)
    mask(tmp_path / "labels" / "lonely.png", two_objects())
    with pytest.raises(DataError) as caught:
        find_scenes(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: cannot be trained on: labels/1.png: palette, one class a number, but 2 "
        "others are grey, one object a number; one kind is needed"
    )


def silhouettes(place: Path, value: int, in_parts: int) -> Path:
    """Four grey masks of one number, of which some have two parts that do not touch."""
    for number in range(4):
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        labels[2:5, 3:10] = value
        labels[5:8, 10:12] = value  # touches at a corner
        labels[12:18, 20:22] = value if number < in_parts else 0
        picture(place / "images" / f"{number}.png", number)
        mask(place / "labels" / f"{number}.png", labels)
    return place


@pytest.mark.parametrize("kind", ["255", "1", "mode 1"])
def test_one_number_in_all_grey_masks_is_that_of_a_class(kind: str, tmp_path: Path) -> None:
    silhouettes(tmp_path, 1 if kind == "1" else 255, in_parts=3)
    if kind == "mode 1":
        for path in (tmp_path / "labels").iterdir():
            Image.open(path).convert("1").save(path)
    source = find_scenes(tmp_path)
    assert source.tasks == ("segmentation",)
    assert not source.instances
    assert source.why_not == "its masks are of classes, in which objects are not told apart"
    assert set(map(tuple, classes_in(source).values())) == {("object",)}
    [note] = source.findings.notes
    assert note.startswith(
        f"every grey mask has one number, {255 if kind == '255' else 1}, and 3 of 4 have parts "
        "that do not touch: it is taken for a class, and objects are not told apart; number"
    )


@pytest.mark.parametrize("in_parts", [0, 1])
def test_pictures_of_single_objects_stay_so(in_parts: int, tmp_path: Path) -> None:
    source = find_scenes(silhouettes(tmp_path, 255, in_parts))
    assert source.tasks == ("detection", "segmentation")
    assert source.instances
    told = [note for note in source.findings.notes if "all parts in a picture are one" in note]
    assert len(told) == in_parts


def test_one_mask_of_numbered_objects_is_enough(tmp_path: Path) -> None:
    silhouettes(tmp_path, 255, in_parts=4)
    mask(tmp_path / "labels" / "3.png", two_objects(np.uint8))
    source = find_scenes(tmp_path)
    assert source.instances
    assert source.findings.notes == ()


@pytest.mark.parametrize("first", ["background", "__background__", "_Background_", "Hintergrund"])
def test_a_background_in_the_list_of_classes_is_no_class(first: str, tmp_path: Path) -> None:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:4], labels[8:12] = 1, 2
    indexed(tmp_path, labels, labels.copy())
    (tmp_path / "classes.txt").write_text(f"{first}\nroad\nsky\n")
    source = find_scenes(tmp_path)
    assert source.classes == ("road", "sky")
    assert source.findings.notes == (
        f"classes.txt: its first line, {first}, names the background, which is no class",
    )
    (tmp_path / "classes.txt").write_text(f"{first}\nroad\n")
    source = find_scenes(tmp_path)
    assert source.classes == (first, "road")
    assert "is class 1; the background, 0, has no name there" in source.findings.notes[0]


def test_the_background_may_stand_before_the_name_of_numbered_objects(tmp_path: Path) -> None:
    pairs(tmp_path)
    (tmp_path / "classes.txt").write_text("background\nnucleus\n")
    assert find_scenes(tmp_path).classes == ("nucleus",)


def test_masks_with_a_class_too_many_are_one_cause(tmp_path: Path) -> None:
    indexed(tmp_path, *(np.full((HEIGHT, WIDTH), 2, np.uint8) for _ in range(17)))
    (tmp_path / "classes.txt").write_text("road\n")
    with pytest.raises(DataError) as caught:
        find_scenes(tmp_path)
    assert caught.value.lines[1:] == [
        "  labels/0.png: has the class 2, but classes.txt has 1 name (and 16 more like it)",
        "  no picture to train on",
        "  no picture to test with",
        "  no object in any picture",
    ]


def test_pairs_without_test_pictures_are_told_how_they_are_split(tmp_path: Path) -> None:
    pairs(tmp_path / "train")
    with pytest.raises(DataError, match=r"no picture to test with: train is the only split; with"):
        find_scenes(tmp_path)
    split_by(tmp_path / "train", {"train": ["0", "1", "2"]})
    with pytest.raises(DataError, match=r"no picture to test with: splits\.json names none"):
        find_scenes(tmp_path / "train")
    split_by(tmp_path / "train", {"train": ["0", "1", "2"], "test": ["gone"]})
    with pytest.raises(DataError, match=r"there is no picture 'gone' with a mask; no picture to t"):
        find_scenes(tmp_path / "train")


def test_splits_are_those_of_the_file(tmp_path: Path) -> None:
    pairs(tmp_path, 6)
    split_by(
        tmp_path,
        {"train": ["0", "1.jpg"], "valid": ["images/2.jpg"], "test": ["3", "9", "broken"]},
    )
    picture(tmp_path / "images" / "broken.jpg", 9)
    source = find_scenes(tmp_path)
    assert [scene.file.stem for scene in source.train] == ["0", "1"]
    assert [scene.file.stem for scene in source.val] == ["2"]
    assert [scene.file.stem for scene in source.test] == ["3"]
    assert left_out(source) == {
        "images/4.jpg": "is in no split of splits.json",
        "images/5.jpg": "is in no split of splits.json",
        "images/broken.jpg": "has no PNG of this name in labels",
        "splits.json": "there is no picture '9' with a mask",
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        (["0"], "is not of the form"),
        ({"train": [], "rest": []}, "is not of the form"),
        ({"train": "0", "test": [1]}, "train is no list of names; splits.json: test is no list"),
        ({"train": ["0"], "test": ["0"]}, "'0' is in train and in test"),
    ],
)
def test_a_file_of_splits_that_cannot_be_used_is_refused(
    content: Any, said: str, tmp_path: Path
) -> None:
    pairs(tmp_path)
    split_by(tmp_path, content)
    if content == "{":
        (tmp_path / "splits.json").write_text(content)
    with pytest.raises(DataError, match=f": cannot be trained on: splits.json: {said}"):
        find_scenes(tmp_path)


def test_splits_may_be_folders(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        picture(tmp_path / split / "images" / "1.png", number)
        mask(tmp_path / split / "masks" / "1.png", two_objects())
    source = find_scenes(tmp_path)
    for split in ("train", "val", "test"):
        (scene,) = getattr(source, split)
        assert scene.file == Path(split, "images", "1.png")


def test_pairs_are_split_the_same_way_every_time(tmp_path: Path) -> None:
    first = find_scenes(pairs(tmp_path / "a", 10))
    again = find_scenes(shutil.copytree(tmp_path / "a", tmp_path / "b"))
    assert [one.file for one in first.test] == [one.file for one in again.test]
    assert len(first.test) == 2
    assert first.sha256 == again.sha256


def test_the_hash_is_of_pictures_masks_and_lists(tmp_path: Path) -> None:
    pairs(tmp_path)
    hashes = [find_scenes(tmp_path).sha256]
    (tmp_path / "classes.txt").write_text("cell\n")
    hashes.append(find_scenes(tmp_path).sha256)
    mask(tmp_path / "labels" / "0.png", two_objects()[::-1].copy())
    hashes.append(find_scenes(tmp_path).sha256)
    split_by(tmp_path, {"train": ["0", "1"], "test": ["2"]})
    hashes.append(find_scenes(tmp_path).sha256)
    picture(tmp_path / "images" / "0.jpg", 99)
    hashes.append(find_scenes(tmp_path).sha256)
    assert len({*hashes}) == 5


def test_what_does_not_pair_or_read_is_left_out(tmp_path: Path) -> None:
    pairs(tmp_path)
    images, labels = tmp_path / "images", tmp_path / "labels"
    for name in ("small", "colour", "cut", "text", "alone", "twice", "turned"):
        exif = {"exif": turned(6)} if name == "turned" else {}
        picture(images / f"{name}.png", 50, **exif)
        mask(labels / f"{name}.png", two_objects())
    picture(images / "twice.jpg", 50)
    mask(labels / "small.png", two_objects()[1:])
    Image.new("RGB", (WIDTH, HEIGHT)).save(labels / "colour.png")
    whole = (labels / "cut.png").read_bytes()
    (labels / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "text.png").write_text("no picture")
    (labels / "alone.png").unlink()
    mask(labels / "nothing.png", two_objects())
    (labels / ".DS_Store").write_text("")
    (labels / "0.txt").write_text("YOLO")
    (labels / "deeper").mkdir()
    source = find_scenes(tmp_path)
    assert sorted(classes_in(source)) == ["0", "1", "2"]
    told = left_out(source)
    assert told.pop("labels/cut.png").startswith("is no PNG, or damaged: ")
    assert told.pop("images/text.png").startswith("not an image in a known format")
    assert told == {
        "labels/small.png": "is 30x19 pixels, but its picture is 30x20",
        "labels/colour.png": "is of the kind RGB; a palette or grey is needed",
        "labels/turned.png": "is 30x20 pixels, but its picture is 20x30",
        "images/alone.png": "has no PNG of this name in labels",
        "images/twice.png": "twice.jpg and twice.png have the same name",
        "images/twice.jpg": "twice.jpg and twice.png have the same name",
        "labels/twice.png": "twice.jpg and twice.png have the same name",
        "labels/nothing.png": "has no picture of this name in images",
        "labels/0.txt": "is no PNG",
        "labels/deeper": "is no PNG",
    }


def test_masks_over_the_limit_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs(tmp_path)
    monkeypatch.setattr("training.data.mask_pairs.MAX_PIXELS", 500)
    with pytest.raises(DataError, match=r"labels/0\.png: is 30x20 pixels; the limit is 0\.0005"):
        find_scenes(tmp_path)
