"""The bytes of an image file to the pixels that a model takes."""

import numpy as np
from numpy.typing import NDArray

RgbImage = NDArray[np.uint8]
"""One image, uint8 `[H,W,3]`, RGB. A batch of them is `app.artifact.tensors.Images`."""
