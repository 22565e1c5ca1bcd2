"""A trained network whose answers a run learns, instead of labels (Hinton et al. 2015).

It is asked about every image as the run's network sees it (Beyer et al. 2022).
"""

import torch
from torch import Tensor, nn

from training.architectures import find_architecture
from training.run.trained import Trained, load_trained


class Teacher(nn.Module):
    """A trained network that answers the images of another, on the device of those.

    Its probabilities are those of one view at temperature 1: softer than the ones that an exported
    model gives, which are divided by a temperature below 1.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, trained: Trained, images: Tensor, mean: list[float], deviation: list[float]
    ) -> None:
        """Build the network.

        Args:
            trained: the teacher.
            images: of the run, normalised float `[N,3,H,W]`, for `load_trained`.
            mean: of each channel, by which the run normalises images.
            deviation: the same.

        Raises:
            RecipeError: there is no such architecture.
            RunError: the architecture has other weights.
        """
        super().__init__()
        middle, spread = torch.tensor(trained.mean), torch.tensor(trained.deviation)
        shape = (1, 3, 1, 1)
        self.register_buffer("scale", (torch.tensor(deviation) / spread).reshape(shape))
        self.register_buffer("shift", ((torch.tensor(mean) - middle) / spread).reshape(shape))
        self.network = find_architecture(trained.architecture).build(len(trained.classes), 0.0)
        self.to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        load_trained(self.network, trained.weights, images * self.scale + self.shift)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities, float32 `[N,classes]`, for images as the run normalises them."""
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits.float().softmax(1)
