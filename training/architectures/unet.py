"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597): down to see much, up to say where.

Four differences from the paper: convolutions keep the size (SAME padding), so that the answer is
as large as the picture; batch normalisation; fewer channels; and a channel for each pixel's depth
within its object, if objects of one class are to be told apart.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """Float `[N,3,H,W]` to logits `[N,outputs,H,W]`; height and width are multiples of 16.

    Args:
        outputs: channels of the answer.
        dropout: before the last layer of the deepest block, as in the paper.
        width: channels at the picture's resolution; each of four halvings doubles them, up to
            `most`.
        most: the most channels.
        skips: whether the way up sees the features of the way down.
    """

    def __init__(
        self,
        outputs: int,
        dropout: float = 0.0,
        *,
        width: int = 24,
        most: int = 192,
        skips: bool = True,
    ) -> None:
        super().__init__()
        channels = [min(width * 2**level, most) for level in range(5)]
        self.skips = skips
        self.down = nn.ModuleList(
            block(inputs, outputs_)
            for inputs, outputs_ in zip([3, *channels[:-2]], channels[:-1], strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottom = block(channels[-2], channels[-1])
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, here, 2, 2)
            for below, here in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.merge = nn.ModuleList(
            block(2 * here if skips else here, here) for here in channels[-2::-1]
        )
        self.head = nn.Conv2d(channels[0], outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of each pixel."""
        seen = []
        features = image
        for down in self.down:
            features = down(features)
            seen.append(features)
            features = self.pool(features)
        features = self.dropout(self.bottom(features))
        for up, merge, skipped in zip(self.up, self.merge, reversed(seen), strict=True):
            features = up(features)
            if self.skips:
                features = torch.cat((skipped, features), 1)
            features = merge(features)
        logits: Tensor = self.head(features)
        return logits


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
