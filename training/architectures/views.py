"""Logits averaged over several views of an image: test-time augmentation.

The views are airbench's (Jordan 2024, section 3.5): the image and its mirror image. With six views,
both are also moved by one pixel down and right, and up and left; the moved views together count as
much as the unmoved ones.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from app.artifact.manifest import Views


class AveragedViews(nn.Module):
    """A network that looks at 2 or 6 views of every image, in one batch.

    Normalised float `[N,3,H,W]` to logits `[N,classes]`.
    """

    def __init__(self, network: nn.Module, views: Views) -> None:
        super().__init__()
        self.network = network
        self.views = views

    def forward(self, images: Tensor) -> Tensor:
        """Return the weighted mean of the views' logits."""
        views = [images]
        if self.views == 6:
            height, width = images.shape[2:]
            padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
            views += [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
        views += [view.flip(3) for view in views]
        logits: Tensor = self.network(torch.cat(views)).unflatten(0, (len(views), -1))
        if self.views == 6:
            unmoved, moved = logits[[0, 3]], logits[[1, 2, 4, 5]]
            return (unmoved.mean(0) + moved.mean(0)) / 2
        return logits.mean(0)


def with_views(network: nn.Module, views: Views) -> nn.Module:
    """Return the network itself for one view, else a network that averages its views."""
    return network if views == 1 else AveragedViews(network, views)
