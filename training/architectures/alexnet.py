"""AlexNet (Krizhevsky et al. 2012) sized for images of 32 pixels."""

from collections import OrderedDict

from torch import nn


class AlexNet(nn.Sequential):
    """Five convolutions and three fully connected layers, ReLU, dropout before the last three.

    Float `[N,3,32,32]` to logits `[N,classes]`; 23,272,266 parameters with ten classes. The
    channels are those of the one-tower form (Krizhevsky 2014). As the images are seven times
    smaller, all kernels are 3×3, the first stride is 2 and poolings are 2×2; 2×2 places of 256
    channels reach the first fully connected layer, and 6×6 in the original. There is no local
    response normalisation, as is usual today.
    """

    def __init__(self, classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(3, 64, 3, stride=2, padding=1),
                relu1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(64, 192, 3, padding=1),
                relu2=nn.ReLU(inplace=True),
                pool2=nn.MaxPool2d(2),
                conv3=nn.Conv2d(192, 384, 3, padding=1),
                relu3=nn.ReLU(inplace=True),
                conv4=nn.Conv2d(384, 256, 3, padding=1),
                relu4=nn.ReLU(inplace=True),
                conv5=nn.Conv2d(256, 256, 3, padding=1),
                relu5=nn.ReLU(inplace=True),
                pool5=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                dropout1=nn.Dropout(dropout),
                fc1=nn.Linear(256 * 2 * 2, 4096),
                relu6=nn.ReLU(inplace=True),
                dropout2=nn.Dropout(dropout),
                fc2=nn.Linear(4096, 4096),
                relu7=nn.ReLU(inplace=True),
                fc3=nn.Linear(4096, classes),
            )
        )
