"""Pictures of scenes, moved and coloured at random, with their boxes and masks moved alike.

All random numbers come from one generator. Nothing here knows of networks or of files.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

LEAST_VISIBLE = 0.3
"""Of an object's box; one of which less is left is no longer learned."""

LEAST_SIDE = 2.0
"""Of a box in pixels; a smaller one is no longer learned."""


@dataclass(frozen=True)
class SceneAugmentation:
    """How scenes are varied; everything is off by default.

    Attributes:
        mirror: left to right, each with probability one half.
        turn: by 0, 90, 180 or 270 degrees; for pictures without an upper side.
        scale: smallest and largest size, of the picture's own; a larger one is cropped.
        mosaic: the part of the pictures that are made of four (Bochkovskiy et al. 2020).
        colour: brightness, contrast and saturation change by up to this part.
        fill: the colour around a picture that is smaller.
    """

    mirror: bool = False
    turn: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    mosaic: float = 0.0
    colour: float = 0.0
    fill: int = 128


@dataclass(frozen=True)
class Move:
    """Where one picture goes on a canvas: mirrored, then turned, resized, and put there.

    Attributes:
        mirrored: left to right.
        turns: of 90 degrees, against the clock.
        size: height and width after all that.
        upper: of the picture on the canvas; may be negative.
        left: likewise.
    """

    mirrored: bool
    turns: int
    size: tuple[int, int]
    upper: int
    left: int

    def image(self, image: Tensor) -> Tensor:
        """Return the picture, uint8 `[3,h,w]`, of the size."""
        image = self._oriented(image)
        if image.shape[1:] == self.size:
            return image
        return F.interpolate(
            image[None], self.size, mode="bilinear", align_corners=False, antialias=True
        )[0]

    def map(self, values: Tensor) -> Tensor:
        """Return a map of whole numbers, int `[h,w]`, of the size."""
        values = self._oriented(values)
        if values.shape == self.size:
            return values
        resized = F.interpolate(values[None, None].float(), self.size, mode="nearest-exact")
        return resized[0, 0].to(values.dtype)

    def boxes(self, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
        """Return boxes `[M,4]` of a picture of a shape as boxes on the canvas, also outside it."""
        height, width = shape
        x1, y1, x2, y2 = boxes.unbind(1)
        if self.mirrored:
            x1, x2 = width - x2, width - x1
        for _ in range(self.turns):
            x1, y1, x2, y2 = y1, width - x2, y2, width - x1
            height, width = width, height
        down, right = self.size[0] / height, self.size[1] / width
        x1, x2 = (x * right + self.left for x in (x1, x2))
        y1, y2 = (y * down + self.upper for y in (y1, y2))
        return torch.stack((x1, y1, x2, y2), 1)

    def _oriented(self, values: Tensor) -> Tensor:
        if self.mirrored:
            values = values.flip(-1)
        return values.rot90(self.turns, (-2, -1)) if self.turns else values


@dataclass(frozen=True)
class Window:
    """The part of a canvas that one picture may cover: upper, lower, left, right."""

    upper: int
    lower: int
    left: int
    right: int

    def clip(self, boxes: Tensor) -> Tensor:
        """Cut boxes `[M,4]` at the window."""
        low = torch.tensor([self.left, self.upper] * 2)
        high = torch.tensor([self.right, self.lower] * 2)
        return torch.minimum(torch.maximum(boxes, low), high)


def draw_moves(
    augmentation: SceneAugmentation, shape: tuple[int, int], generator: torch.Generator
) -> list[tuple[Move, Window]]:
    """Return one move, or four for a mosaic, each with the part of the canvas that it covers."""
    height, width = shape

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def whole(low: int, high: int) -> int:
        low, high = min(low, high), max(low, high)
        return int(torch.randint(low, high + 1, (), generator=generator))

    def oriented(scale: float) -> tuple[bool, int, tuple[int, int]]:
        mirrored = augmentation.mirror and uniform(0, 1) < 0.5
        turns = whole(0, 3) if augmentation.turn else 0
        sides = (width, height) if turns % 2 else (height, width)
        return mirrored, turns, (max(round(sides[0] * scale), 1), max(round(sides[1] * scale), 1))

    if uniform(0, 1) >= augmentation.mosaic:
        mirrored, turns, size = oriented(uniform(*augmentation.scale))
        upper, left = whole(0, height - size[0]), whole(0, width - size[1])
        window = Window(max(upper, 0), min(upper + size[0], height), max(left, 0), width)
        window = Window(window.upper, window.lower, window.left, min(left + size[1], width))
        return [(Move(mirrored, turns, size, upper, left), window)]
    row, column = whole(height // 4, 3 * height // 4), whole(width // 4, 3 * width // 4)
    moves = []
    for window in (
        Window(0, row, 0, column),
        Window(0, row, column, width),
        Window(row, height, 0, column),
        Window(row, height, column, width),
    ):
        mirrored, turns, size = oriented(uniform(*augmentation.scale) * 0.75)
        upper = row - size[0] if window.lower == row else row
        left = column - size[1] if window.right == column else column
        covered = Window(
            max(window.upper, upper),
            min(window.lower, upper + size[0]),
            max(window.left, left),
            min(window.right, left + size[1]),
        )
        moves.append((Move(mirrored, turns, size, upper, left), covered))
    return moves


def paste(canvas: Tensor, part: Tensor, move: Move, window: Window) -> None:
    """Write the part of a moved picture or map, `[...,h,w]`, that a window shows to a canvas."""
    rows = slice(window.upper - move.upper, window.lower - move.upper)
    columns = slice(window.left - move.left, window.right - move.left)
    canvas[..., window.upper : window.lower, window.left : window.right] = part[..., rows, columns]


def move_boxes(
    boxes: Tensor, labels: Tensor, move: Move, window: Window, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the boxes `[m,4]` and labels `[m]` of the objects that a window still shows."""
    moved = move.boxes(boxes, shape)
    clipped = window.clip(moved)
    whole, left = ((each[:, 2:] - each[:, :2]).clamp_min(0) for each in (moved, clipped))
    visible = left.prod(1) >= LEAST_VISIBLE * whole.prod(1).clamp_min(1e-9)
    kept = (visible & (left >= LEAST_SIDE).all(1)) | (labels < 0)
    return clipped[kept], labels[kept]


def recolour(image: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation; uint8 `[3,h,w]` to uint8."""
    if not most:
        return image
    brightness, contrast, saturation = (
        1 + most * (2 * torch.rand(3, generator=generator) - 1)
    ).tolist()
    values = image.float() * brightness
    mean = values.mean()
    values = mean + contrast * (values - mean)
    grey = values.mean(0, keepdim=True)
    values = grey + saturation * (values - grey)
    varied: Tensor = values.round().clamp(0, 255).to(torch.uint8)
    return varied
