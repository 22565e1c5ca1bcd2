"""Networks by name: from float images `[N,3,H,W]` to logits `[N,classes]`, or to maps of them.

To add one, write its module and enter it into `ARCHITECTURES`. A network that takes initial weights
from training images, as SpeedNet's whitening does, has a method `initialize_from`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from app.artifact.manifest import Task
from training.architectures import imagenet
from training.architectures.alexnet import AlexNet
from training.architectures.efficientnet import EfficientNetB0
from training.architectures.fc import FullyConnected
from training.architectures.resnet import plain20, resnet18, resnet20
from training.architectures.simple_cnn import SimpleCNN
from training.architectures.speednet import SpeedNet
from training.architectures.unet import UNet, UNetBackbone
from training.architectures.vgg import VGG16
from training.architectures.yolo import Yolo, YoloBackbone
from training.architectures.yolo_v1 import YoloV1
from training.errors import RecipeError


@dataclass(frozen=True)
class Architecture:
    """How to build a network.

    Attributes:
        build: makes the network from the number of classes, or of a segmenter's channels, and the
            dropout probability.
        image_size: height and width in pixels of the images that it takes.
        classes: the number of classes of the data set that it is known for.
        task: what it learns.
        backbone: the name of a classifier with some of its layers, with which it can begin.
    """

    build: Callable[[int, float], nn.Module]
    image_size: tuple[int, int] = (32, 32)
    classes: int = 10
    task: Task = "classification"
    backbone: str = ""


@runtime_checkable
class StartsFromImages(Protocol):
    """A network that takes initial weights from training images."""

    def initialize_from(self, images: Tensor) -> None:
        """Set these weights from normalised images, float `[N,3,H,W]`."""
        ...


def initialize_from(network: nn.Module, images: Tensor) -> None:
    """Set the weights that a network takes from training images, if it takes any.

    Args:
        network: newly built.
        images: normalised float `[N,3,H,W]`, on the network's device.
    """
    if isinstance(network, StartsFromImages):
        network.initialize_from(images)


ARCHITECTURES: dict[str, Architecture] = {
    "simple-cnn": Architecture(SimpleCNN),
    "fc": Architecture(FullyConnected),
    "speednet": Architecture(SpeedNet),
    "speednet-95": Architecture(partial(SpeedNet, widths=(128, 384, 384))),
    "speednet-96": Architecture(partial(SpeedNet, widths=(128, 384, 512), depth=3)),
    "speednet-proxy": Architecture(partial(SpeedNet, widths=(32, 64, 64))),
    "fast": Architecture(partial(SpeedNet, widths=(64, 160, 256), activation=nn.ReLU)),
    "alexnet": Architecture(AlexNet),
    "vgg16": Architecture(VGG16),
    "resnet18": Architecture(resnet18),
    "resnet20": Architecture(resnet20),
    "plain20": Architecture(plain20),
    "efficientnet-b0": Architecture(EfficientNetB0),
    "yolo": Architecture(Yolo, (288, 384), 3, "detection", "yolo-backbone"),
    "yolo-backbone": Architecture(YoloBackbone),
    "yolo-v1": Architecture(YoloV1, (288, 384), 3, "detection"),
    "yolo-v1-4": Architecture(partial(YoloV1, cells=4), (288, 384), 3, "detection"),
    "yolo-v1-14": Architecture(partial(YoloV1, cells=14), (288, 384), 3, "detection"),
    "unet": Architecture(UNet, (256, 256), 3, "segmentation", "unet-backbone"),
    "unet-backbone": Architecture(UNetBackbone),
    "unet-no-skips": Architecture(
        partial(UNet, skips=False), (256, 256), 3, "segmentation", "unet-backbone"
    ),
    "alexnet-imagenet": Architecture(imagenet.alexnet, (224, 224), 1000),
    "vgg16-imagenet": Architecture(imagenet.vgg16, (224, 224), 1000),
    "resnet50-imagenet": Architecture(imagenet.resnet50, (224, 224), 1000),
    "efficientnet-b0-imagenet": Architecture(imagenet.efficientnet_b0, (224, 224), 1000),
}


def find_architecture(name: str) -> Architecture:
    """Return the architecture of this name.

    Raises:
        RecipeError: no architecture has this name; the message lists the names.
    """
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise RecipeError(
            f"no architecture {name!r}; there are {', '.join(ARCHITECTURES)}"
        ) from None
