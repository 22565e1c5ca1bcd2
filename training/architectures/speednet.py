"""A small VGG that trains in minutes: frozen whitening, then convolutions that start as identity.

After airbench (Jordan 2024, arXiv 2404.00498, and its later variant for the Muon optimizer), which
grew out of hlb-CIFAR10 (Swan 2023) and Page's ResNet-9 (2019). There are four differences. The
whitening convolution has no bias, so no gradient is computed for its output. It adds 0.01 to
variances, as Page does, and not airbench's 0.0005: dividing by the smallest amplifies noise. Batch
normalisation keeps the usual epsilon. Activations are SiLU, which a later speedrun (Hiverge 2025)
found no worse than GELU, and which a processor computes faster.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

WHITENING_SIZE = 2
WHITENING_EPSILON = 1e-2
BATCH_NORM_MOMENTUM = 0.15
"""A step of 1,536 images in parts of 512 moves the statistics by 0.39, as published."""

Activation = Callable[[], nn.Module]


class SpeedNet(nn.Sequential):
    """Whitening Conv(3→24, 2×2, VALID), three blocks, MaxPool(3×3), FC without a bias.

    Float `[N,3,32,32]` to logits `[N,classes]`. Every block halves height and width, so the
    blocks work at 15, 7 and 3 pixels and the last pooling leaves one.

    Args:
        classes: the number of classes.
        dropout: before the last layer; the published recipes have none.
        widths: channels of the three blocks.
        depth: convolutions a block, 2 or 3; with 3, the last two have a shortcut.
        activation: makes the activations.
    """

    def __init__(
        self,
        classes: int = 10,
        dropout: float = 0.0,
        *,
        widths: tuple[int, int, int] = (64, 256, 256),
        depth: int = 2,
        activation: Activation = nn.SiLU,
    ) -> None:
        whitened = 2 * 3 * WHITENING_SIZE**2
        channels = (whitened, *widths)
        blocks = {
            f"block{index}": Block(channels[index - 1], channels[index], depth, activation)
            for index in (1, 2, 3)
        }
        super().__init__(
            OrderedDict(
                whiten=Whitening(whitened),
                activation=activation(),
                **blocks,
                pool=nn.MaxPool2d(3),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(dropout),
                head=ScaledLinear(widths[-1], classes),
            )
        )

    def initialize_from(self, images: Tensor) -> None:
        """Set the first kernels so that their outputs for these images are white.

        Args:
            images: normalised float `[N,3,H,W]`; 5,000 are plenty.
        """
        cast(Whitening, self.whiten).fit(images)


class Whitening(nn.Conv2d):
    """A frozen 2×2 convolution without padding and with uncorrelated outputs.

    An output's variance is one, and less where the images hardly vary.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__(3, outputs, WHITENING_SIZE, bias=False)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Make the kernels from the patches of normalised images, float `[N,3,H,W]`.

        Each kernel is an eigenvector of the patches' covariance, divided by the root of its
        eigenvalue plus epsilon. The second half of the kernels has the opposite signs, which an
        activation would lose (Page 2019).
        """
        size = WHITENING_SIZE
        # On the processor: GPUs of Apple compute no float64.
        patches = images.cpu().double().unfold(2, size, 1).unfold(3, size, 1)
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * size * size)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        kernels = (vectors / (values + WHITENING_EPSILON).sqrt()).T.flip(0)
        kernels = kernels.reshape(-1, 3, size, size)
        self.weight.copy_(torch.cat([kernels, -kernels]))


class Block(nn.Module):
    """Conv MaxPool BN act, then Conv BN act: once, or twice with a shortcut around both."""

    def __init__(self, inputs: int, outputs: int, depth: int, activation: Activation) -> None:
        super().__init__()
        self.first = nn.Sequential(
            OrderedDict(
                conv=identity_convolution(inputs, outputs),
                pool=nn.MaxPool2d(2),
                norm=batch_norm(outputs),
                activation=activation(),
            )
        )
        layers: list[tuple[str, nn.Module]] = []
        for number in range(2, depth + 1):
            if number > 2:
                layers.append((f"activation{number - 1}", activation()))
            layers.append((f"conv{number}", identity_convolution(outputs, outputs)))
            layers.append((f"norm{number}", batch_norm(outputs)))
        self.rest = nn.Sequential(OrderedDict(layers))
        self.activation = activation()
        self.shortcut = depth > 2

    def forward(self, x: Tensor) -> Tensor:
        """Return `[N,outputs,H/2,W/2]`, rounded down."""
        first: Tensor = self.first(x)
        rest: Tensor = self.rest(first)
        result: Tensor = self.activation(first + rest if self.shortcut else rest)
        return result


class ScaledLinear(nn.Linear):
    """A last layer without a bias, whose output is divided by the number of its inputs.

    Its weights start with a deviation of one. So logits start small, and the learning rate of the
    weights does not depend on the width.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__(inputs, classes, bias=False)
        with torch.no_grad():
            self.weight.div_(self.weight.std())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[N,classes]`."""
        return super().forward(x) / self.in_features


def identity_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3×3 convolution whose first kernels start as the identity."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
    nn.init.dirac_(convolution.weight.data[:inputs])
    return convolution


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch normalisation whose scale stays one: the convolution before it has a scale."""
    norm = nn.BatchNorm2d(channels, momentum=BATCH_NORM_MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm
