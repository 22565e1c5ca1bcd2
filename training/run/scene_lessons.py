"""The lessons of detectors and segmenters: pictures with their objects, moved at random.

Pictures are laid into the network's input as the service does it (letterbox), at the largest size
that the recipe shows them in. A picture's random numbers come from the epoch's seed and its own
place, so they are the same however many processes share the batch.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from app.artifact.manifest import Task
from app.errors import ImageError
from app.images import RgbImage, rle
from app.images.decode import decode_placed
from app.images.placement import Placement, Resize, letterboxed
from training.architectures import find_architecture, yolo, yolo_v1
from training.data import dataset
from training.data.annotated import Scene
from training.data.augmentation import Epoch
from training.data.class_folders import MAX_PIXELS
from training.data.scene_augmentation import (
    SceneAugmentation,
    draw_moves,
    move_boxes,
    paste,
    recolour,
)
from training.data.scenes import SceneSource
from training.errors import DataError, RecipeError
from training.recipes import Recipe
from training.run.lessons import Batch
from training.tasks import (
    detection,
    detection_metrics,
    detection_v1,
    segmentation,
    segmentation_metrics,
)

RESIZE = Resize(policy="letterbox", interpolation="bilinear")

STRIDE = 16
"""Height and width of the input are multiples of it."""

SOME_IMAGES = 256
MEASURED_EPOCHS = 20
"""How many of a run's epochs are measured on held-out pictures."""

MEASURED_BATCH = 8

KEPT_BYTES = 2 << 30
"""Of decoded pictures in memory. The others are decoded whenever they are drawn."""


@dataclass(frozen=True)
class LaidScene:
    """A picture laid into an input, with its objects there.

    Attributes:
        image: uint8 `[3,h,w]`.
        boxes: left, upper, right, lower, float32 `[M,4]`.
        labels: as in `detection.Truth`, int64 `[M]`.
        numbers: each pixel's object, counted from 1, 0 for background and -1 for pixels that count
            for nothing, int32 `[h,w]`; None where masks are not asked for.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    numbers: Tensor | None

    @property
    def bytes(self) -> int:
        """In memory, of pixels."""
        return self.image.nbytes + (0 if self.numbers is None else self.numbers.nbytes)

    def object_numbers(self) -> NDArray[np.int64]:
        """Return the numbers as an array.

        Raises:
            ValueError: there are none.
        """
        if self.numbers is None:
            raise ValueError("the scene was laid without masks")
        numbers: NDArray[np.int64] = self.numbers.numpy().astype(np.int64)
        return numbers

    def pixel_classes(self) -> NDArray[np.int64]:
        """Return each pixel's class, 0 for background, `segmentation.IGNORED` for none."""
        return classes_of(self.object_numbers(), self.labels.numpy())


@dataclass(frozen=True)
class Draft:
    """Pictures of an epoch, by their places in the set; nothing is drawn yet."""

    places: Tensor
    epoch: Epoch

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Tensor) -> "Draft":
        return Draft(self.places[index], self.epoch)


def check_scene_recipe(recipe: Recipe, task: Task, classes: int) -> None:
    """Raise unless a detector or segmenter can learn by a recipe.

    Raises:
        RecipeError: names the field, its value and what it can be.
    """
    for name in ("height", "width"):
        value = getattr(recipe, name)
        if value == 0:
            raise RecipeError(f"{name} is not given; it is a multiple of {STRIDE}")
        if value % STRIDE:
            raise RecipeError(
                f"{name} is {value}; {recipe.architecture} takes multiples of {STRIDE}"
            )
    if recipe.optimizer == "muon":
        raise RecipeError(
            f"optimizer is muon; {recipe.architecture} has no fully connected last layer, for "
            "which muon-adamw is"
        )
    if recipe.flip == "alternating":
        raise RecipeError(f"flip is alternating; {recipe.architecture} takes off or random")
    if task == "segmentation" and classes > MOST_MASKED:
        raise RecipeError(f"there are {classes} classes of masks; the limit is {MOST_MASKED}")


MOST_MASKED = 255
"""Classes of a segmenter: with background, as many as a PNG's palette has entries."""


