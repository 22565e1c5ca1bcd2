"""A picture of precision against recall, a line for each class."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from app.explore.lettering import load_font, write_labels
from app.explore.palette import Colour, colour_of
from app.explore.pictures import png

_PLOT = 480
_LEFT, _TOP, _BELOW = 76, 24, 64
_LEGEND = 300
_INK, _FAINT, _PAPER = (38, 38, 38), (200, 200, 200), (255, 255, 255)
_LETTERS = 16


@dataclass(frozen=True)
class Line:
    """The curve of one class.

    Attributes:
        name: of the class.
        precision: at recalls from 0 to 1, at equal distances.
        average: the average precision.
    """

    name: str
    precision: Sequence[float]
    average: float


def draw_curves(lines: Sequence[Line]) -> bytes:
    """Draw precision against recall as a PNG, with a legend of the averages."""
    height = max(_TOP + _PLOT + _BELOW, _TOP + 28 * (len(lines) + 1))
    picture = Image.new("RGB", (_LEFT + _PLOT + _LEGEND, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    _draw_axes(draw)
    names = write_labels([line.name for line in lines], _LETTERS)
    for index, (line, name) in enumerate(zip(lines, names, strict=True)):
        colour = colour_of(index)
        points = [
            _place(step / (len(line.precision) - 1), value)
            for step, value in enumerate(line.precision)
        ]
        draw.line(points, colour, width=3, joint="curve")
        _draw_legend(draw, index, colour, f"{name.text}  {line.average:.3f}", name.font)
    return png(picture)


def _place(recall: float, precision: float) -> tuple[float, float]:
    return _LEFT + recall * _PLOT, _TOP + (1 - precision) * _PLOT


def _draw_axes(draw: ImageDraw.ImageDraw) -> None:
    font = load_font(_LETTERS)
    for tick in range(0, 11, 2):
        part = tick / 10
        draw.line((_place(part, 0), _place(part, 1)), _FAINT)
        draw.line((_place(0, part), _place(1, part)), _FAINT)
        x, y = _place(part, 0)
        draw.text((x, y + 8), f"{part:g}", _INK, font, anchor="ma")
        x, y = _place(0, part)
        draw.text((x - 8, y), f"{part:g}", _INK, font, anchor="rm")
    draw.text((_LEFT + _PLOT / 2, _TOP + _PLOT + 34), "recall", _INK, font, anchor="ma")
    draw.text((_LEFT, 2), "precision", _INK, font)


def _draw_legend(
    draw: ImageDraw.ImageDraw, index: int, colour: Colour, text: str, font: object
) -> None:
    left, middle = _LEFT + _PLOT + 24, _TOP + 28 * (index + 1)
    draw.line((left, middle, left + 28, middle), colour, width=4)
    draw.text((left + 38, middle), text, _INK, font, anchor="lm")  # type: ignore[arg-type]
