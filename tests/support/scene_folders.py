"""A small annotated folder: rectangles in two colours, in pictures of several shapes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.images import rle
from tests.support.pictures import as_file, stored, turned
from training.data.annotated import Scene

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
IDS = {"red": 4, "blue": 9}
SHAPES = ((60, 80), (48, 96), (80, 60))
ORIENTATIONS = (1, 6, 3, 8)


def masks_of(scene: Scene) -> NDArray[np.bool_]:
    """Return the masks of a scene's objects, bool `[n,height,width]`."""
    assert scene.objects.masks is not None
    return np.array([rle.decode(mask, scene.height, scene.width) for mask in scene.objects.masks])


def write_scene_folder(place: Path, train: int = 12, val: int = 4, test: int = 8) -> None:
    """Write a set in COCO's format, with masks; every other picture is turned by its EXIF."""
    random = np.random.default_rng(0)
    (place / "images").mkdir(parents=True)
    for split, count in (("train", train), ("val", val), ("test", test)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            name = f"{split}-{index}.png"
            height, width = SHAPES[index % len(SHAPES)]
            pixels = random.integers(90, 130, (height, width, 3)).astype(np.uint8)
            images.append({"id": index, "file_name": name, "width": width, "height": height})
            for number in range(2):
                label = ("red", "blue")[int(random.integers(2))]
                across, down = (int(side) for side in random.integers(14, 26, 2))
                x = int(random.integers(0, width // 2 - across + 2)) + number * (width // 2 - 2)
                y = int(random.integers(0, height - down + 1))
                across = min(across, width - x)
                mask = np.zeros((height, width), np.bool_)
                mask[y : y + down, x : x + across] = True
                pixels[mask] = COLOURS[label]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": IDS[label],
                        "bbox": [x, y, across, down],
                        "iscrowd": 0,
                        "area": across * down,
                        "segmentation": {
                            "size": [height, width],
                            "counts": rle.encode(mask).decode(),
                        },
                    }
                )
            orientation = ORIENTATIONS[index % len(ORIENTATIONS)]
            content = as_file(stored(pixels, orientation), "PNG", exif=turned(orientation))
            (place / "images" / name).write_bytes(content)
        categories = [{"id": key, "name": name} for name, key in IDS.items()]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (place / f"{split}.json").write_text(json.dumps(document))
