"""The lessons of detectors and segmenters: pictures with their objects, moved at random.

Pictures are laid into the network's input as the service does it (letterbox), at the largest size
that the recipe shows them in. A picture's random numbers come from the epoch's seed and its own
place, so they are the same however many processes share the batch.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from app.artifact.manifest import Task
from app.images.decode import decode_placed
from app.images.placement import Placement, Resize, letterboxed
from training.architectures import find_architecture
from training.architectures.yolo import BINS, Yolo
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
from training.run.lessons import Batch, Lesson
from training.tasks import detection, detection_metrics, segmentation, segmentation_metrics

RESIZE = Resize(policy="letterbox", interpolation="bilinear")

STRIDE = 16
"""Height and width of the input are multiples of it."""

SOME_IMAGES = 256
MEASURED_EPOCHS = 20
"""How many of a run's epochs are measured on held-out pictures."""

MEASURED_BATCH = 8


@dataclass(frozen=True)
class LaidScene:
    """A picture laid into an input, with its objects there.

    Attributes:
        image: uint8 `[3,h,w]`.
        boxes: left, upper, right, lower, float32 `[M,4]`.
        labels: as in `detection.Truth`, int64 `[M]`.
        numbers: each pixel's object, counted from 1, 0 for background and -1 for pixels that count
            for nothing, int32 `[h,w]`; None without masks.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    numbers: Tensor | None


@dataclass(frozen=True)
class Draft:
    """Pictures of an epoch, by their places in the set; nothing is drawn yet."""

    places: Tensor
    epoch: Epoch

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Tensor) -> "Draft":
        return Draft(self.places[index], self.epoch)


def check_size(recipe: Recipe) -> None:
    """Raise unless the recipe says how large its pictures are.

    Raises:
        RecipeError: height or width is no multiple of `STRIDE` above 0, or sizes are reversed.
    """
    for name in ("height", "width"):
        if (value := getattr(recipe, name)) == 0 or value % STRIDE:
            raise RecipeError(
                f"{name} is {value}; {recipe.architecture} takes multiples of {STRIDE}"
            )
    if recipe.smallest > recipe.largest:
        raise RecipeError(f"smallest is {recipe.smallest} and largest is {recipe.largest}")


class SceneLessons:
    """The pictures of a run; as `training.run.lessons.Lessons`."""

    def __init__(
        self,
        recipe: Recipe,
        source: SceneSource,
        train: Sequence[Scene],
        heldout: Sequence[Scene],
        device: torch.device,
    ) -> None:
        """Decode the pictures."""
        self.classes = source.classes
        self._recipe, self._device = recipe, device
        self._size = recipe.height, recipe.width
        self._task = find_architecture(recipe.architecture).task
        self._with_depth = source.instances
        canvas = tuple(round(side * max(recipe.largest, 1.0)) for side in self._size)
        with_masks = self._task == "segmentation"
        self._train = [lay(scene, (canvas[0], canvas[1]), masks=with_masks) for scene in train]
        self.heldout = tuple(heldout)
        self.mean, self.deviation = _statistics(self._train)
        self.outputs = count_outputs(self._task, source)
        self.lesson: Lesson
        if with_masks:
            self.lesson = segmentation.Lesson()
        else:
            self.lesson = detection.Lesson(Yolo.strides, BINS)

    def __len__(self) -> int:
        return len(self._train)

    def some_images(self) -> Tensor:
        """Return some pictures, normalised."""
        some = self._train[:: max(1, len(self._train) // SOME_IMAGES)][:SOME_IMAGES]
        images = [
            F.interpolate(scene.image[None], self._size, mode="bilinear", antialias=True)
            for scene in some
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
        targets: Any
        if self._task == "detection":
            targets = detection.Truth.of([(scene.boxes, scene.labels) for scene in drawn])
        else:
            targets = self._maps(drawn)
        return Batch(images, targets.to(self._device))

    def measure(self, network: nn.Module, epoch: int) -> float | None:
        """Return the held-out score, in some epochs and after the last one."""
        every = max(1, self._recipe.epochs // MEASURED_EPOCHS)
        if not self.heldout or (epoch % every and epoch != self._recipe.epochs):
            return None
        if self._task == "detection":
            found = self._detect(network)
            return detection_metrics.measure(found, self.heldout, len(self.classes)).map50
        return self._overlap(network)

    @torch.inference_mode()
    def _detect(self, network: nn.Module) -> list[detection_metrics.Found]:
        lesson = detection.Lesson(Yolo.strides, BINS)
        found = []
        for images, placements in self._laid():
            maps = network.eval()(self._normalized(images))
            best = detection.best(lesson.candidates(maps))
            boxes, scores, labels = (each.cpu().numpy() for each in best)
            found += detection_metrics.placed(boxes, scores, labels, placements)
        return found

    @torch.inference_mode()
    def _overlap(self, network: nn.Module) -> float:
        count = len(self.classes) + 1
        matrix = np.zeros((count, count), np.int64)
        laid = iter([lay(scene, self._size, masks=True) for scene in self.heldout])
        for images, placements in self._laid():
            classes = network.eval()(self._normalized(images))[:, :count].argmax(1).cpu().numpy()
            for found, scene, _ in zip(classes, laid, placements, strict=False):
                truth = self._classes_of(scene).numpy()
                matrix += segmentation_metrics.count_pixels(truth, found, count)
        return float(segmentation_metrics.overlaps(matrix)[1:].mean())

    def _laid(self) -> Iterator[tuple[Tensor, list[Placement]]]:
        """Yield the held-out pictures as the service lays them, uint8 `[N,3,H,W]`."""
        for start in range(0, len(self.heldout), MEASURED_BATCH):
            part = self.heldout[start : start + MEASURED_BATCH]
            decoded = [decode_laid(scene, self._size) for scene in part]
            images = torch.from_numpy(np.stack([image for image, _ in decoded]))
            yield images.permute(0, 3, 1, 2), [placement for _, placement in decoded]

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
        numbers = torch.zeros((height, width), dtype=torch.int32) if self._has_masks else None
        boxes, labels, before = [], [], 0
        for index, (move, window) in zip((place, *others), moves, strict=True):
            scene = self._train[index]
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

    @property
    def _has_masks(self) -> bool:
        return self._task == "segmentation"

    def _maps(self, drawn: Sequence[LaidScene]) -> segmentation.Maps:
        classes = torch.stack([self._classes_of(scene) for scene in drawn])
        if not self._with_depth:
            return segmentation.Maps(classes, None)
        depth = [segmentation.depth_of(_numpy(scene).clip(min=0)) for scene in drawn]
        return segmentation.Maps(classes, torch.from_numpy(np.stack(depth)))

    def _classes_of(self, scene: LaidScene) -> Tensor:
        """Return each pixel's class, 0 for background, `segmentation.IGNORED` for none."""
        numbers = torch.from_numpy(_numpy(scene))
        of_number = torch.cat((torch.zeros(1, dtype=torch.int64), scene.labels + 1))
        classes = of_number[numbers.clamp_min(0)]
        crowd = torch.cat((torch.zeros(1, dtype=torch.bool), scene.labels < 0))
        ignored = (numbers < 0) | crowd[numbers.clamp_min(0)]
        return classes.masked_fill(ignored, segmentation.IGNORED)

    def _normalized(self, images: Tensor) -> Tensor:
        rows = images.permute(0, 2, 3, 1).contiguous().to(self._device)
        return dataset.normalize(rows, self.mean, self.deviation)


