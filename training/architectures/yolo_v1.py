"""The first YOLO (Redmon et al. 2016, arXiv 1506.02640): one grid, and a say for each cell.

The head is the paper's: fully connected layers that see the whole picture answer for S×S cells
with B boxes each, and with one class for a cell, whatever its boxes are. Loss and decoding, in
`training.tasks.detection_v1`, are the paper's too. The network before it is the one of
`training.architectures.yolo`, which is small and not trained on ImageNet, and the first fully
connected layer has 512 outputs, not 4096.
"""

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from training.architectures.yolo import Residual, conv, stage

BOXES = 2
"""Of a cell (B)."""

SLOPE = 0.1
"""Of leaky ReLU for numbers below zero."""


class YoloV1(nn.Module):
    """Float `[N,3,H,W]` to one map `[N,5*BOXES+classes,cells,cells]`.

    Args:
        classes: the number of classes.
        dropout: between the fully connected layers.
        cells: along each side of the picture (S).
        width: channels at a quarter of the picture's resolution.
        hidden: outputs of the first fully connected layer.
    """

    def __init__(
        self,
        classes: int,
        dropout: float = 0.0,
        *,
        cells: int = 7,
        width: int = 32,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        self.grid = (5 * BOXES + classes, cells, cells)
        self.backbone = nn.Sequential(
            conv(3, width // 2, stride=2),
            conv(width // 2, width, stride=2),
            Residual(width),
            stage(width, 2 * width, 2),
            stage(2 * width, 3 * width, 2),
            stage(3 * width, 3 * width, 1),
            conv(3 * width, 2 * width),
        )
        self.hidden = nn.Linear(2 * width * cells * cells, hidden)
        self.leaky = nn.LeakyReLU(SLOPE)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, self.grid[0] * cells * cells)

    def forward(self, image: Tensor) -> Tensor:
        """Return the map."""
        features = self.backbone(image)
        features = F.interpolate(features, self.grid[1:], mode="bilinear")
        features = self.dropout(self.leaky(self.hidden(features.flatten(1))))
        found: Tensor = self.out(features).unflatten(1, self.grid)
        return found
