"""Whether explanations point at the evidence: `python -m bench.quality.explanations`.

Three measures of each method of `/explain`, for every model of the store (`CONVSCOPE_STORE`) that
was not measured yet, by the float32 graphs that are served and on test images alone:

- *pointing*: four images of different classes, each at half its size, make a mosaic. The map of
  each of the four classes is right if its mean is highest in the class's own quarter (a grid
  pointing game after Böhle et al. 2021). Chance is 25%.
- *deletion* and *insertion* (Petsiuk et al. 2018): the mean probability of the predicted class
  while the pixels that speak for it most are covered first with the mean colour, and while they
  are uncovered first. Pixels in random order, and squares of 4×4 pixels in random order, are there
  for comparison.

Prints a table, writes `bench/results/explanations.json` and fills `docs/confidence.md`.
"""

from collections.abc import Callable, Iterator
from functools import partial

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.artifact.directory import Artifact
from app.artifact.tensors import Images, Probabilities
from app.explore.layers import Insides
from app.explore.saliency import PERTURBATIONS, Heat, Perturbation, class_activation_map
from app.images import RgbImage
from app.inference.backends import open_backend
from bench import ROOT
from bench.harness.report import publish, table
from bench.quality.stored_models import measure_store
from training.data import dataset
from training.evaluate import spaced_test_images

DOCUMENT = ROOT / "docs" / "confidence.md"
TEST_IMAGES = 2000
IMAGES = 100
HEAVY, FEW = 2e8, 20  # a model with more multiply-accumulates gets fewer images
STEPS = 16
THREADS = 2
RANDOM = {"random pixels": 1, "random squares": 4}

Ask = Callable[[Images], Probabilities]
Explain = Callable[[RgbImage, int], Heat]


def explanation_table(models: dict[str, dict[str, dict[str, float | None]]]) -> str:
    """Return a Markdown table of all models and methods."""
    rows = [
        [model, method, *(_figure(found[name]) for name in ("pointing", "deletion", "insertion"))]
        for model, methods in models.items()
        for method, found in methods.items()
    ]
    return table(["model", "method", "pointing ↑", "deletion ↓", "insertion ↑"], rows)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def measure(artifact: Artifact, test: dataset.Split) -> dict[str, dict[str, float | None]]:
    """Return a model's figures by method: pointing, deletion, insertion; 0 to 1.

    Args:
        artifact: the model.
        test: test images.
    """
    count = FEW if artifact.manifest.macs > HEAVY else IMAGES
    backend = open_backend(artifact, "onnx-cpu", THREADS)

    def ask(images: Images) -> Probabilities:
        return backend.predict(images).probabilities

    methods = explainers(artifact, ask)
    pointing = {name: point(explain, mosaics(test, count)) for name, explain in methods.items()}
    methods |= {name: partial(_random_heat, side) for name, side in RANDOM.items()}
    images = test.images[:count].numpy()
    found: dict[str, dict[str, float | None]] = {}
    for name, explain in methods.items():
        deletion, insertion = delete_and_insert(explain, ask, images)
        found[name] = {
            "pointing": pointing.get(name),
            "deletion": deletion,
            "insertion": insertion,
        }
    return found


def explainers(artifact: Artifact, ask: Ask) -> dict[str, Explain]:
    """Return the methods of `/explain` that work for a model, by name."""

    def perturb(way: Perturbation) -> Explain:
        def explain(image: RgbImage, class_id: int) -> Heat:
            answers = ask(np.concatenate([image[np.newaxis], way.copies(image)]))
            return way.heat(image.shape[:2], class_id, answers[0], answers[1:])

        return explain

    found: dict[str, Explain] = {name: perturb(way) for name, way in PERTURBATIONS.items()}
    if artifact.manifest.averages_features:
        inside = Insides().open(artifact)

        def activate(image: RgbImage, class_id: int) -> Heat:
            weights = inside.weights_of(class_id)
            return class_activation_map(inside.layers.features(image), weights, image.shape[:2])

        found["cam"] = activate
    return found


def mosaics(test: dataset.Split, count: int) -> Iterator[tuple[RgbImage, NDArray[np.int64]]]:
    """Yield mosaics of four images, and the classes of their quarters, row by row."""
    rng = np.random.default_rng(0)
    images, labels = test.images.numpy(), test.labels.numpy()
    for _ in range(count):
        classes = rng.permutation(labels.max() + 1)[:4]
        four = [images[rng.choice(np.flatnonzero(labels == label))] for label in classes]
        rows = [np.concatenate(four[start : start + 2], axis=1) for start in (0, 2)]
        whole = Image.fromarray(np.concatenate(rows))
        yield np.asarray(whole.reduce(2)), classes


def point(explain: Explain, pictures: Iterator[tuple[RgbImage, NDArray[np.int64]]]) -> float:
    """Return how often a class's map has its highest mean in the class's quarter."""
    right = []
    for picture, classes in pictures:
        half = len(picture) // 2
        for quarter, class_id in enumerate(classes):
            heat = explain(picture, class_id)
            means = heat.reshape(2, half, 2, half).mean(axis=(1, 3)).ravel()
            right.append(means.argmax() == quarter)
    return round(float(np.mean(right)), 4)


def delete_and_insert(explain: Explain, ask: Ask, images: Images) -> tuple[float, float]:
    """Return the mean probabilities of the predicted classes in deletion and in insertion."""
    found = []
    for image in images:
        class_id = int(ask(image[np.newaxis])[0].argmax())
        order = np.argsort(-explain(image, class_id), axis=None, kind="stable")
        rank = np.argsort(order).reshape(image.shape[:2])
        colour = np.rint(image.mean(axis=(0, 1))).astype(np.uint8)
        changed = [rank[..., np.newaxis] < order.size * step // STEPS for step in range(STEPS + 1)]
        deleted = np.stack([np.where(mask, colour, image) for mask in changed])
        inserted = np.stack([np.where(mask, image, colour) for mask in changed])
        answers = ask(np.concatenate([deleted, inserted]))[:, class_id]
        found.append(answers.reshape(2, -1).mean(axis=1))
    deletion, insertion = np.mean(found, axis=0)
    return round(float(deletion), 4), round(float(insertion), 4)


def _random_heat(side: int, image: RgbImage, class_id: int) -> Heat:
    """Return a map of squares in an order that the image and the class decide."""
    rows, columns = (length // side for length in image.shape[:2])
    rng = np.random.default_rng([class_id, int(image.sum())])
    squares = rng.permutation(rows * columns).reshape(rows, columns).astype(np.float32)
    return squares.repeat(side, axis=0).repeat(side, axis=1)


@click.command(help=__doc__)
def main() -> None:
    """Measure, write the results and fill the document."""
    test = spaced_test_images(dataset.find(None), TEST_IMAGES)
    found = measure_store(
        "explanations",
        partial(measure, test=test),
        spaced_test_images=TEST_IMAGES,
        images=IMAGES,
        images_of_heavy_models=FEW,
    )
    publish("explanations", found, explanation_table(found["models"]), DOCUMENT)


if __name__ == "__main__":
    main()
