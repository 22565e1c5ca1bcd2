import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as reference
from PIL import Image, ImageDraw

from app.images import rle
from tests.support.pictures import turned
from tests.support.scene_folders import masks_of
from training.data.scenes import SceneSource, find_scenes
from training.errors import DataError

WIDTH, HEIGHT = 40, 30

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def picture(path: Path, level: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 100, 200)).save(path)


def image(identity: int, name: str = "", **others: Any) -> dict[str, Any]:
    size = {"width": WIDTH, "height": HEIGHT}
    return {"id": identity, "file_name": name or f"{identity}.png", **size, **others}


def annotation(identity: int, image_id: int, **others: Any) -> dict[str, Any]:
    entry = {"id": identity, "image_id": image_id, "category_id": 3, "bbox": [1, 2, 10, 20]}
    return entry | others


def document(images: list[Any], annotations: list[Any], **others: Any) -> dict[str, Any]:
    return {"images": images, "annotations": annotations, "categories": CATEGORIES, **others}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


Make = Callable[..., SceneSource]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Read a set whose picture 1, in train, has these annotations; picture 2 is the test."""

    def read(*annotations: Any, entry: Mapping[str, Any] | None = None, **others: Any) -> Any:
        if not (tmp_path / "images" / "1.png").exists():
            picture(tmp_path / "images" / "1.png", 1)
        picture(tmp_path / "images" / "2.png", 2)
        sound = annotation(1, 1)
        train = document([entry or image(1)], [sound, *annotations], **others)
        write(tmp_path / "train.json", train)
        write(tmp_path / "test.json", document([image(2)], [annotation(1, 2)], **others))
        return find_scenes(tmp_path)

    return read


def left_out(source: SceneSource) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {}
    for item in source.findings.left_out:
        told.setdefault(item.path.as_posix(), []).append(item.reason)
    return told


def filled(*points: tuple[float, float]) -> list[float]:
    return [number for point in points for number in point]


def test_boxes_are_read_with_their_classes(make: Make, tmp_path: Path) -> None:
    source = make(annotation(2, 1, category_id=7, bbox=[0.5, 0, 4.25, 30], iscrowd=1))
    assert source.name == tmp_path.name
    assert source.classes == ("cat", "dog")
    assert source.tasks == ("detection",)
    assert source.instances
    (scene,) = source.train
    assert (scene.file, scene.height, scene.width) == (Path("images/1.png"), HEIGHT, WIDTH)
    assert scene.objects.boxes.dtype == np.float32
    assert scene.objects.boxes.tolist() == [[1, 2, 10, 20], [0.5, 0, 4.25, 30]]
    assert scene.objects.labels.tolist() == [0, 1]
    assert scene.objects.labels.dtype == np.int64
    assert scene.objects.crowd.tolist() == [False, True]
    assert scene.objects.masks is None
    assert scene.load() == (tmp_path / "images" / "1.png").read_bytes()
    assert scene.pixels()[0, 0].tolist() == [1, 100, 200]
    assert source.val == ()
    assert source.findings.pictures == {"train": 1, "val": 0, "test": 1}
    assert source.findings.objects == {"train": (1, 1), "val": (0, 0), "test": (1, 0)}
    assert source.findings.left_out == ()
    assert source.findings.notes == (
        "1 region is a crowd (iscrowd), which is neither learned nor counted",
        "dog has no object to test with",
    )


def every_layout() -> dict[str, dict[str, tuple[str, str]]]:
    """The JSON and the folder of pictures of each split."""
    return {
        "images": {name: (f"{name}.json", "images") for name in ("train", "val", "test")},
        "folder": {name: (f"{name}.json", name) for name in ("train", "val", "test")},
        "beside": {name: (f"{name}.json", "") for name in ("train", "val", "test")},
        "coco": {
            "train": ("annotations/instances_train2017.json", "train2017"),
            "val": ("annotations/instances_val2017.json", "val2017"),
            "test": ("annotations/instances_test.json", "images/test"),
        },
        "roboflow": {
            "train": ("train/_annotations.coco.json", "train"),
            "val": ("valid/_annotations.coco.json", "valid"),
            "test": ("test/_annotations.coco.json", "test"),
        },
    }


@pytest.mark.parametrize("layout", every_layout())
def test_each_layout_is_recognised(layout: str, tmp_path: Path) -> None:
    for number, (split, (path, folder)) in enumerate(every_layout()[layout].items()):
        picture(tmp_path / folder / f"{split}.png", number)
        entries = document([image(1, f"{split}.png")], [annotation(1, 1)])
        write(tmp_path / path, entries)
    source = find_scenes(tmp_path)
    for split, (_, folder) in every_layout()[layout].items():
        (scene,) = getattr(source, split)
        assert scene.file == Path(folder, f"{split}.png")
        assert len(scene.objects) == 1
    assert source.findings.left_out == ()


@pytest.mark.parametrize(
    "name",
    [
        "annotations.json",
        "_annotations.coco.json",
        "export 3.json",
        "annotations/instances_default.json",
    ],
)
def test_one_file_is_split_the_same_way_every_time_and_anywhere(name: str, tmp_path: Path) -> None:
    tested = []
    for place, order in ((tmp_path / "a", 1), (tmp_path / "b", -1)):
        numbers = [*range(1, 21)][::order]
        for number in numbers:
            picture(place / "images" / f"{number}.bmp", number)
        images = [image(number, f"{number}.bmp") for number in numbers]
        write(place / name, document(images, [annotation(n, n) for n in numbers]))
        source = find_scenes(place)
        assert len(source.train) == 16
        tested.append(sorted(scene.file for scene in source.test))
        assert {*tested[-1]}.isdisjoint(scene.file for scene in source.train)
    assert tested[0] == tested[1]
    assert [path.name for path in tested[0]] == ["11.bmp", "16.bmp", "4.bmp", "7.bmp"]


def test_pictures_of_the_same_file_come_into_the_same_split(tmp_path: Path) -> None:
    for number in range(1, 31):
        picture(tmp_path / "images" / f"{number}.png", number // 3)
    images = [image(number) for number in range(1, 31)]
    write(tmp_path / "annotations.json", document(images, [annotation(n, n) for n in range(1, 31)]))
    source = find_scenes(tmp_path)
    sides = [{scene.load() for scene in scenes} for scenes in (source.train, source.test)]
    assert len(sides[1]) == 2
    assert sides[0].isdisjoint(sides[1])
    assert source.findings.repeated == 0


def test_a_split_leaves_objects_of_each_class_to_train_on(tmp_path: Path) -> None:
    for number in range(1, 11):
        picture(tmp_path / f"{number}.png", number)
    images = [image(number) for number in range(1, 11)]
    categories = [{"id": number, "name": f"class {number}"} for number in range(11)]
    annotations = [annotation(n, n, category_id=n) for n in range(1, 9)]
    annotations += [annotation(n, n, category_id=10) for n in (9, 10)]
    write(tmp_path / "annotations.json", document(images, annotations, categories=categories))
    source = find_scenes(tmp_path)
    assert all(source.findings.objects["train"])
    assert len(source.test) == 1  # of two that are wanted


def test_pictures_in_two_splits_are_counted(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "1.png")
        write(tmp_path / f"{split}.json", document([image(1)], [annotation(1, 1)]))
    assert find_scenes(tmp_path).findings.repeated == 1


def test_val_serves_as_test_where_there_is_none(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "valid")):
        picture(tmp_path / split / "1.png", number)
        write(tmp_path / split / "_annotations.coco.json", document([image(1)], [annotation(1, 1)]))
    source = find_scenes(tmp_path)
    assert source.val == ()
    assert [scene.file for scene in source.test] == [Path("valid/1.png")]
    assert any("there is no test split" in note for note in source.findings.notes)


def test_supercategories_that_nobody_uses_are_no_classes(make: Make) -> None:
    categories = [{"id": 0, "name": "animals", "supercategory": "none"}, *CATEGORIES]
    source = make(annotation(2, 1, category_id=7), categories=categories)
    assert source.classes == ("cat", "dog")
    assert source.train[0].objects.labels.tolist() == [0, 1]
    assert "animals has no objects; it becomes no class" in source.findings.notes


def test_classes_are_matched_by_name_where_splits_number_them_apart(tmp_path: Path) -> None:
    for split, ids in (("train", (1, 2)), ("test", (2, 1))):
        picture(tmp_path / split / "1.png", ids[0])
        categories = [{"id": ids[0], "name": "Tür"}, {"id": ids[1], "name": "cat"}]
        entries = [annotation(1, 1, category_id=ids[0]), annotation(2, 1, category_id=ids[1])]
        content = document([image(1)], entries, categories=categories)
        if split == "test":
            content["categories"][0]["name"] = "Tu\u0308r"
        write(tmp_path / f"{split}.json", content)
    source = find_scenes(tmp_path)
    assert source.classes == ("Tür", "cat")
    assert source.test[0].objects.labels.tolist() == [0, 1]


def test_ids_may_be_text_or_have_a_fraction_of_zero(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 1)
    picture(tmp_path / "2.png", 2)
    images = [{**image(1), "id": "a"}, {**image(2), "id": 2.0}]
    entries = [annotation(1, 1) | {"image_id": "a"}, annotation(2, 2, category_id=3.0)]
    write(tmp_path / "annotations.json", document(images, entries))
    source = find_scenes(tmp_path)
    assert [len(scene.objects) for scene in (*source.train, *source.test)] == [1, 1]


def test_polygons_and_run_lengths_become_masks(tmp_path: Path) -> None:
    expected = np.zeros((HEIGHT, WIDTH), np.bool_)
    expected[5:15, 10:30] = True
    polygon = filled((10, 5), (30, 5), (30, 15), (10, 15))
    halves = [
        filled((10, 5), (20, 5), (20, 15), (10, 15)),
        filled((20, 5), (30, 5), (30, 15), (20, 15)),
    ]
    counts = reference.encode(np.asfortranarray(expected, np.uint8))["counts"]
    runs = [10 * HEIGHT + 5, *[10, 20] * 19, 10, 15 + 10 * HEIGHT]
    size = [HEIGHT, WIDTH]
    forms: list[Any] = [
        [polygon],
        polygon,
        halves,
        [polygon, [1, 1], [1, 1, 2, 2]],
        {"size": size, "counts": runs},
        {"size": size, "counts": counts if isinstance(counts, str) else counts.decode()},
    ]
    picture(tmp_path / "images" / "1.png", 1)
    picture(tmp_path / "images" / "2.png", 2)
    entries = [
        {"id": n, "image_id": 1, "category_id": 3, "segmentation": form}
        for n, form in enumerate(forms)
    ]
    write(tmp_path / "train.json", document([image(1)], entries))
    write(tmp_path / "test.json", document([image(2)], [{**entries[0], "image_id": 2}]))
    source = find_scenes(tmp_path)
    assert source.tasks == ("detection", "segmentation")
    assert left_out(source) == {}
    masks = masks_of(source.train[0])
    assert masks.shape == (len(forms), HEIGHT, WIDTH)
    assert (masks == expected).all()
    assert source.train[0].objects.boxes.tolist() == [[10, 5, 20, 10]] * len(forms)


def test_polygons_are_drawn_as_the_tools_of_coco_draw_them(make: Make, tmp_path: Path) -> None:
    star = [
        20 + 14 * np.cos(4 * np.pi / 5 * np.arange(5)),
        15 + 14 * np.sin(4 * np.pi / 5 * np.arange(5)),
    ]
    polygons = [np.stack(star, 1).ravel().tolist(), filled((1.3, 2.7), (9.9, 3), (-4, 25.5))]
    source = make(
        annotation(2, 1, segmentation=polygons), annotation(3, 1, segmentation=polygons[:1])
    )
    assert source.tasks == ("detection",)
    write(
        tmp_path / "train.json",
        document([image(1)], [annotation(2, 1, segmentation=polygons)]),
    )
    write(
        tmp_path / "test.json", document([image(2)], [annotation(3, 2, segmentation=polygons[1:])])
    )
    expected = reference.decode(reference.merge(reference.frPyObjects(polygons, HEIGHT, WIDTH)))
    (mask,) = masks_of(find_scenes(tmp_path).train[0])
    assert np.array_equal(mask, expected.astype(np.bool_))
    assert mask[15, 30]
    assert not mask[15, 20]  # the middle of a star is crossed twice


def test_boxes_alone_are_learned_where_some_objects_have_no_mask(
    make: Make, tmp_path: Path
) -> None:
    square = filled((1, 2), (11, 2), (11, 22), (1, 22))
    make(annotation(2, 1, segmentation=[square]), annotation(3, 1, segmentation=[]))
    masked = annotation(1, 2, segmentation=[square])
    write(tmp_path / "test.json", document([image(2)], [masked]))
    source = find_scenes(tmp_path)
    assert source.tasks == ("detection",)
    assert all(scene.objects.masks is None for scene in (*source.train, *source.test))
    told = "2 of 4 objects have a box and no mask; the first is annotation 1 of images/1.png"
    assert source.why_not == told
    assert f"only boxes can be learned: {told}" in source.findings.notes


def test_a_box_partly_outside_is_clipped_and_counted(make: Make) -> None:
    source = make(
        annotation(2, 1, bbox=[-3, -4, 10, 50]),
        annotation(3, 1, bbox=[35, 25, 10, 10]),
        annotation(4, 1, bbox=[30, 20, 10.0001, 10]),
    )
    assert source.train[0].objects.boxes[1:].tolist() == [
        [0, 0, 7, 30],
        [35, 25, 5, 5],
        [30, 20, 10, 10],
    ]
    assert (
        "2 boxes reach beyond their pictures and are clipped; the first is annotation 2 of "
        "images/1.png"
    ) in source.findings.notes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bbox": [50, 2, 10, 10]}, "its box [50, 2, 10, 10] is outside the picture of 40x30"),
        ({"bbox": [-20, 2, 20, 10]}, "its box [-20, 2, 20, 10] is outside the picture of 40x30"),
        ({"bbox": [1, 2, 0, 10]}, "its box [1, 2, 0, 10] has no area"),
        ({"bbox": [1, 2, 5, -10]}, "its box [1, 2, 5, -10] has no area"),
        ({"bbox": [1, 2, float("nan"), 10]}, "its box [1, 2, NaN, 10] is not finite"),
        ({"bbox": [1, 2, float("inf"), 10]}, "its box [1, 2, Infinity, 10] is not finite"),
        ({"bbox": [1e308, 2, 1e308, 10]}, "its box [1e+308, 2, 1e+308, 10] is not finite"),
        ({"bbox": [1, 2, 10**400, 10]}, "its box is not finite"),
        ({"bbox": [1, 2, 3]}, "its box is [1, 2, 3]; four numbers are needed"),
        ({"bbox": [1, 2, "3", 4]}, 'its box is [1, 2, "3", 4]; four numbers are needed'),
        ({"bbox": [1, 2, True, 4]}, "its box is [1, 2, true, 4]; four numbers are needed"),
        ({"bbox": {"x": 1}}, 'its box is {"x": 1}; four numbers are needed'),
        ({"bbox": None}, "has neither box nor mask"),
        ({"bbox": [], "segmentation": []}, "has neither box nor mask"),
        ({"category_id": 99}, "there is no category with id 99"),
        ({"category_id": None}, "there is no category with id null"),
        ({"category_id": [3]}, "there is no category with id [3]"),
        ({"iscrowd": 2}, "its iscrowd is 2; 0 and 1 are allowed"),
        ({"iscrowd": [1]}, "its iscrowd is [1]; 0 and 1 are allowed"),
        ({"segmentation": 7}, "its segmentation is 7; no polygons, no counts"),
        ({"segmentation": [[1, 1, 2, 2]]}, "its polygons have fewer than 3 points"),
        (
            {"segmentation": [[1, 1, 2, 2, 3]]},
            "its polygon has 5 numbers; an even number is needed",
        ),
        (
            {"segmentation": [[[1, 1], [2, 2], [3, 1]]]},
            "its polygon is not a list of numbers x, y, x, y",
        ),
        (
            {"segmentation": [[1, 1, 9, 1, float("nan"), 9]]},
            "its polygon has a point at nan; the limit is 400",
        ),
        (
            {"segmentation": [[1, 1, 9, 1, 1e9, 9]]},
            "its polygon has a point at 1e+09; the limit is 400",
        ),
        (
            {"segmentation": [[50, 1, 60, 1, 60, 9]]},
            "its mask has no pixel in the picture",
        ),
        (
            {"segmentation": {"size": [40, 30], "counts": [1200]}},
            "its mask has the size [40, 30]; that of the picture is [30, 40]",
        ),
        (
            {"segmentation": {"counts": [1200]}},
            "its mask has the size null; that of the picture is [30, 40]",
        ),
        (
            {"segmentation": {"size": [30, 40], "counts": [1, 2]}},
            "its mask cannot be read: the runs make 3 pixels; 40x30 are 1200",
        ),
        (
            {"segmentation": {"size": [30, 40], "counts": "0~"}},
            "its mask cannot be read: counts hold b'~' at 1; '0' to 'o' are",
        ),
        (
            {"segmentation": {"size": [30, 40], "counts": 5}},
            "its counts are 5; text or a list is needed",
        ),
        (
            {"segmentation": {"size": [30, 40], "counts": [1200]}},
            "its mask has no pixel in the picture",
        ),
    ],
)
def test_an_annotation_that_cannot_be_used_is_left_out(
    changes: dict[str, Any], said: str, make: Make
) -> None:
    source = make(annotation(2, 1, **changes), annotation(3, 1))
    assert left_out(source) == {"images/1.png": [f"annotation 2: {said}"]}
    assert len(source.train[0].objects) == 2


def test_annotations_of_no_image_are_left_out(make: Make) -> None:
    source = make(annotation(2, 77), annotation(3, 1) | {"image_id": [1]}, "none", {"image_id": 5})
    assert left_out(source) == {
        "train.json": [
            "annotation 2: there is no image with id 77",
            "annotation 3: there is no image with id [1]",
            "annotation at 3: is no object",
            "annotation at 4: there is no image with id 5",
        ]
    }


def test_pictures_that_cannot_be_read_are_left_out_with_their_annotations(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for number in range(1, 5):
        picture(images / f"{number}.png", number)
    whole = (images / "1.png").read_bytes()
    (images / "cut.png").write_bytes(whole[:60])
    (images / "text.png").write_text("no picture")
    (images / "more.png").write_bytes(whole)
    (images / "sideways.png").write_bytes(whole)
    (images / "folder.png").mkdir()
    entries = [
        image(1),
        image(2, "gone.png"),
        image(3, "cut.png"),
        image(4, "text.png"),
        image(5, "folder.png"),
        image(6, "1.png"),
        image(7, "../1.png"),
        image(8, "/1.png"),
        image(9, "C:\\1.png"),
        image(10, "a/../1.png"),
        image(11) | {"file_name": ""},
        image(12, "1\0.png"),
        image(13, "2.png", width=41),
        image(15, "sideways.png", width=HEIGHT, height=WIDTH),
        image(14, "x" * 300),
    ]
    write(tmp_path / "train.json", document(entries, [annotation(n, n) for n in range(1, 4)]))
    write(tmp_path / "test.json", document([image(3), image(4, ".\\4.png")], [annotation(1, 3)]))
    source = find_scenes(tmp_path)
    assert [scene.file.name for scene in (*source.train, *source.test)] == [
        "1.png",
        "3.png",
        "4.png",
    ]
    told = left_out(source)
    assert told.pop("images/cut.png")[0].startswith("PNG image is damaged")
    assert told.pop("images/text.png")[0].startswith("not an image in a known format")
    assert told.pop(f"train/{'x' * 300}", None) or told.pop(f"images/{'x' * 300}")
    assert told == {
        "train/gone.png": ["no such file; with it 1 annotation"],
        "images/folder.png": ["is a folder"],
        "images/2.png": ["is 40x30 pixels, but annotated as 41x30"],
        "images/sideways.png": ["is 40x30 pixels, but annotated as 30x40"],
        "images/more.png": ["is named by no annotations"],
        "train.json": [
            'image 6: file_name "1.png" is named by another image',
            'image 7: file_name "../1.png" leaves the folder of the set',
            'image 8: file_name "/1.png" leaves the folder of the set',
            'image 9: file_name "C:\\\\1.png" leaves the folder of the set',
            'image 10: file_name "a/../1.png" leaves the folder of the set',
            'image 11: file_name "" is no name of a file',
            'image 12: file_name "1\\u0000.png" is no name of a file',
        ],
    }
    assert source.findings.pictures == {"train": 1, "val": 0, "test": 2}
    assert "1 picture has no objects" in source.findings.notes


def test_a_name_in_other_code_points_is_found(make: Make, tmp_path: Path) -> None:
    picture(tmp_path / "images" / "Tu\u0308r.png", 9)
    source = make(entry=image(1, "Tür.png"))
    assert source.train[0].file.name == "Tu\u0308r.png"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_annotations_of_the_stored_picture_are_turned_with_it(
    orientation: int, make: Make, tmp_path: Path
) -> None:
    """The object is a red triangle, of which the service sees the same pixels as its mask has."""
    corners = [(4, 3), (4, 17), (30, 3)]
    stored = Image.new("RGB", (WIDTH, HEIGHT), "blue")
    ImageDraw.Draw(stored).polygon(corners, fill="red")
    mask = np.asarray(stored)[..., 0] > 0
    (tmp_path / "images").mkdir()
    stored.save(tmp_path / "images" / "1.png", exif=turned(orientation))
    rows, columns = mask.nonzero()
    segmentation = {"size": [HEIGHT, WIDTH], "counts": rle.encode(mask).decode()}
    box = [4, 3, int(columns.max()) - 3, int(rows.max()) - 2]
    whole = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    make()
    write(
        tmp_path / "train.json",
        document([image(1)], [annotation(1, 1, bbox=box, segmentation=segmentation)]),
    )
    write(tmp_path / "test.json", document([image(2)], [annotation(1, 2, segmentation=whole)]))
    source = find_scenes(tmp_path)
    (scene,) = source.train
    red = scene.pixels()[..., 0] > 0
    assert (scene.height, scene.width) == red.shape
    if orientation in {2, 3, 4}:  # nothing tells to which picture the annotations belong
        assert scene.objects.boxes.tolist() == [box]
        assert any("taken to be of the upright picture" in note for note in source.findings.notes)
        return
    assert np.array_equal(masks_of(scene)[0], red)
    rows, columns = red.nonzero()
    left, top = columns.min(), rows.min()
    size = [columns.max() - left + 1, rows.max() - top + 1]
    assert scene.objects.boxes.tolist() == [[left, top, *size]]
    turned_note = "1 picture is annotated as it is stored; its boxes and masks are turned with it"
    assert (turned_note in source.findings.notes) == (orientation >= 5)


def test_annotations_of_the_upright_picture_stay(make: Make, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    upright = image(1, width=HEIGHT, height=WIDTH)
    unknown = {"id": 1, "file_name": "1.png"}
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "1.png", exif=turned(6))
    for entry in (upright, unknown):
        source = make(entry=entry)
        assert source.train[0].objects.boxes.tolist() == [[1, 2, 10, 20]]
        assert (source.train[0].height, source.train[0].width) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "train.json: is not JSON: Expecting property name"),
        ("[" * 100_000, "train.json: is not JSON: maximum recursion depth exceeded"),
        ("[]", r"train.json: is \[\]; an object with images, annotations and categories is needed"),
        ("{}", "train.json: has no images; train.json: has no annotations; train.json: has no cat"),
        (
            {**document([], []), "images": {}},
            "train.json: images is {}; a list is needed",
        ),
        (document(["\u202e"], []), r'train.json: images\[0\] is "\\u202e"; an object is needed'),
        (document([7], []), r"train.json: images\[0\] is 7; an object is needed"),
        (
            document([image(1), {"id": None}, image(1, "b.png")], []),
            r"train.json: images\[1\].id is null; a whole number is needed; "
            r"train.json: images\[2\].id is 1, as that of images\[0\]",
        ),
        (
            document([image(1, file_name=12), image(2, width="40")], []),
            r"train.json: images\[0\].file_name is 12; text is needed; "
            r'train.json: images\[1\]: height and width are \[30, "40"\]; numbers are needed',
        ),
        (
            document([], [], categories=[{"id": 1, "name": "Tür"}, {"id": 2, "name": "Tu\u0308r"}]),
            r"train.json: categories\[1\].name is .*, as that of another category",
        ),
        (
            document([], [], categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]),
            r"train.json: categories\[1\].id is 1, as that of 'a'",
        ),
        (
            document([], [], categories=[7, {"id": 1}, {"name": "a"}, {"id": 2, "name": " "}]),
            r"train.json: categories\[0\] is 7; an object is needed; "
            r"train.json: categories\[1\].name is null; a name is needed; "
            r"train.json: categories\[2\].id is null; a whole number is needed; "
            r'train.json: categories\[3\].name is " "; a name is needed',
        ),
    ],
)
def test_a_file_that_is_not_coco_is_refused_with_all_faults(
    content: Any, said: str, make: Make, tmp_path: Path
) -> None:
    make()
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "train.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f": cannot be trained on: {said}"):
        find_scenes(tmp_path)


def test_a_file_of_annotations_that_is_too_large_is_not_read(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    monkeypatch.setattr("training.data.coco.MAX_JSON_BYTES", 100)
    with pytest.raises(DataError, match=r"train\.json: is [0-9]+ bytes; the limit is 100; test"):
        find_scenes(tmp_path)


def test_a_set_without_usable_pictures_is_refused(make: Make, tmp_path: Path) -> None:
    make()
    (tmp_path / "images" / "1.png").unlink()
    told = r": train/1\.png: no such file; with it 1 annotation; no picture to train on$"
    with pytest.raises(DataError, match=told):
        find_scenes(tmp_path)


@pytest.mark.parametrize(
    ("path", "images"),
    [("train.json", "images"), ("annotations/instances_train2017.json", "train2017")],
)
def test_a_set_without_test_pictures_is_told_how_it_is_split(
    path: str, images: str, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        picture(tmp_path / images / f"{number}.png", number)
    (tmp_path / images / "notes.png").write_text("no picture")  # which is not the cause
    entries = [image(number) for number in (1, 2, 3)]
    write(tmp_path / path, document(entries, [annotation(n, n) for n in (1, 2, 3)]))
    with pytest.raises(DataError) as caught:
        find_scenes(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: cannot be trained on: no picture to test with: there is only {path}, of "
        "train; named annotations.json, with its pictures in images, it is split"
    )
    (tmp_path / path).rename(tmp_path / "annotations.json")
    if images != "images":
        (tmp_path / images).rename(tmp_path / "images")
    assert find_scenes(tmp_path).findings.pictures == {"train": 2, "val": 0, "test": 1}


def test_the_same_fault_of_many_files_is_one_of_the_causes(tmp_path: Path) -> None:
    entries = [image(number) for number in range(30)]
    write(tmp_path / "train.json", document(entries, [annotation(n, n) for n in range(30)]))
    write(tmp_path / "test.json", document([image(99)], [annotation(1, 7)]))
    with pytest.raises(DataError) as caught:
        find_scenes(tmp_path)
    assert caught.value.lines == [
        f"{tmp_path}: cannot be trained on:",
        "  train/0.png: no such file; with it 1 annotation (and 29 more like it)",
        "  test.json: annotation 1: there is no image with id 7",
        "  test/99.png: no such file",
        "  no picture to train on",
        "  no picture to test with",
        "  no object in any picture",
    ]


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    for year in (2014, 2017):
        write(tmp_path / "annotations" / f"instances_train{year}.json", document([], []))
    with pytest.raises(
        DataError,
        match=r"annotations/instances_train2014\.json and annotations/instances_train2017\.json "
        r"are both of train; one is needed$",
    ):
        find_scenes(tmp_path)


def test_the_hash_is_of_annotations_and_pictures(make: Make, tmp_path: Path) -> None:
    first = make().sha256
    assert make().sha256 == first
    assert make(annotation(2, 1)).sha256 != first
    picture(tmp_path / "images" / "1.png", 77)
    assert make().sha256 != first


def test_names_are_made_printable(make: Make, tmp_path: Path) -> None:
    source = make(
        entry=image(1), categories=[{"id": 3, "name": "c\x1b[2J"}, {"id": 7, "name": "d\n"}]
    )
    assert source.findings.notes == ("d\\n has no objects; it becomes no class",)
    (tmp_path / "images" / "1.png").unlink()
    (tmp_path / "images" / "\x1b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"images/\\x1b\.png: is named by no annotations"):
        find_scenes(tmp_path)
