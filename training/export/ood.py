"""The out-of-distribution score: how unlike a network's training images an image is.

One half is an odd look: the squared Mahalanobis distance (Lee et al. 2018) of the means and
deviations of a feature map's channels from those of training images, at a layer that still sees
textures and colours. The other half is weak evidence for any class: the energy (Liu et al. 2020).
The first finds images that look like none of the training images, the second finds photographs of
other things. `docs/confidence.md` has the measurements.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from app.artifact.files import PIXELS
from app.artifact.manifest import LayerRecord

LEAST_SIDE = 14
"""Least side in pixels of the feature maps of the layer, the last activation that has it."""

_ACTIVATIONS = ("ReLU", "SiLU")
_RIDGE = 1e-3  # part of the mean variance added to each: some channels are constant
_LEAST_SPREAD = 1e-3  # a divisor, and 0 for a network that answers all images alike


class OodScore(nn.Module):
    """The mean of two halves, each 0 for the median image and 1 at the 95th percentile.

    Attributes:
        layer: the layer whose output is measured; `pixels` is the normalised image.
    """

    mean: Tensor
    precision: Tensor
    usual: Tensor
    spread: Tensor

    def __init__(self, layer: str, statistics: Tensor) -> None:
        """Fit the distribution of statistics.

        Args:
            layer: the layer's name.
            statistics: `statistics_of` its outputs for training images, float `[N,2C]`.
        """
        super().__init__()
        self.layer = layer
        statistics = statistics.double()
        mean = statistics.mean(0)
        covariance = (statistics - mean).T @ (statistics - mean) / len(statistics)
        covariance += _RIDGE * covariance.diagonal().mean() * torch.eye(len(mean))
        self.register_buffer("mean", mean.float())
        # The inverse lies in memory column by column, and TorchScript would store it so.
        self.register_buffer("precision", torch.linalg.inv(covariance).float().contiguous())
        self.register_buffer("usual", torch.zeros(2))
        self.register_buffer("spread", torch.ones(2))

    def calibrate(self, statistics: Tensor, logits: Tensor) -> None:
        """Scale both halves: 0 at the median of held-out images, 1 at their 95th percentile.

        Args:
            statistics: of held-out images, float `[N,2C]`.
            logits: the network's, `[N,classes]`.
        """
        halves = self.halves(statistics, logits)
        usual = halves.median(0).values
        self.usual.copy_(usual)
        spread = halves.quantile(0.95, dim=0) - usual
        self.spread.copy_(spread.clamp_min(_LEAST_SPREAD))

    def forward(self, maps: Tensor, logits: Tensor) -> Tensor:
        """Return the scores, float `[N]`.

        Args:
            maps: the layer's outputs, float `[N,C,h,w]`.
            logits: the network's, `[N,classes]`.
        """
        return self.combine(self.halves(statistics_of(maps), logits))

    def combine(self, halves: Tensor) -> Tensor:
        """Return the scores, float `[N]`, from their two halves `[N,2]`."""
        return ((halves - self.usual) / self.spread).mean(1)

    def halves(self, statistics: Tensor, logits: Tensor) -> Tensor:
        """Return the odd look and the energy, float `[N,2]`.

        Args:
            statistics: `statistics_of` the layer's maps, float `[N,2C]`.
            logits: the network's, `[N,classes]`.
        """
        away = statistics - self.mean
        distance = ((away @ self.precision) * away).sum(1)
        return torch.stack([distance, -logits.logsumexp(1)], 1)


def layer_for_score(layers: Sequence[LayerRecord]) -> str:
    """Return the last activation with large enough feature maps, else `pixels`."""
    large = [
        layer.name
        for layer in layers
        if layer.kind in _ACTIVATIONS and len(layer.shape) == 3 and layer.shape[1] >= LEAST_SIDE
    ]
    return large[-1] if large else PIXELS


def statistics_of(maps: Tensor) -> Tensor:
    """Return each channel's mean and deviation, `[N,2C]`, of feature maps `[N,C,h,w]`."""
    mean = maps.mean((2, 3), keepdim=True)
    deviation = (maps - mean).square().mean((2, 3)).sqrt()
    return torch.cat([mean.flatten(1), deviation], 1)
