"""VGG-16 (Simonyan & Zisserman 2015) for images of 32 pixels."""

from collections import OrderedDict

from torch import nn

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(nn.Sequential):
    """Thirteen 3×3 convolutions in five stages, each stage ended by a pooling; one FC layer.

    Float `[N,3,32,32]` to logits `[N,classes]`; 14,728,266 parameters with ten classes. Unlike the
    original, batch normalisation follows each convolution, and global average pooling replaces the
    two FC layers of 4,096, which hold nine tenths of the original's weights. After five poolings
    one pixel is left, so the average is over one. Dropout acts before the FC layer.
    """

    def __init__(self, classes: int = 10, dropout: float = 0.0) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = 3
        for stage, (channels, convolutions) in enumerate(STAGES, start=1):
            for number in range(1, convolutions + 1):
                place = f"{stage}_{number}"
                layers[f"conv{place}"] = nn.Conv2d(inputs, channels, 3, padding=1)
                layers[f"bn{place}"] = nn.BatchNorm2d(channels)
                layers[f"relu{place}"] = nn.ReLU(inplace=True)
                inputs = channels
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        layers["average"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["dropout"] = nn.Dropout(dropout)
        layers["fc"] = nn.Linear(inputs, classes)
        super().__init__(layers)
