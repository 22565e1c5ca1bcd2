"""EfficientNet-B0 (Tan & Le 2019) for images of 32 pixels."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """A row of the paper's table 1."""

    expansion: int
    channels: int
    blocks: int
    kernel: int
    stride: int


STAGES = (
    Stage(1, 16, 1, 3, 1),
    Stage(6, 24, 2, 3, 2),
    Stage(6, 40, 2, 5, 2),
    Stage(6, 80, 3, 3, 2),
    Stage(6, 112, 3, 5, 1),
    Stage(6, 192, 4, 5, 2),
    Stage(6, 320, 1, 3, 1),
)


class EfficientNetB0(nn.Sequential):
    """Conv(3→32), sixteen inverted residual blocks, global average pooling, FC.

    Float `[N,3,32,32]` to logits `[N,classes]`; 3,599,686 parameters with ten classes. Unlike the
    original, the first convolution keeps the size, for small images; there is no 1×1 convolution to
    1,280 channels before the pooling, which suits 1,000 classes; and the first block has an
    expanding 1×1 convolution (by one). Compound scaling, which makes B1 to B7 from B0, and
    stochastic depth are not implemented. Dropout acts before the FC layer.
    """

    def __init__(self, classes: int = 10, dropout: float = 0.0) -> None:
        inputs = 32
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(3, inputs, 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(inputs),
            silu=nn.SiLU(inplace=True),
        )
        for number, stage in enumerate(STAGES, start=1):
            for block in range(1, stage.blocks + 1):
                stride = stage.stride if block == 1 else 1
                layers[f"block{number}_{block}"] = InvertedResidual(inputs, stage, stride)
                inputs = stage.channels
        layers["average"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["dropout"] = nn.Dropout(dropout)
        layers["fc"] = nn.Linear(inputs, classes)
        super().__init__(layers)


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise convolution, squeeze and excitation, 1×1 projection (MBConv).

    After MobileNetV2 (Sandler et al. 2018). The input is added if the shape stays the same.
    """

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.expansion
        depthwise = nn.Conv2d(
            inner, inner, stage.kernel, stride, stage.kernel // 2, groups=inner, bias=False
        )
        self.layers = nn.Sequential(
            OrderedDict(
                expand=nn.Conv2d(inputs, inner, 1, bias=False),
                bn1=nn.BatchNorm2d(inner),
                silu1=nn.SiLU(inplace=True),
                depthwise=depthwise,
                bn2=nn.BatchNorm2d(inner),
                silu2=nn.SiLU(inplace=True),
                excite=SqueezeExcitation(inner, inputs // 4),
                project=nn.Conv2d(inner, stage.channels, 1, bias=False),
                bn3=nn.BatchNorm2d(stage.channels),
            )
        )
        self.shortcut = stride == 1 and inputs == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        """Return `[N,channels,H/stride,W/stride]`."""
        result: Tensor = self.layers(x)
        return x + result if self.shortcut else result


class SqueezeExcitation(nn.Module):
    """Each channel times a gate in 0..1, computed from the means of all (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            OrderedDict(
                average=nn.AdaptiveAvgPool2d(1),
                squeeze=nn.Conv2d(channels, squeezed, 1),
                silu=nn.SiLU(inplace=True),
                excite=nn.Conv2d(squeezed, channels, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `[N,channels,H,W]`."""
        return x * torch.sigmoid(self.gate(x))
