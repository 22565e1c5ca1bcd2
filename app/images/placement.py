"""How a picture of any size is laid into a model's input, and the way back.

Coordinates are in pixels from the upper left corner of the upright picture, or of the input; the
centre of the first pixel is at (0.5, 0.5).
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
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

    def reduced(self, size: tuple[int, int]) -> "Placement":
        """Return the placement of the same picture in another size, width and height."""
        across, down = size[0] / self.picture[0], size[1] / self.picture[1]
        left, upper, right, lower = self.box
        return replace(
            self, picture=size, box=(left * across, upper * down, right * across, lower * down)
        )

    @property
    def seen(self) -> tuple[int, int, int, int]:
        """The pixels of the picture whose centres lie in the input, as left, upper, right, lower.

        Right and lower are exclusive. All of the picture is seen but for the edges that a crop
        leaves out; of a picture a pixel wide, that may be all.
        """
        left, upper, right, lower = self.box
        return (
            max(math.ceil(left - 0.5), 0),
            max(math.ceil(upper - 0.5), 0),
            min(math.ceil(right - 0.5), self.picture[0]),
            min(math.ceil(lower - 0.5), self.picture[1]),
        )

    def nearest(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the values at the pixels that are `seen`, `[height,width]`.

        Args:
            values: of the input's pixels, `[H,W]`.
        """
        rows, columns = (self._sources(axis) for axis in (1, 0))
        # A column lies in one piece, because a mask's runs go down the columns. The shorter side
        # comes first: a picture of one row would else have as many rows as the input in between.
        turned: NDArray[Any] = values.T
        for axis, sources in sorted(enumerate((columns, rows)), key=lambda each: len(each[1])):
            turned = turned.take(sources, axis)
        return turned.T

    def smooth(self, values: NDArray[np.float32], first: int, after: int) -> NDArray[np.float32]:
        """Return the values at columns of the pixels that are `seen`, `[height,columns]`.

        They are interpolated linearly between the centres of the input's pixels. The margins of a
        letterbox have no part in it.

        Args:
            values: of the input's pixels, float32 `[H,W]`.
            first: the first column, counted from the first that is seen.
            after: the column after the last.
        """
        height = self.seen[3] - self.seen[1]
        if height < 1 or after <= first:
            return np.zeros((max(height, 0), max(after - first, 0)), np.float32)
        left, upper, right, lower = self._content
        turned = values[upper:lower, left:right].T
        x, x_scale = self._line(0)
        y, y_scale = self._line(1)
        # The centres of the outermost pixels may lie in the outer half of the input's.
        pads = math.ceil(x_scale / 2) + 1, math.ceil(y_scale / 2) + 1
        padded = np.pad(turned, [(pad, pad) for pad in pads], "edge")
        x, y = x - left + pads[0], y - upper + pads[1]
        box = y, x + first * x_scale, y + height * y_scale, x + after * x_scale
        image = Image.fromarray(padded)
        wide = image.resize((height, after - first), Image.Resampling.BILINEAR, box)
        return np.asarray(wide).T

    @property
    def _content(self) -> tuple[int, int, int, int]:
        """The input's pixels that show the picture: left, upper, right, lower."""
        left, upper, right, lower = (round(side) for side in self.picture_in_input)
        return max(left, 0), max(upper, 0), min(right, self.input[0]), min(lower, self.input[1])

    def _line(self, axis: int) -> tuple[float, float]:
        """Return where the first pixel that is seen begins in the input, and its length there."""
        low, high = self.box[axis], self.box[axis + 2]
        scale = self.input[axis] / (high - low)
        return (self.seen[axis] - low) * scale, scale

    def _sources(self, axis: int) -> NDArray[np.intp]:
        """Return the input's pixel at the centre of each pixel that is seen."""
        start, scale = self._line(axis)
        centres = start + (np.arange(self.seen[axis + 2] - self.seen[axis]) + 0.5) * scale
        low, high = self._content[axis], self._content[axis + 2] - 1
        sources: NDArray[np.intp] = np.floor(centres).astype(np.intp).clip(low, high)
        return sources


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
