"""How a picture of any size is laid into a model's input, and the way back.

Coordinates are in pixels from the upper left corner of the upright picture, or of the input; the
centre of the first pixel is at (0.5, 0.5).
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Policy = Literal["crop", "letterbox", "stretch"]
Interpolation = Literal["bicubic", "bilinear"]
Sample = Annotated[int, Field(ge=0, le=255)]


class Resize(BaseModel):
    """What makes a picture as large as a model's input.

    `crop` keeps the largest centred part with the input's aspect ratio, `stretch` the whole picture
    in another aspect ratio, and `letterbox` the whole picture in its own, with margins of one
    colour, `fill` (RGB). The filter is antialiased.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Policy = "crop"
    interpolation: Interpolation = "bicubic"
    fill: tuple[Sample, Sample, Sample] = (128, 128, 128)


CROP = Resize()
"""Of classifiers."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture lies in a model's input.

    Attributes:
        picture: width and height of the upright picture.
        input: width and height of the input.
        box: the part of the picture that fills the input: left, upper, right, lower. The margins of
            a letterbox lie outside the picture.
    """

    picture: tuple[int, int]
    input: tuple[int, int]
    box: tuple[float, float, float, float]

    @property
    def picture_in_input(self) -> tuple[float, float, float, float]:
        """The picture's left, upper, right and lower border in the input, or outside it."""
        left, upper, right, lower = self.box
        horizontal = self.input[0] / (right - left)
        vertical = self.input[1] / (lower - upper)
        return (
            -left * horizontal,
            -upper * vertical,
            (self.picture[0] - left) * horizontal,
            (self.picture[1] - upper) * vertical,
        )

    def to_input(self, boxes: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return boxes of the picture as boxes of the input.

        Args:
            boxes: left, upper, right, lower, `[n,4]`.
        """
        left, upper, right, lower = self.box
        scale = np.array([self.input[0] / (right - left), self.input[1] / (lower - upper)] * 2)
        moved: NDArray[np.float32] = (boxes - np.array([left, upper] * 2)) * scale
        return moved.astype(np.float32)

    def to_picture(self, boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return boxes of the input as boxes of the picture, cut where they leave it.

        Args:
            boxes: left, upper, right, lower, `[n,4]`.
        """
        left, upper, right, lower = self.box
        scale = np.array([(right - left) / self.input[0], (lower - upper) / self.input[1]] * 2)
        moved = boxes.astype(np.float64) * scale + np.array([left, upper] * 2)
        clipped: NDArray[np.float64] = np.clip(moved, 0, np.array(self.picture * 2))
        return clipped


def place(picture: tuple[int, int], target: tuple[int, int], policy: Policy) -> Placement:
    """Return where a picture lies in an input.

    Args:
        picture: width and height of the upright picture.
        target: width and height of the input.
        policy: as in `Resize`.
    """
    match policy:
        case "stretch":
            box = 0.0, 0.0, float(picture[0]), float(picture[1])
        case "crop":
            box = central_box(picture, target)
        case "letterbox":
            content, corner = letterboxed(picture, target)
            horizontal, vertical = picture[0] / content[0], picture[1] / content[1]
            left, upper = -corner[0] * horizontal, -corner[1] * vertical
            box = left, upper, left + target[0] * horizontal, upper + target[1] * vertical
    return Placement(picture, target, box)


def letterboxed(
    picture: tuple[float, float], target: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return width and height of a picture that just fits in an input, and its left upper corner.

    Args:
        picture: width and height of the upright picture.
        target: width and height of the input.
    """
    scale = min(target[0] / picture[0], target[1] / picture[1])
    width = min(max(round(picture[0] * scale), 1), target[0])
    height = min(max(round(picture[1] * scale), 1), target[1])
    return (width, height), ((target[0] - width) // 2, (target[1] - height) // 2)


def central_box(
    picture: tuple[float, float], target: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return the largest centred part of a picture that has an input's aspect ratio.

    Args:
        picture: width and height.
        target: width and height of the input.

    Returns:
        Left, upper, right, lower.
    """
    scale = min(picture[0] / target[0], picture[1] / target[1])
    # Rounding can make one of them a little less than 0, which Pillow does not take.
    left = max((picture[0] - target[0] * scale) / 2, 0.0)
    upper = max((picture[1] - target[1] * scale) / 2, 0.0)
    return left, upper, picture[0] - left, picture[1] - upper
