"""The lessons of a classifier: images in memory, and their labels."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.architectures import find_architecture
from training.architectures.describe import describe
from training.data import dataset
from training.data.augmentation import Augmentation, Epoch, epoch_batches
from training.errors import RecipeError
from training.recipes import Recipe
from training.run.lessons import Batch, Lesson
from training.tasks.classification import LESSON

EVALUATION_BATCH = 500
INITIALIZATION_IMAGES = 5000


@dataclass(frozen=True)
class ImageLessons:
    """The images of a run, on the device that computes.

    Attributes:
        recipe: of the run.
        train: the images to learn from.
        heldout: the images held out.
        outputs: as in `Lessons`.
        mean: likewise.
        deviation: likewise.
        lesson: likewise.
    """

    recipe: Recipe
    train: dataset.Split
    heldout: dataset.Split
    outputs: int
    mean: list[float]
    deviation: list[float]
    lesson: Lesson = LESSON

    def __len__(self) -> int:
        return len(self.train)

    def some_images(self) -> Tensor:
        """Return some images of all classes, normalised."""
        spaced = self.train.images[:: max(1, len(self.train) // INITIALIZATION_IMAGES)]
        return dataset.normalize(spaced[:INITIALIZATION_IMAGES], self.mean, self.deviation)

    def drafts(self, epoch: Epoch, size: int) -> Iterator[dataset.Split]:
        """Yield every image once, augmented."""
        return epoch_batches(self.train, size, epoch, self._augmentation(epoch))

    def prepare(self, draft: dataset.Split) -> Batch:
        """Normalise the images."""
        return Batch(dataset.normalize(draft.images, self.mean, self.deviation), draft.labels)

    def measure(self, network: nn.Module, epoch: int) -> float | None:  # noqa: ARG002
        """Return the accuracy on the held-out images."""
        if len(self.heldout) == 0:
            return None
        images, labels = self.heldout.images, self.heldout.labels
        logits = compute_logits(network, images, self.mean, self.deviation, images.device)
        return (logits.argmax(1) == labels.cpu()).float().mean().item()

    def _augmentation(self, epoch: Epoch) -> Augmentation:
        recipe = self.recipe
        return Augmentation(
            flip=recipe.flip,
            translate=recipe.translate,
            crop=recipe.crop if epoch.number <= recipe.cropped_epochs else 0,
            cutout=recipe.cutout,
            brightness=recipe.brightness,
            contrast=recipe.contrast,
            noise=recipe.noise,
            degraded=recipe.degraded,
            mean=tuple(255 * part for part in self.mean),
            deviation=tuple(255 * part for part in self.deviation),
        )


def load_images(recipe: Recipe, source: dataset.Source, device: torch.device) -> ImageLessons:
    """Load and split the images of a run.

    Raises:
        DataError: the images cannot be read or split.
    """
    images = source.load_train()
    chosen, held = dataset.split_distinct(images, recipe.holdout, recipe.split_seed)
    train = images[chosen].to(device)
    mean, deviation = dataset.channel_statistics(train.images)
    heldout = images[held].to(device)
    return ImageLessons(recipe, train, heldout, len(source.classes), mean, deviation)


def check_takes_images(name: str, crop: int) -> None:
    """Raise unless an architecture takes images of the data sets, and crops of them.

    Raises:
        RecipeError: it does not, or there is no such architecture.
    """
    size = find_architecture(name).image_size
    if size != dataset.IMAGE_SIZE:
        raise RecipeError(f"{name} takes images of {size} pixels; these are {dataset.IMAGE_SIZE}")
    if crop:
        try:
            describe(name, image_size=(crop, crop))
        except RuntimeError as exc:
            raise RecipeError(f"crop is {crop}; {name} cannot take that") from exc


@torch.inference_mode()
def compute_logits(
    network: nn.Module,
    images: Tensor,
    mean: list[float],
    deviation: list[float],
    device: torch.device,
) -> Tensor:
    """Return float32 logits `[N,classes]`, on the processor, for uint8 images `[N,H,W,3]`.

    The network runs in evaluation mode and float32, as the exported graphs do. (On CUDA,
    convolutions multiply in TF32.)
    """
    network.eval()
    return torch.cat(
        [
            network(dataset.normalize(batch.to(device), mean, deviation)).float().cpu()
            for batch in images.split(EVALUATION_BATCH)
        ]
    )
