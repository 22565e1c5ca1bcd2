"""Residual networks for images of 32 pixels (He et al. 2015)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

Shortcut = Literal["none", "padding", "projection"]


class ResNet(nn.Sequential):
    """Conv BN ReLU at full size, stages of residual blocks, global average pooling, FC.

    Float `[N,3,32,32]` to logits `[N,classes]`. Every stage but the first halves height and width
    in its first block. Dropout acts before the FC layer; the paper has none.

    Args:
        classes: the number of classes.
        dropout: its probability.
        widths: channels of each stage.
        blocks: residual blocks of each stage.
        shortcut: of a block that changes the shape: `padding` with channels of zeros (option A of
            the paper) or a 1×1 `projection` (option B). With `none`, no block has a shortcut: the
            paper's plain network.
    """

    def __init__(
        self,
        classes: int,
        dropout: float,
        *,
        widths: Sequence[int],
        blocks: int,
        shortcut: Shortcut,
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(3, widths[0], 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(widths[0]),
            relu=nn.ReLU(inplace=True),
        )
        inputs = widths[0]
        for stage, width in enumerate(widths, start=1):
            for number in range(1, blocks + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                layers[f"block{stage}_{number}"] = ResidualBlock(inputs, width, stride, shortcut)
                inputs = width
        layers["average"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["dropout"] = nn.Dropout(dropout)
        layers["fc"] = nn.Linear(inputs, classes)
        super().__init__(layers)


def resnet18(classes: int = 10, dropout: float = 0.0) -> ResNet:
    """ResNet-18 with a 3×3 first convolution and no pooling after it; 11,173,962 parameters.

    The paper's network for ImageNet starts with a 7×7 convolution of stride 2 and a pooling, which
    would leave 8 of 32 pixels a side.
    """
    widths = (64, 128, 256, 512)
    return ResNet(classes, dropout, widths=widths, blocks=2, shortcut="projection")


def resnet20(classes: int = 10, dropout: float = 0.0) -> ResNet:
    """The paper's network for CIFAR-10 with n = 3; 269,722 parameters."""
    return ResNet(classes, dropout, widths=(16, 32, 64), blocks=3, shortcut="padding")


def plain20(classes: int = 10, dropout: float = 0.0) -> ResNet:
    """The paper's plain network: ResNet-20 without its shortcuts, which have no parameters."""
    return ResNet(classes, dropout, widths=(16, 32, 64), blocks=3, shortcut="none")


class ResidualBlock(nn.Module):
    """ReLU(x + F(x)) with F = Conv BN ReLU Conv BN, all 3×3; without a shortcut, ReLU(F(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
                bn1=nn.BatchNorm2d(outputs),
                relu=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
                bn2=nn.BatchNorm2d(outputs),
            )
        )
        self.shortcut = _shortcut(inputs, outputs, stride, shortcut)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[N,outputs,H/stride,W/stride]`."""
        output: Tensor = self.residual(x)
        if self.shortcut is not None:
            output = self.shortcut(x) + output
        return cast(Tensor, self.relu(output))


class ZeroPadding(nn.Module):
    """Every second pixel in both directions, with channels of zeros after the input's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return `[N,C+channels,H/2,W/2]`."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.channels))


def _shortcut(inputs: int, outputs: int, stride: int, kind: Shortcut) -> nn.Module | None:
    if kind == "none":
        return None
    if inputs == outputs and stride == 1:
        return nn.Identity()
    if kind == "padding":
        return ZeroPadding(outputs - inputs)
    projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(OrderedDict(conv=projection, bn=nn.BatchNorm2d(outputs)))