class SceneLessons(ABC):
    """The pictures of a run; with the methods below, `training.run.lessons.Lessons`."""

    with_masks: bool

    def __init__(
        self,
        recipe: Recipe,
        source: SceneSource,
        train: Sequence[Scene],
        heldout: Sequence[Scene],
        device: torch.device,
    ) -> None:
        """Decode the pictures."""
        self._recipe, self._device = recipe, device
        self._size = recipe.height, recipe.width
        self._canvas = round(recipe.height * recipe.largest), round(recipe.width * recipe.largest)
        self._train, self._heldout = tuple(train), tuple(heldout)
        self._kept: dict[int, LaidScene] = {}
        self._room = KEPT_BYTES
        self._classes = len(source.classes)
        self.mean, self.deviation = dataset.channel_statistics_of(
            self._decoded(place).image.permute(1, 2, 0)[None] for place in range(len(train))
        )

    def __len__(self) -> int:
        return len(self._train)

    def some_images(self) -> Tensor:
        """Return some pictures, normalised."""
        some = range(0, len(self), max(1, len(self) // SOME_IMAGES))[:SOME_IMAGES]
        images = [
            F.interpolate(
                self._decoded(place).image[None], self._size, mode="bilinear", antialias=True
            )
            for place in some
        ]
        return self._normalized(torch.cat(images))

    def drafts(self, epoch: Epoch, size: int) -> Iterator[Draft]:
        """Yield every picture once, in random order."""
        generator = torch.Generator().manual_seed(epoch.own_seed)
        order = torch.randperm(len(self), generator=generator)
        for places in order.split(size):
            yield Draft(places, epoch)

    def prepare(self, draft: Draft) -> Batch:
        """Draw the pictures, moved and coloured at random."""
        drawn = [self._draw(place, draft.epoch) for place in draft.places.tolist()]
        images = self._normalized(torch.stack([scene.image for scene in drawn]))
        return Batch(images, self._targets(drawn).to(self._device))

    def measure(self, network: nn.Module, epoch: int) -> float | None:
        """Return the held-out score, in some epochs and after the last one."""
        every = max(1, self._recipe.epochs // MEASURED_EPOCHS)
        if not self._heldout or (epoch % every and epoch != self._recipe.epochs):
            return None
        return self._score(network.eval())

    @abstractmethod
    def _targets(self, drawn: Sequence[LaidScene]) -> detection.Truth | segmentation.Maps:
        """Return the answers to learn."""

    @abstractmethod
    def _score(self, network: nn.Module) -> float:
        """Return the held-out score of a network in evaluation mode."""

    def _laid(self) -> Iterator[tuple[Tensor, list[Placement], Sequence[Scene]]]:
        """Yield the held-out pictures as the service lays them, normalised."""
        for images, placements, scenes in laid_batches(self._heldout, self._size, MEASURED_BATCH):
            rows = torch.from_numpy(images).permute(0, 3, 1, 2)
            yield self._normalized(rows), placements, scenes

    def _decoded(self, place: int) -> LaidScene:
        """Return a picture to learn from, which stays decoded if there is room for it."""
        if place in self._kept:
            return self._kept[place]
        laid = lay(self._train[place], self._canvas, masks=self.with_masks)
        if laid.bytes <= self._room:
            self._kept[place] = laid
            self._room -= laid.bytes
        return laid

    def _draw(self, place: int, epoch: Epoch) -> LaidScene:
        recipe = self._recipe
        generator = torch.Generator().manual_seed(epoch.own_seed * 1_000_003 + place)
        augmentation = SceneAugmentation(
            mirror=recipe.flip != "off",
            turn=recipe.turn,
            scale=(recipe.smallest, recipe.largest),
            mosaic=recipe.mosaic,
            colour=recipe.colour,
            fill=RESIZE.fill[0],
        )
        height, width = self._size
        moves = draw_moves(augmentation, self._size, generator)
        others = torch.randint(len(self), (len(moves) - 1,), generator=generator).tolist()
        image = torch.full((3, height, width), augmentation.fill, dtype=torch.uint8)
        numbers = torch.zeros((height, width), dtype=torch.int32) if self.with_masks else None
        boxes, labels, before = [], [], 0
        for index, (move, window) in zip((place, *others), moves, strict=True):
            scene = self._decoded(index)
            paste(image, move.image(scene.image), move, window)
            if numbers is not None and scene.numbers is not None:
                moved = move.map(scene.numbers)
                paste(numbers, torch.where(moved > 0, moved + before, moved), move, window)
                boxes.append(scene.boxes)
                labels.append(scene.labels)
                before += len(scene.labels)
                continue
            shape = scene.image.shape[1], scene.image.shape[2]
            kept, labelled = move_boxes(scene.boxes, scene.labels, move, window, shape)
            boxes.append(kept)
            labels.append(labelled)
        image = recolour(image, recipe.colour, generator)
        return LaidScene(image, torch.cat(boxes), torch.cat(labels), numbers)

    def _normalized(self, images: Tensor) -> Tensor:
        rows = images.permute(0, 2, 3, 1).contiguous().to(self._device)
        return dataset.normalize(rows, self.mean, self.deviation)


class DetectionLessons(SceneLessons):
    """Boxes."""

    with_masks = False

    @property
    def lesson(self) -> detection.Lesson | detection_v1.Lesson:
        """Of the recipe's architecture."""
        return detection_lesson(self._recipe)

    @property
    def outputs(self) -> int:
        """One for each class."""
        return self._classes

    def _targets(self, drawn: Sequence[LaidScene]) -> detection.Truth:
        return detection.Truth.of([(scene.boxes, scene.labels) for scene in drawn])

    @torch.inference_mode()
    def _score(self, network: nn.Module) -> float:
        """Return the mean average precision at an overlap of 0.5."""
        found = []
        for images, placements, _ in self._laid():
            best = detection.best(self.lesson.candidates(network(images)))
            boxes, scores, labels = (each.cpu().numpy() for each in best)
            found += detection_metrics.placed(boxes, scores, labels, placements)
        return detection_metrics.measure(found, self._heldout, self._classes).map50


class SegmentationLessons(SceneLessons):
    """Masks, and the depth of pixels if objects are single things."""

    with_masks = True
    lesson = segmentation.Lesson()

    def __init__(
        self,
        recipe: Recipe,
        source: SceneSource,
        train: Sequence[Scene],
        heldout: Sequence[Scene],
        device: torch.device,
    ) -> None:
        """Decode the pictures."""
        super().__init__(recipe, source, train, heldout, device)
        self.outputs = count_outputs("segmentation", source)
        self._with_depth = source.instances

    def _targets(self, drawn: Sequence[LaidScene]) -> segmentation.Maps:
        classes = torch.from_numpy(np.stack([scene.pixel_classes() for scene in drawn]))
        if not self._with_depth:
            return segmentation.Maps(classes, None)
        depth = [segmentation.depth_of(scene.object_numbers().clip(min=0)) for scene in drawn]
        return segmentation.Maps(classes, torch.from_numpy(np.stack(depth)))

    @torch.inference_mode()
    def _score(self, network: nn.Module) -> float:
        """Return the mean overlap of the classes, in the input's pixels."""
        count = self._classes + 1
        matrix = np.zeros((count, count), np.int64)
        for images, _, scenes in self._laid():
            classes = network(images)[:, :count].argmax(1).cpu().numpy()
            for found, scene in zip(classes, scenes, strict=True):
                truth = lay(scene, self._size, masks=True).pixel_classes()
                matrix += segmentation_metrics.count_pixels(truth, found, count)
        return segmentation_metrics.mean_overlap(matrix)


def detection_lesson(recipe: Recipe) -> detection.Lesson | detection_v1.Lesson:
    """Return what a detector of the recipe's architecture learns."""
    if recipe.architecture == "yolo":
        return detection.Lesson(yolo.Yolo.strides, yolo.BINS)
    return detection_v1.Lesson((recipe.height, recipe.width), yolo_v1.BOXES)


def count_outputs(task: Task, source: SceneSource) -> int:
    """Return the number of outputs of a network: a detector's classes, a segmenter's channels.

    A segmenter has background too, and a channel for the depth if objects are single things.
    """
    classes = len(source.classes)
    return classes if task == "detection" else classes + 1 + source.instances


def load_scenes(
    recipe: Recipe, source: SceneSource, device: torch.device
) -> DetectionLessons | SegmentationLessons:
    """Decode the pictures of a run.

    The pictures to choose with are held out; if the set has none, a part of those to train on is.

    Raises:
        DataError: none are left to learn from, or a picture has changed since it was found.
    """
    train, heldout = split(recipe, source)
    if not train:
        raise DataError(f"{source}: holdout {recipe.holdout} leaves no picture to learn from")
    task = find_architecture(recipe.architecture).task
    kind = DetectionLessons if task == "detection" else SegmentationLessons
    return kind(recipe, source, train, heldout, device)


def split(recipe: Recipe, source: SceneSource) -> tuple[list[Scene], list[Scene]]:
    """Return the pictures that a run learns from, and those that it holds out.

    Without pictures to choose with, the held-out ones are chosen by the hashes of their files, so
    that the same files are on one side.
    """
    if source.val:
        return list(source.train), list(source.val)
    seed = recipe.split_seed.to_bytes(8)
    alike: dict[bytes, list[Scene]] = {}
    for scene in source.train:
        alike.setdefault(hashlib.sha256(seed + scene.load()).digest(), []).append(scene)
    wanted = round(recipe.holdout * len(source.train))
    heldout: list[Scene] = []
    train: list[Scene] = []
    for digest in sorted(alike):
        (heldout if len(heldout) < wanted else train).extend(alike[digest])
    return train, heldout


def laid_batches(
    scenes: Sequence[Scene], size: tuple[int, int], count: int
) -> Iterator[tuple[NDArray[np.uint8], list[Placement], Sequence[Scene]]]:
    """Yield pictures in batches as a network takes them, with their places in it.

    Args:
        scenes: the pictures.
        size: height and width of the input.
        count: of pictures in a batch.
    """
    for start in range(0, len(scenes), count):
        part = scenes[start : start + count]
        decoded = [decode_laid(scene, size) for scene in part]
        yield np.stack([image for image, _ in decoded]), [place for _, place in decoded], part


def decode_laid(scene: Scene, size: tuple[int, int]) -> tuple[RgbImage, Placement]:
    """Decode a picture into an input of a height and width, as the service does.

    Raises:
        DataError: it has changed since it was found.
    """
    try:
        return decode_placed(scene.load(), size, MAX_PIXELS, resize=RESIZE)
    except (ImageError, OSError) as exc:
        raise DataError(f"{scene.file}: has changed since it was found: {exc}") from exc


def lay(scene: Scene, size: tuple[int, int], *, masks: bool) -> LaidScene:
    """Lay a picture and its objects into an input of a height and width.

    Raises:
        DataError: it has changed since it was found.
    """
    image, placement = decode_laid(scene, size)
    objects = scene.objects
    corners = np.concatenate([objects.boxes[:, :2], objects.boxes[:, :2] + objects.boxes[:, 2:]], 1)
    labels = np.where(objects.crowd, -2, objects.labels)
    return LaidScene(
        torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous(),
        torch.from_numpy(placement.to_input(corners)),
        torch.from_numpy(labels.astype(np.int64)),
        torch.from_numpy(_laid_numbers(scene, size)) if masks else None,
    )


def _laid_numbers(scene: Scene, size: tuple[int, int]) -> NDArray[np.int32]:
    """Return the number of each pixel's object in an input, as `LaidScene` has them."""
    whole = torch.from_numpy(numbers_of(scene))
    (width, height), (left, upper) = letterboxed((scene.width, scene.height), size[::-1])
    if whole.shape != (height, width):
        resized = F.interpolate(whole[None, None].float(), (height, width), mode="nearest-exact")
        whole = resized[0, 0].to(torch.int32)
    laid = torch.zeros(size, dtype=torch.int32)
    laid[upper : upper + height, left : left + width] = whole
    numbers: NDArray[np.int32] = laid.numpy()
    return numbers


def numbers_of(scene: Scene) -> NDArray[np.int32]:
    """Return the number of each pixel's object, int32 `[height,width]`: 0 is background.

    Smaller objects lie over larger ones. Pixels that count for nothing are -1, those of crowds too.

    Raises:
        ValueError: there are only boxes.
    """
    masks, height, width = scene.objects.masks, scene.height, scene.width
    if masks is None:
        raise ValueError(f"{scene.file}: has boxes alone")
    numbers = np.zeros((height, width), np.int32)
    areas = np.array([rle.area(mask, height, width) for mask in masks])
    for index in np.argsort(-areas, kind="stable"):
        value = -1 if scene.objects.crowd[index] else index + 1
        numbers[rle.decode(masks[index], height, width)] = value
    if (ignored := scene.ignored_pixels()) is not None:
        numbers[ignored] = -1
    return numbers


def classes_of(numbers: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each pixel's class, 0 for background, `segmentation.IGNORED` for none.

    Args:
        numbers: of the objects, as `numbers_of` gives them.
        labels: of the objects, from 0.
    """
    of_number = np.concatenate([[0], labels + 1])
    classes: NDArray[np.int64] = of_number[numbers.clip(min=0)]
    classes[numbers < 0] = segmentation.IGNORED
    return classes
