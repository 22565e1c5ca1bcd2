"""Scenes made of CIFAR-10's images, with exact boxes and masks, so that they need no other data.

A scene has 128x128 pixels and 1 to 6 objects. An object is an image, resized to a side of 20 to 56
pixels and cut to a shape; a later one may cover a part of earlier ones. All is drawn by one seeded
generator (PCG64) and resampled by Pillow in whole numbers, so that it is the same on any machine.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.images import RgbImage, rle
from training.data.annotated import (
    SPLITS,
    Found,
    Gathering,
    HeldOut,
    Objects,
    Scene,
    SceneSource,
    objects_of,
)
from training.data.dataset import Source, split_distinct

SIDE = 128
"""Pixels of a scene's sides."""

MOST_OBJECTS = 6
SIDES = (20, 56)
"""The smallest and the largest side of an object before it is cut to its shape, in pixels."""

MOST_COVERED = 40
"""Percent of an object's own area that later ones may cover."""

SCENES = {"train": 8000, "val": 400, "test": 1000}
"""How many are made of a data set."""

HELD_OUT = 0.1
"""The part of each class's training images that scenes to choose with are made of."""

_TRIES = 30
"""Places that are tried for an object; a scene that is full has fewer objects."""

_ENOUGH_CONTRAST = 24
"""Levels by which the mean of a channel differs, so that an object can be told from below it."""

_PATCHES = (3, 9)
"""The fewest blurred patches of a background, and one more than the most."""

_Labels = NDArray[np.int64]
_Window = tuple[slice, slice]


def make_scenes(
    images: NDArray[np.uint8], labels: _Labels, count: int, seed: int
) -> list[tuple[RgbImage, Objects]]:
    """Make scenes of images; the first ones are the same for any `count`.

    Args:
        images: uint8 `[N,32,32,3]`, RGB, from which objects and clutter are made. Those of one
            split alone keep it apart from others.
        labels: int64 `[N]`.
        count: number of scenes.
        seed: decides everything.

    Returns:
        The pixels of each scene, uint8 `[128,128,3]`, and its objects, whose boxes and masks are of
        the part that is seen.

    Raises:
        ValueError: there are no images, or their number is not that of the labels.
    """
    if not len(images) or len(images) != len(labels):
        raise ValueError(
            f"{len(images)} images and {len(labels)} labels; one or more pairs are needed"
        )
    seeds = np.random.SeedSequence(seed).spawn(count)
    return [_scene(images, labels, np.random.Generator(np.random.PCG64(each))) for each in seeds]


def scenes_of(source: Source) -> SceneSource:
    """Return scenes made of a data set for classifiers, `SCENES` by split.

    A tenth of its training images is kept for the scenes to choose with.

    Raises:
        DataError: its images cannot be read or split.
    """
    images, test = source.load_train(), source.load_test()
    made_of = HeldOut(source.sha256, HELD_OUT, 0)
    chosen, held = split_distinct(images, made_of.holdout, made_of.split_seed)
    parts = {"train": images[chosen], "val": images[held], "test": test}
    arrays = {name: (part.images.numpy(), part.labels.numpy()) for name, part in parts.items()}
    made = scene_source(source.place, source.classes, arrays, SCENES, 0)
    return replace(made, name=f"{source.name.removesuffix('-10')}-scenes", made_of=made_of)


def scene_source(
    place: Path,
    classes: Sequence[str],
    images: dict[str, tuple[NDArray[np.uint8], _Labels]],
    counts: dict[str, int],
    seed: int,
) -> SceneSource:
    """Return a set of scenes that lie in no files.

    Args:
        place: the folder of the images that they are made of, for messages.
        classes: names by label.
        images: uint8 `[N,32,32,3]` and labels int64 `[N]` by split: `train`, `test` and, to choose
            with, those that are held out of training as `val`.
        counts: number of scenes by split.
        seed: decides everything; splits differ.

    Raises:
        DataError: there is nothing to train on or to test with.
        ValueError: as `make_scenes` does.
    """
    gathering = Gathering(place)
    for split, (pixels, labels) in images.items():
        # Each split has a seed of its own, which is that of no other set's split.
        own = seed * len(SPLITS) + SPLITS.index(split)
        made = make_scenes(pixels, labels, counts[split], own)
        gathering.scenes[split] = [
            _in_memory(f"{split}/{index:05}.png", *scene) for index, scene in enumerate(made)
        ]
    return gathering.source(classes, ("detection", "segmentation"), name="cifar-scenes")


def _in_memory(name: str, pixels: RgbImage, objects: Objects) -> Found:
    height, width, _ = pixels.shape
    scene = Scene(Path(name), height, width, objects, partial(_png, pixels))
    # The bytes of a PNG differ with the library that compresses it; pixels and labels do not.
    digest = hashlib.sha256(pixels.tobytes())
    objects_digest = hashlib.sha256(objects.labels.astype("<i8").tobytes())
    for mask in objects.masks or ():
        objects_digest.update(mask + b" ")
    return Found(scene, (digest.digest(), objects_digest.digest()))


