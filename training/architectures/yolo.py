"""Detectors: one pass over the picture, and every cell of a grid says which object lies there.

`Yolo` is the grid of YOLO (Redmon et al. 2016, arXiv 1506.02640) with later parts: two grids, each
fed by the coarser one too (Lin et al. 2017, arXiv 1612.03144); no anchor boxes, but the distances
from a cell's centre to the four sides (Tian et al. 2019, arXiv 1904.01355), each as a distribution
over whole numbers of cells (Li et al. 2020, arXiv 2006.04388); and separate branches for classes
and boxes (Ge et al. 2021, arXiv 2107.08430). Losses and the choice of the cells that learn an
object are in `training.tasks.detection`.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

BINS = 12
"""Of a distance's distribution: it can be 0 to 11 cells."""

PRIOR = 0.01
"""A new network's probability of each class in each cell (Lin et al. 2017, arXiv 1708.02002)."""


class Yolo(nn.Module):
    """Float `[N,3,H,W]` to two maps `[N,4*BINS+classes,h,w]`, of cells of 8 and of 16 pixels.

    Height and width must be multiples of 16.

    Args:
        classes: the number of classes.
        dropout: of the features of each head.
        width: channels at a quarter of the picture's resolution.
    """

    strides = (8, 16)

    def __init__(self, classes: int, dropout: float = 0.0, *, width: int = 32) -> None:
        super().__init__()
        self.stem, self.stage8, self.stage16, self.stage32 = backbone(width)
        self.down = conv(3 * width, 2 * width, kernel=1)
        self.merge16 = conv(5 * width, 2 * width)
        self.merge8 = conv(4 * width, 2 * width)
        self.head8 = Head(2 * width, classes, dropout)
        self.head16 = Head(2 * width, classes, dropout)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of fine and coarse cells."""
        fine = self.stage8(self.stem(image))
        middle = self.stage16(fine)
        coarse = self.down(self.stage32(middle))
        middle = self.merge16(torch.cat((middle, enlarged(coarse, middle)), 1))
        fine = self.merge8(torch.cat((fine, enlarged(middle, fine)), 1))
        return self.head8(fine), self.head16(middle)


class YoloBackbone(nn.Module):
    """The same layers down to cells of 32 pixels, as a classifier: a start for detectors.

    Float `[N,3,H,W]` to logits `[N,classes]`. The layers have the detector's names.

    Args:
        classes: the number of classes.
        dropout: before the last layer.
        width: as the detector's.
    """

    def __init__(self, classes: int, dropout: float = 0.0, *, width: int = 32) -> None:
        super().__init__()
        self.stem, self.stage8, self.stage16, self.stage32 = backbone(width)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(3 * width, classes),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        features = self.stage32(self.stage16(self.stage8(self.stem(image))))
        logits: Tensor = self.classifier(features)
        return logits


class Head(nn.Module):
    """Distances to the four sides and classes of each cell, by a branch each."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.box = nn.Sequential(conv(channels, channels), nn.Conv2d(channels, 4 * BINS, 1))
        self.label = nn.Sequential(conv(channels, channels), nn.Conv2d(channels, classes, 1))
        bias = self.label[1].bias
        if isinstance(bias, nn.Parameter):
            nn.init.constant_(bias, -math.log(1 / PRIOR - 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return `[N,4*BINS+classes,h,w]`."""
        features = self.dropout(features)
        return torch.cat((self.box(features), self.label(features)), 1)


class Residual(nn.Module):
    """Two convolutions and a shortcut around them (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels)
        self.second = conv(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Add to the features."""
        added: Tensor = features + self.second(self.first(features))
        return added


def backbone(width: int) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential, nn.Sequential]:
    """Return the layers down to cells of 4, of 8, of 16 and of 32 pixels."""
    stem = nn.Sequential(
        conv(3, width // 2, stride=2), conv(width // 2, width, stride=2), Residual(width)
    )
    return (
        stem,
        stage(width, 2 * width, 2),
        stage(2 * width, 3 * width, 2),
        stage(3 * width, 3 * width, 1),
    )


def enlarged(features: Tensor, other: Tensor) -> Tensor:
    """Return features of the height and width of others, each value repeated."""
    return F.interpolate(features, size=other.shape[2:], mode="nearest")


def stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """Halve height and width, then `depth` residual blocks."""
    blocks = [Residual(outputs) for _ in range(depth)]
    return nn.Sequential(conv(inputs, outputs, stride=2), *blocks)


def conv(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution with SAME padding, batch normalisation and ReLU."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            norm=nn.BatchNorm2d(outputs),
            activation=nn.ReLU(inplace=True),
        )
    )
