"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597): down to see much, up to say where.

Differences from the paper: convolutions keep the size (SAME padding), so that the answer is as
large as the picture; batch normalisation; fewer channels; and a channel for each pixel's depth
within its object, if objects of one class are to be told apart. The finest level works at half the
picture's resolution, between a convolution and a transposed one of stride 2, for a quarter of the
arithmetic. Each picture is standardised first, and seen a second time through a logarithm: a
microscope's pictures are often dark, and each in another way.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

DARKEST = 0.2
"""Is added before the logarithm, in deviations of the picture."""

LEAST_DEVIATION = 1e-3
"""Is added to a deviation: a picture may be of one colour."""


class UNet(nn.Module):
    """Float `[N,3,H,W]` to logits `[N,outputs,H,W]`; height and width are multiples of 16.

    Args:
        outputs: channels of the answer.
        dropout: before the last layer of the deepest block, as in the paper.
        width: channels at half the picture's resolution; each of three halvings doubles them, up
            to `most`.
        most: the most channels.
        skips: whether the way up sees the features of the way down.
    """

    def __init__(
        self,
        outputs: int,
        dropout: float = 0.0,
        *,
        width: int = 32,
        most: int = 160,
        skips: bool = True,
    ) -> None:
        super().__init__()
        channels = widths(width, most)
        self.skips = skips
        self.standardize = Standardize()
        self.stem, self.down, self.pools, self.bottom = encoder(channels)
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, here, 2, 2)
            for below, here in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.merge = nn.ModuleList(
            block(2 * here if skips else here, here) for here in channels[-2::-1]
        )
        self.head = nn.ConvTranspose2d(channels[0], outputs, 2, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of each pixel."""
        seen = []
        features = self.stem(self.standardize(image))
        for down, pool in zip(self.down, self.pools, strict=True):
            features = down(features)
            seen.append(features)
            features = pool(features)
        features = self.dropout(self.bottom(features))
        for up, merge, skipped in zip(self.up, self.merge, reversed(seen), strict=True):
            features = up(features)
            if self.skips:
                features = torch.cat((skipped, features), 1)
            features = merge(features)
        logits: Tensor = self.head(features)
        return logits


class UNetBackbone(nn.Module):
    """The way down as a classifier: a start for segmenters, whose layers have the same names.

    Float `[N,3,H,W]` to logits `[N,classes]`.

    Args:
        classes: the number of classes.
        dropout: before the last layer.
        width: as the segmenter's.
        most: likewise.
    """

    def __init__(
        self, classes: int, dropout: float = 0.0, *, width: int = 32, most: int = 160
    ) -> None:
        super().__init__()
        channels = widths(width, most)
        self.standardize = Standardize()
        self.stem, self.down, self.pools, self.bottom = encoder(channels)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels[-1], classes),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        features = self.stem(self.standardize(image))
        for down, pool in zip(self.down, self.pools, strict=True):
            features = pool(down(features))
        logits: Tensor = self.classifier(self.bottom(features))
        return logits


class Standardize(nn.Module):
    """Float `[N,3,H,W]` to `[N,4,H,W]`, each picture with a mean of 0 and a deviation of 1.

    The fourth channel is the logarithm of the picture's grey above its darkest value. Neither
    depends on how the picture's brightness was scaled or shifted before.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Return the four channels."""
        colours = _standard(image)
        grey = colours.mean(1, keepdim=True)
        above = grey - grey.amin((2, 3), keepdim=True)
        return torch.cat((colours, _standard(torch.log(above + DARKEST))), 1)


def _standard(values: Tensor) -> Tensor:
    """Return values of a mean of 0 and a deviation of 1 over all but the first dimension."""
    centred = values - values.mean((1, 2, 3), keepdim=True)
    deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
    return centred / (deviation + LEAST_DEVIATION)


def widths(width: int, most: int) -> list[int]:
    """Return the channels of each of the four resolutions."""
    return [min(width * 2**level, most) for level in range(4)]


def encoder(
    channels: list[int],
) -> tuple[nn.Sequential, nn.ModuleList, nn.ModuleList, nn.Sequential]:
    """Return the stem, the blocks of three resolutions, their pools, and the deepest block."""
    stem = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(4, channels[0], 4, 2, 1, bias=False),
            norm=nn.BatchNorm2d(channels[0]),
            relu=nn.ReLU(inplace=True),
        )
    )
    down = nn.ModuleList(
        block(inputs, outputs)
        for inputs, outputs in zip([channels[0], *channels[:-2]], channels[:-1], strict=True)
    )
    pools = nn.ModuleList(nn.MaxPool2d(2) for _ in channels[:-1])
    return stem, down, pools, block(channels[-2], channels[-1])


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Return two 3×3 convolutions with SAME padding, each with batch normalisation and ReLU."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            norm1=nn.BatchNorm2d(outputs),
            relu1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            norm2=nn.BatchNorm2d(outputs),
            relu2=nn.ReLU(inplace=True),
        )
    )
