"""Pictures of detected objects: boxes, and labels that do not hide each other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from app.explore.lettering import Label, write_labels
from app.explore.palette import colour_of, ink_on
from app.explore.pictures import png
from app.images import RgbImage

LABEL_SIZE = 14
"""Of the letters in pixels."""

LEAST_SIDE = 480
"""Of a picture's longer side; a smaller one is enlarged, so that labels find room."""

_PADDING = 2
_STEPS = 12
"""How far from its box a label may stand, in heights of a label."""

Rectangle = tuple[int, int, int, int]
"""Left, upper, right, lower in pixels; right and lower are exclusive."""


@dataclass(frozen=True)
class Box:
    """An object to draw.

    Attributes:
        bbox: x, y, width and height in pixels of the picture.
        label: index of its class.
        score: 0 to 1.
    """

    bbox: tuple[float, float, float, float]
    label: int
    score: float


def draw_boxes(picture: RgbImage, boxes: Sequence[Box], classes: Sequence[str]) -> bytes:
    """Draw boxes on a picture, each with its class and score, as a PNG.

    The best objects get the best places for their labels. A label that finds no place near its box
    is left out; the box is drawn all the same.

    Args:
        picture: uint8 `[height,width,3]`.
        boxes: best first.
        classes: names by label.
    """
    scale = max(1, -(-LEAST_SIDE // max(picture.shape[:2])))
    shown = Image.fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1))
    draw = ImageDraw.Draw(shown)
    edges = [_edges(box, scale, shown.size) for box in boxes]
    for box, rectangle in reversed(list(zip(boxes, edges, strict=True))):
        _draw_box(draw, rectangle, box.label)
    names = write_labels(classes, LABEL_SIZE)
    taken: list[Rectangle] = []
    for box, rectangle in zip(boxes, edges, strict=True):
        written = Label(f"{names[box.label].text} {box.score:.0%}", names[box.label].font)
        place = find_place(_size(written), rectangle, taken, shown.size)
        if place is not None:
            taken.append(place)
            _draw_label(draw, place, written, box.label)
    return png(shown)


def draw_found(
    shown: RgbImage,
    size: tuple[int, int],
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    classes: Sequence[str],
) -> bytes:
    """Draw the n objects of a picture on it as it is shown, which may be smaller, as a PNG.

    Args:
        shown: uint8 `[height,width,3]`.
        size: width and height of the picture.
        boxes: x, y, width and height in pixels of the picture, `[n,4]`, the best first.
        labels: indices of classes, `[n]`.
        scores: 0 to 1, `[n]`.
        classes: names by label.
    """
    across, down = shown.shape[1] / size[0], shown.shape[0] / size[1]
    drawn = [
        Box((x * across, y * down, width * across, height * down), label, score)
        for (x, y, width, height), label, score in zip(
            boxes.tolist(), labels.tolist(), scores.tolist(), strict=True
        )
    ]
    return draw_boxes(shown, drawn, classes)


def find_place(
    size: tuple[int, int], box: Rectangle, taken: Sequence[Rectangle], picture: tuple[int, int]
) -> Rectangle | None:
    """Return a place for a label, in the picture and on no other label; None if there is none.

    Args:
        size: of the label, width and height.
        box: that it belongs to.
        taken: the places of other labels.
        picture: its width and height.
    """
    width, height = size
    if width > picture[0] or height > picture[1]:
        return None
    for left, upper in _corners(size, box):
        left = min(max(left, 0), picture[0] - width)
        upper = min(max(upper, 0), picture[1] - height)
        place = left, upper, left + width, upper + height
        if not any(_overlap(place, other) for other in taken):
            return place
    return None


def _corners(size: tuple[int, int], box: Rectangle) -> Iterator[tuple[int, int]]:
    """Yield left upper corners of labels: on the box, below it, in it; then ever farther away."""
    width, height = size
    left, upper, right, lower = box
    yield left, upper - height
    yield left, lower
    yield left, upper
    yield right - width, upper - height
    yield right - width, lower
    yield right, upper
    yield left - width, upper
    for step in range(1, _STEPS):
        yield left, upper - height * (step + 1)
        yield left, upper + height * step
        yield right, upper + height * step
        yield left - width, upper + height * step
        yield left, lower + height * step


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )


def _edges(box: Box, scale: int, size: tuple[int, int]) -> Rectangle:
    x, y, width, height = box.bbox
    left, upper = round(x * scale), round(y * scale)
    right, lower = round((x + width) * scale), round((y + height) * scale)
    left, upper = min(max(left, 0), size[0] - 1), min(max(upper, 0), size[1] - 1)
    return left, upper, min(max(right, left + 1), size[0]), min(max(lower, upper + 1), size[1])


def _draw_box(draw: ImageDraw.ImageDraw, rectangle: Rectangle, label: int) -> None:
    """Draw a line in the class's colour between black ones, which shows on any ground."""
    left, upper, right, lower = rectangle
    colour = colour_of(label)
    for inset, line in ((-1, (0, 0, 0)), (0, colour), (1, colour), (2, (0, 0, 0))):
        corners = left + inset, upper + inset, right - 1 - inset, lower - 1 - inset
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            draw.rectangle(corners, outline=line)


def _size(label: Label) -> tuple[int, int]:
    ascent, descent = label.font.getmetrics()
    width = int(np.ceil(label.font.getlength(label.text)))
    return width + 2 * _PADDING, ascent + descent + 2 * _PADDING


def _draw_label(draw: ImageDraw.ImageDraw, place: Rectangle, written: Label, label: int) -> None:
    left, upper, right, lower = place
    colour = colour_of(label)
    draw.rectangle((left, upper, right - 1, lower - 1), fill=colour)
    corner = left + _PADDING, upper + _PADDING
    draw.text(corner, written.text, fill=ink_on(colour), font=written.font)