def _png(pixels: RgbImage) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _scene(
    images: NDArray[np.uint8], labels: _Labels, random: np.random.Generator
) -> tuple[RgbImage, Objects]:
    canvas = _background(images, random)
    instances = np.zeros((SIDE, SIDE), np.int64)
    areas: list[int] = []
    chosen: list[int] = []
    for _ in range(int(random.integers(1, MOST_OBJECTS + 1))):
        index = int(random.integers(len(images)))
        shape = _shape(random)
        image = _resized(images[index], len(shape))
        if place := _place(image, shape, canvas, instances, areas, random):
            canvas[place][shape] = image[shape]
            instances[place][shape] = len(areas) + 1
            areas.append(int(shape.sum()))
            chosen.append(int(labels[index]))
    regions = rle.encode_each(instances)
    regions.pop(0, None)
    boxes = [region.box for region in regions.values()]
    masks = [region.counts for region in regions.values()]
    return canvas, objects_of(boxes, chosen, [False] * len(chosen), masks)


def _background(images: NDArray[np.uint8], random: np.random.Generator) -> RgbImage:
    """Draw a gradient between four colours with soft noise, and blurred patches on it."""
    gradient = _resized(_colours(2, 64, random), SIDE)
    noise = _resized(_colours(int(random.integers(4, 11)), 40, random), SIDE)
    canvas: RgbImage = np.clip(gradient.astype(np.int64) + noise - 128, 0, 255).astype(np.uint8)
    for _ in range(int(random.integers(*_PATCHES))):
        _add_patch(canvas, images[int(random.integers(len(images)))], random)
    return canvas


def _colours(side: int, most: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return colours round grey, `[side,side,3]`, as little saturated as those of photographs."""
    grey: NDArray[np.int64] = random.integers(-most, most + 1, (side, side, 1))
    tint: NDArray[np.int64] = random.integers(-most // 2, most // 2 + 1, (side, side, 3))
    return 128 + grey + tint


def _add_patch(canvas: RgbImage, image: NDArray[np.uint8], random: np.random.Generator) -> None:
    """Mix some of an image's pixels, shuffled and blurred, into the canvas, ever less outwards."""
    shuffled = random.permutation(image.reshape(-1, 3))[:36].reshape(6, 6, 3)
    side = int(random.integers(16, 49))
    part = canvas[_window(side, random)]
    across = 2 * np.arange(side) + 1 - side
    inward = np.maximum(side**2 - across[:, None] ** 2 - across**2, 0)
    weight = (192 * inward // side**2)[..., None]
    part[:] = (part * (256 - weight) + _resized(shuffled, side) * weight) // 256


def _shape(random: np.random.Generator) -> rle.Mask:
    """Return the pixels of an object in its square, bool `[side,side]`.

    Distances are from the square's centre, in half pixels.
    """
    side = int(random.integers(SIDES[0], SIDES[1] + 1))
    kind = int(random.integers(4))
    narrow = side * int(random.integers(60, 91)) // 100
    lies = bool(random.integers(2))
    across = 2 * np.arange(side) + 1 - side
    x, y = across[None, :], across[:, None]
    if kind == 0:  # a square
        return np.ones((side, side), np.bool_)
    if kind == 1:  # a square with round corners
        radius = side // 2
        x, y = (np.maximum(abs(each) - (side - radius), 0) for each in (x, y))
        return np.asarray(x**2 + y**2 <= radius**2)
    if kind == 2:  # a disc
        return np.asarray(x**2 + y**2 <= side**2)
    width, height = (side, narrow) if lies else (narrow, side)
    return np.asarray((x * height) ** 2 + (y * width) ** 2 <= (width * height) ** 2)


def _place(
    image: RgbImage,
    shape: rle.Mask,
    canvas: RgbImage,
    instances: NDArray[np.int64],
    areas: list[int],
    random: np.random.Generator,
) -> _Window | None:
    """Find where an object covers little of others and differs from what is below it.

    If it differs enough nowhere, it goes where it differs most; if there is no room, nowhere.
    """
    best, most = None, -1
    before = np.bincount(instances.ravel(), minlength=len(areas) + 1)
    least = (100 - MOST_COVERED) * np.array(areas, np.int64)
    for _ in range(_TRIES):
        window = _window(len(shape), random)
        covered = np.bincount(instances[window][shape], minlength=len(areas) + 1)
        if np.any(100 * (before - covered)[1:] < least):
            continue
        sums = [pixels[shape].sum(0, np.int64) for pixels in (image, canvas[window])]
        contrast = int(abs(sums[0] - sums[1]).max()) // int(shape.sum())
        if contrast > most:
            best, most = window, contrast
        if contrast >= _ENOUGH_CONTRAST:
            break
    return best


def _window(side: int, random: np.random.Generator) -> _Window:
    """Choose the place of a square in the scene."""
    top, left = random.integers(0, SIDE - side + 1, 2).tolist()
    return slice(top, top + side), slice(left, left + side)


def _resized(pixels: NDArray[np.integer[Any]], side: int) -> RgbImage:
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return np.array(image.resize((side, side), Image.Resampling.BICUBIC), np.uint8)
