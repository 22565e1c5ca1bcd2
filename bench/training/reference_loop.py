"""The training loop of PyTorch's CIFAR-10 tutorial, for comparison with ours.

After "Training a Classifier" (docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html):
a data set that opens a Pillow image an item, torchvision's transforms on each, a DataLoader with
two worker processes, float32, and the loss read at every step. The recipe, not the
tutorial, gives the network, Adam and its rate, the batch size, and the mean and deviation of the
training images. Augmentation, schedules and other optimizers of a recipe are ignored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from app.artifact.tensors import Images, Outputs
from training.architectures import find_architecture
from training.data import dataset
from training.recipes import Recipe
from training.run.image_lessons import compute_logits
from training.vision import import_torchvision

WORKERS = 2


class Pictures(Dataset[tuple[Any, int]]):
    """Images in memory, one item at a time, as in torchvision's CIFAR10.

    Args:
        split: images and labels.
        transform: makes an item of a Pillow image.
    """

    def __init__(self, split: dataset.Split, transform: Callable[[Image.Image], Any]) -> None:
        self.data = split.images.numpy()
        self.targets = split.labels.tolist()
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Any, int]:
        img, target = self.data[index], self.targets[index]
        return self.transform(Image.fromarray(img)), target

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class ReferenceLoop:
    """A network, its optimizer and its images, ready for the next epoch.

    Attributes:
        pictures: training images.
        loader: gives normalised images float32 `[N,3,32,32]` and labels int64 `[N]`.
        network: network in training.
        optimizer: optimizer of its weights.
        mean: mean of each channel, 0 to 1.
        deviation: standard deviation of each channel, on the same scale.
    """

    pictures: Pictures
    loader: DataLoader[Any]
    network: nn.Module
    optimizer: torch.optim.Optimizer
    mean: list[float]
    deviation: list[float]

    def train_epoch(self) -> float:
        """Train on every image once; return the mean of the steps' losses."""
        torch.use_deterministic_algorithms(False)  # our loop turns it on; it is off by default
        self.network.train()
        criterion = nn.CrossEntropyLoss()
        running_loss = 0.0
        for inputs, labels in self.loader:
            self.optimizer.zero_grad()
            outputs = self.network(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            self.optimizer.step()
            running_loss += loss.item()
        return running_loss / len(self.loader)

    def predict(self, images: Images) -> Outputs:
        """Return probabilities for uint8 images `[N,32,32,3]`."""
        logits = compute_logits(
            self.network, torch.from_numpy(images), self.mean, self.deviation, torch.device("cpu")
        )
        return Outputs.of_classes(logits.softmax(1).numpy())


def make_reference_loop(recipe: Recipe, source: dataset.Source) -> ReferenceLoop:
    """Return an untrained loop with the training images of our own loop.

    Args:
        recipe: gives the network, batch size, learning rate, holdout and seeds.
        source: data set.
    """
    images = source.load_train()
    chosen, _ = dataset.split_distinct(images, recipe.holdout, recipe.split_seed)
    train = images[chosen]
    mean, deviation = dataset.channel_statistics(train.images)
    pictures = Pictures(train, make_transform(mean, deviation))
    loader = DataLoader(
        pictures,
        recipe.batch_size,
        shuffle=True,
        num_workers=WORKERS,
        multiprocessing_context="fork",  # the default on Linux, even in a spawned process
    )
    torch.manual_seed(recipe.seed)
    ours = find_architecture(recipe.architecture).build(len(source.classes), recipe.dropout)
    network = nn.Sequential(*ours.children())  # layer by layer, each by torch
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    return ReferenceLoop(pictures, loader, network, optimizer, mean, deviation)


def make_transform(mean: list[float], deviation: list[float]) -> Callable[[Image.Image], Tensor]:
    """Return the transforms from a Pillow image to normalised float32 `[3,H,W]`."""
    transforms = import_torchvision().transforms
    steps = [transforms.ToTensor(), transforms.Normalize(mean, deviation)]
    composed: Callable[[Image.Image], Tensor] = transforms.Compose(steps)
    return composed
