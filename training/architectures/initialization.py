"""What a network does whose first weights come from the images that it is trained on."""

from abc import abstractmethod

from torch import Tensor, nn


class InitializedFromImages(nn.Module):
    """A network that looks at training images once, before the first step."""

    @abstractmethod
    def initialize_from(self, images: Tensor) -> None:
        """Set weights from normalised training images, float `[N,3,H,W]`."""
