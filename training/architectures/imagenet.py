"""Networks for ImageNet that the source article quotes: to be described, not trained here."""

from typing import cast

from torch import nn

from training.vision import import_torchvision


def vgg16(classes: int = 1000, dropout: float = 0.5) -> nn.Module:
    """VGG-16 without batch normalisation (Simonyan & Zisserman 2015), torchvision's definition.

    Float `[N,3,224,224]` to logits `[N,classes]`; 138,357,544 parameters with 1,000 classes.
    """
    models = import_torchvision().models
    return cast(nn.Module, models.vgg16(weights=None, num_classes=classes, dropout=dropout))
