"""Well-known networks for ImageNet, to describe and not to train.

All are torchvision's definitions, from float `[N,3,224,224]` to logits `[N,classes]`.
"""

from typing import cast

from torch import nn

from training.vision import import_torchvision


def alexnet(classes: int = 1000, dropout: float = 0.5) -> nn.Module:
    """AlexNet in its one-tower form (Krizhevsky 2014); 61,100,840 parameters."""
    models = import_torchvision().models
    return cast(nn.Module, models.alexnet(weights=None, num_classes=classes, dropout=dropout))


def vgg16(classes: int = 1000, dropout: float = 0.5) -> nn.Module:
    """VGG-16 without batch normalisation (Simonyan & Zisserman 2015); 138,357,544 parameters."""
    models = import_torchvision().models
    return cast(nn.Module, models.vgg16(weights=None, num_classes=classes, dropout=dropout))


def resnet50(classes: int = 1000, dropout: float = 0.0) -> nn.Module:  # noqa: ARG001 - it has none
    """ResNet-50 (He et al. 2015); 25,557,032 parameters."""
    return cast(nn.Module, import_torchvision().models.resnet50(weights=None, num_classes=classes))


def efficientnet_b0(classes: int = 1000, dropout: float = 0.2) -> nn.Module:
    """EfficientNet-B0 (Tan & Le 2019); 5,288,548 parameters."""
    models = import_torchvision().models
    network = models.efficientnet_b0(weights=None, num_classes=classes, dropout=dropout)
    return cast(nn.Module, network)
