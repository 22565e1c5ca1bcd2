"""Accuracy of finished models on corrupted pictures: `convscope-train corruptions`.

A model classifies 2,000 test images, or all if there are fewer, by its float32 graph:
clean, and with corruptions after Hendrycks & Dietterich 2019 (CIFAR-10-C), each in one strength.
With 2,000 images the standard error is at most 1.1 points. No number of a recipe is chosen by these
figures.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.filters import gaussian

from app.artifact.directory import Artifact, read_artifact
from app.artifact.tensors import Images
from app.errors import ConvscopeError
from app.inference.backends import open_backend
from training.data import dataset
from training.errors import RunError
from training.evaluate import answer, spaced_test_images

IMAGES = 2000
THREADS = 2

Pixels = NDArray[np.float64]
Change = Callable[[Pixels, np.random.Generator], Pixels]


@dataclass(frozen=True)
class Corruption:
    """A corruption of pictures.

    Attributes:
        meaning: its effect, in words.
        change: applies it to float `[N,H,W,3]` of 0 to 255.
    """

    meaning: str
    change: Change

    def __call__(self, images: Images) -> Images:
        """Return corrupted uint8 images of the same shape; every call gives the same images."""
        changed = self.change(images.astype(np.float64), np.random.default_rng(0))
        return np.rint(changed).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Answers:
    """One model's answers to the images of one corruption.

    Attributes:
        accuracy: part of the images that is classified correctly.
        marked: part that is marked as foreign; None if the model has no such score.
    """

    accuracy: float
    marked: float | None

    def __str__(self) -> str:
        return f"{self.accuracy:.0%}" + ("" if self.marked is None else f", {self.marked:.0%}")


def _add_gaussian_noise(deviation: float) -> Change:
    return lambda images, rng: images + rng.normal(0, deviation, images.shape)


def _add_shot_noise(images: Pixels, rng: np.random.Generator) -> Pixels:
    return rng.poisson(images / 255 * 100) / 100 * 255.0


def _add_impulse_noise(images: Pixels, rng: np.random.Generator) -> Pixels:
    drawn = rng.random(images.shape)
    return np.select([drawn < 0.015, drawn < 0.03], [0.0, 255.0], images)


def _blur(images: Pixels, _: np.random.Generator) -> Pixels:
    blurred: Pixels = gaussian(images, (0, 1, 1, 0), preserve_range=True)
    return blurred


def _blur_along_rows(images: Pixels, _: np.random.Generator) -> Pixels:
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (0, 0)), mode="edge")
    blurred: Pixels = np.lib.stride_tricks.sliding_window_view(padded, 5, axis=2).mean(-1)
    return blurred


def _add_fog(images: Pixels, rng: np.random.Generator) -> Pixels:
    count, height, width, _ = images.shape
    clouds: Pixels = gaussian(rng.random((count, height, width)), (0, 4, 4), mode="wrap")
    low, high = clouds.min((1, 2), keepdims=True), clouds.max((1, 2), keepdims=True)
    veil = ((clouds - low) / (high - low))[..., None]
    foggy: Pixels = images * (1 - veil) + 255 * veil
    return foggy


def _lower_contrast(images: Pixels, _: np.random.Generator) -> Pixels:
    middle: Pixels = images.mean((1, 2), keepdims=True)
    return middle + 0.4 * (images - middle)


def _pixelate(images: Pixels, _: np.random.Generator) -> Pixels:
    def enlarged_again(image: Image.Image) -> Image.Image:
        size = (round(image.width * 0.75), round(image.height * 0.75))
        small = image.resize(size, Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.NEAREST)

    return _each(images, enlarged_again)


def _compress(quality: int) -> Change:
    def compressed(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
        return Image.open(file)

    return lambda images, _: _each(images, compressed)


def _each(images: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    pictures = (change(Image.fromarray(pixels.astype(np.uint8))) for pixels in images)
    return np.stack([np.asarray(picture, np.float64) for picture in pictures])


CLEAN = "clean"
CORRUPTIONS = {
    CLEAN: Corruption("the test images themselves", lambda images, _: images),
    "Gaussian noise 7": Corruption("of a deviation of 7 of 255", _add_gaussian_noise(7)),
    "Gaussian noise 20": Corruption("of 20", _add_gaussian_noise(20)),
    "shot noise": Corruption("Poisson, 100 photons for white", _add_shot_noise),
    "impulse noise": Corruption("3% of the values black or white", _add_impulse_noise),
    "blur": Corruption("Gaussian, of a deviation of 1 pixel", _blur),
    "motion blur": Corruption("the mean of 5 pixels along the row", _blur_along_rows),
    "fog": Corruption("clouds of white, half of the light on average", _add_fog),
    "brightness": Corruption("51 of 255 more", lambda images, _: images + 51),
    "contrast": Corruption("0.4 of the distance from the picture's mean", _lower_contrast),
    "pixelate": Corruption("24 of 32 pixels a side, enlarged again", _pixelate),
    "JPEG 75": Corruption("of quality 75, 4:2:0", _compress(75)),
    "JPEG 50": Corruption("of 50", _compress(50)),
    "JPEG 30": Corruption("of 30", _compress(30)),
}
"""The measured corruptions by name."""


def measure(artifact: Artifact, tests: Mapping[str, dataset.Split]) -> dict[str, Answers]:
    """Return one model's answers to the test images after each corruption.

    Raises:
        ConvscopeError: the model is damaged or fails.
    """
    predict = open_backend(artifact, "onnx-cpu", THREADS).predict
    confidence = artifact.classifier.confidence.get("float32")
    found = {}
    for name, test in tests.items():
        answered = answer(predict, test)
        scores, marked = answered.outputs.ood_scores, None
        if confidence and scores is not None:
            threshold = confidence.out_of_distribution.threshold
            marked = round(float((scores > threshold).mean()), 4)
        found[name] = Answers(round(answered.accuracy, 4), marked)
    return found


def measure_all(
    folders: Iterable[Path],
    source: dataset.Source,
    tests: Mapping[str, dataset.Split],
    tell: Callable[[str], None],
) -> dict[str, dict[str, Answers]]:
    """Return each model's answers by its `name/version`.

    Args:
        folders: of the models, as `export` writes them.
        source: the data set of the models.
        tests: its corrupted test images.
        tell: is told of each model that is done.

    Raises:
        RunError: a folder holds no sound model of the data set.
    """
    models: dict[str, dict[str, Answers]] = {}
    for folder in folders:
        try:
            artifact = read_artifact(folder)
            if artifact.manifest.data.sha256 != source.sha256:
                raise RunError(
                    f"{folder}: was trained on other data than that in {source.place}; --data-dir "
                    "names the folder of its images"
                )
            models[artifact.ref] = measure(artifact, tests)
        except ConvscopeError as exc:
            raise RunError(str(exc)) from exc
        tell(f"{artifact.ref} is done")
    return models


def corrupted_tests(source: dataset.Source) -> dict[str, dataset.Split]:
    """Return test images after each corruption, by its name."""
    test = spaced_test_images(source, IMAGES)
    pixels = test.images.numpy()
    return {
        name: dataset.Split(torch.from_numpy(corrupt(pixels)), test.labels)
        for name, corrupt in CORRUPTIONS.items()
    }


def mean_accuracy(found: Mapping[str, Answers]) -> float:
    """Return the mean of a model's accuracies after the corruptions."""
    return mean(answers.accuracy for name, answers in found.items() if name != CLEAN)