def count_outputs(task: Task, source: SceneSource) -> int:
    """Return the number of outputs of a network: a detector's classes, a segmenter's channels.

    A segmenter has background too, and a channel for the depth if objects are single things.
    """
    classes = len(source.classes)
    return classes if task == "detection" else classes + 1 + source.instances


def load_scenes(recipe: Recipe, source: SceneSource, device: torch.device) -> SceneLessons:
    """Decode the pictures of a run.

    The pictures to choose with are held out; if the set has none, a part of those to train on is.

    Raises:
        DataError: none are left to learn from, or a picture has changed since it was found.
    """
    train, heldout = split(recipe, source)
    if not train:
        raise DataError(f"{source}: holdout {recipe.holdout} leaves no picture to learn from")
    return SceneLessons(recipe, source, train, heldout, device)


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


def decode_laid(scene: Scene, size: tuple[int, int]) -> tuple[NDArray[np.uint8], Placement]:
    """Decode a picture into an input of a height and width, as the service does."""
    return decode_placed(scene.load(), size, MAX_PIXELS, resize=RESIZE)


def lay(scene: Scene, size: tuple[int, int], *, masks: bool) -> LaidScene:
    """Lay a picture and its objects into an input of a height and width."""
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

    Smaller objects lie over larger ones; pixels that count for nothing are -1.
    """
    masks = scene.masks()
    numbers = np.zeros((scene.height, scene.width), np.int32)
    for index in np.argsort(-masks.sum((1, 2)), kind="stable"):
        numbers[masks[index]] = index + 1
    if (ignored := scene.ignored_pixels()) is not None:
        numbers[ignored] = -1
    return numbers


def _numpy(scene: LaidScene) -> NDArray[np.int64]:
    if scene.numbers is None:
        raise ValueError("the scene has no masks")
    numbers: NDArray[np.int64] = scene.numbers.numpy().astype(np.int64)
    return numbers


def _statistics(scenes: Sequence[LaidScene]) -> tuple[list[float], list[float]]:
    pixels = torch.cat([scene.image.flatten(1) for scene in scenes], 1)
    return dataset.channel_statistics(pixels.T[None, None])
