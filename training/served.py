"""Networks as they are served: uint8 pictures `[N,H,W,3]` in, calibrated answers out.

Classifiers have more outputs; theirs is in `training.export.graphs`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from app.artifact.tensors import BOXES, DEPTH, LABELS, PROBABILITIES, SCORES, Images, Outputs
from training.architectures.describe import changing_layers, layers_of
from training.tasks import detection


class Served(nn.Module):
    """A network behind its normalisation.

    Attributes:
        plain: the network.
        layers: its records.
        output_names: of what `forward` returns.
    """

    scale: Tensor
    shift: Tensor
    output_names: tuple[str, ...] = ()

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        deviation: Sequence[float],
        size: tuple[int, int],
    ) -> None:
        """Wrap a network.

        Args:
            network: takes normalised pictures.
            mean: of each channel, 0 to 1.
            deviation: likewise.
            size: height and width of the pictures.
        """
        super().__init__()
        self.plain = network
        self.size = size
        self.register_buffer("scale", 1 / (255 * torch.tensor(deviation)).reshape(3, 1, 1))
        shift = torch.tensor(mean) / torch.tensor(deviation)
        self.register_buffer("shift", shift.reshape(3, 1, 1))
        self.layers = changing_layers(layers_of(network.eval(), torch.empty(1, 3, *size)))

    def normalized(self, image: Tensor) -> Tensor:
        """Return what the network takes, float32 `[N,3,H,W]`."""
        return image.permute(0, 3, 1, 2).to(torch.float32) * self.scale - self.shift

    @torch.inference_mode()
    def predict(self, images: Images) -> Outputs:
        """Return the eager network's answers, as a backend does."""
        values = self(torch.from_numpy(images))
        named = zip(self.output_names, values, strict=True)
        return Outputs({name: value.numpy() for name, value in named})


class ServedDetector(Served):
    """To boxes, scores and labels, as `app.artifact.detection.DetectorManifest` has them."""

    slope: Tensor
    intercept: Tensor
    output_names = (BOXES, SCORES, LABELS)

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        deviation: Sequence[float],
        size: tuple[int, int],
        finder: detection.Finder,
    ) -> None:
        """Wrap a network; the scores are not calibrated yet."""
        super().__init__(network, mean, deviation, size)
        self.finder = finder
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("intercept", torch.zeros(()))

    def calibrate(self, slope: Tensor, intercept: Tensor) -> None:
        """Let a score be the sigmoid of a logit times a slope plus an intercept, `[C]` each."""
        self.register_buffer("slope", slope.float())
        self.register_buffer("intercept", intercept.float())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes `[N,K,4]`, scores `[N,K]` and labels int64 `[N,K]`."""
        found = self.finder.candidates(self.plain(self.normalized(image)))
        return detection.best(found, self.slope, self.intercept)


class ServedSegmenter(Served):
    """To probabilities and depth, as `app.artifact.segmentation.SegmenterManifest` has them."""

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        deviation: Sequence[float],
        size: tuple[int, int],
        classes: int,
    ) -> None:
        """Wrap a network of `classes` and background; further channels are the depth."""
        super().__init__(network, mean, deviation, size)
        self.count = classes + 1
        self.temperature = 1.0
        self.smooth = Smooth()
        channels = self.layers[-1].shape[0]
        self.output_names = (PROBABILITIES,) if channels == self.count else (PROBABILITIES, DEPTH)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return probabilities `[N,C+1,H,W]`, and depth `[N,H,W]` if the network gives it."""
        logits = self.plain(self.normalized(image))
        probabilities = (logits[:, : self.count] / self.temperature).softmax(1)
        if DEPTH not in self.output_names:
            return (probabilities,)
        return probabilities, self.smooth(logits[:, self.count].sigmoid())


class Smooth(nn.Module):
    """A normal filter over maps `[N,H,W]`, of a deviation of one pixel.

    An object's depth has a single peak after it more often, and so is one object.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        weights = torch.exp(-torch.arange(-2.0, 3.0).square() / 2)
        weights = weights / weights.sum()
        self.register_buffer("kernel", (weights[:, None] * weights)[None, None])

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the same size; border pixels are repeated outwards."""
        padded = F.pad(maps[:, None], (2, 2, 2, 2), mode="replicate")
        return F.conv2d(padded, self.kernel)[:, 0]
