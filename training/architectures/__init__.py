"""Networks by name. Each takes float NCHW images and gives logits; none knows of export."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from training.architectures.fc import FullyConnected
from training.architectures.imagenet import vgg16
from training.architectures.simple_cnn import SimpleCNN
from training.errors import RecipeError


@dataclass(frozen=True)
class Architecture:
    """How a network is built, and the image that it is built for.

    Attributes:
        build: from the number of classes and the dropout probability to the network.
        image_size: height and width in pixels.
        classes: the number of classes of the data set that it is known for.
    """

    build: Callable[[int, float], nn.Module]
    image_size: tuple[int, int] = (32, 32)
    classes: int = 10


ARCHITECTURES: dict[str, Architecture] = {
    "simple-cnn": Architecture(SimpleCNN),
    "fc": Architecture(FullyConnected),
    "vgg16-imagenet": Architecture(vgg16, (224, 224), 1000),
}


def find_architecture(name: str) -> Architecture:
    """Return the architecture of this name.

    Raises:
        RecipeError: there is none; the message lists those that there are.
    """
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise RecipeError(
            f"no architecture {name!r}; there are {', '.join(ARCHITECTURES)}"
        ) from None
