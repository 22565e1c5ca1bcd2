"""The exercise's convolutional network: two convolutions and two fully connected layers."""

from collections import OrderedDict

from torch import Tensor, nn

from training.kernels.norm_pool import norm_pool_relu


class SimpleCNN(nn.Sequential):
    """Conv(3→32) BN ReLU MaxPool, Conv(32→64) BN ReLU MaxPool, FC(4096→256) ReLU, FC(256→classes).

    Convolutions are 3×3 and keep the size. Float `[N,3,32,32]` to logits `[N,classes]`; 1,070,986
    parameters with ten classes. Dropout (Srivastava et al. 2014) acts before each fully connected
    layer; the exercise has none. In training, `norm_pool_relu` computes the three layers after a
    convolution, and the modules `relu1`, `pool1`, `relu2` and `pool2` are not called.
    """

    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    conv2: nn.Conv2d
    bn2: nn.BatchNorm2d
    flatten: nn.Flatten

    def __init__(self, classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(3, 32, kernel_size=3, padding="same"),
                bn1=nn.BatchNorm2d(32),
                relu1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(32, 64, kernel_size=3, padding="same"),
                bn2=nn.BatchNorm2d(64),
                relu2=nn.ReLU(inplace=True),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                dropout1=nn.Dropout(dropout),
                fc1=nn.Linear(64 * 8 * 8, 256),
                relu3=nn.ReLU(inplace=True),
                dropout2=nn.Dropout(dropout),
                fc2=nn.Linear(256, classes),
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, `[N,classes]`."""
        layers = list(self)
        if self.training:
            for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
                images = norm_pool_relu(conv(images), norm)
            layers = layers[layers.index(self.flatten) :]
        for layer in layers:
            images = layer(images)
        return images
