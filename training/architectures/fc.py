"""The exercise's fully connected network, a baseline for the convolutional one."""

from collections import OrderedDict

from torch import nn


class FullyConnected(nn.Sequential):
    """FC(3072→256) ReLU, FC(256→128) ReLU, FC(128→classes).

    Float `[N,3,32,32]` to logits `[N,classes]`; 820,874 parameters with ten classes. Dropout acts
    before the second and the third layer; the exercise has none.
    """

    def __init__(self, classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__(
            OrderedDict(
                flatten=nn.Flatten(),
                fc1=nn.Linear(3 * 32 * 32, 256),
                relu1=nn.ReLU(inplace=True),
                dropout1=nn.Dropout(dropout),
                fc2=nn.Linear(256, 128),
                relu2=nn.ReLU(inplace=True),
                dropout2=nn.Dropout(dropout),
                fc3=nn.Linear(128, classes),
            )
        )
