"""A picture of a figure for each class, as bars."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from app.explore.lettering import load_font, write_labels
from app.explore.palette import colour_of
from app.explore.pictures import png

_PLOT, _BAR, _STEP = 480, 22, 34
_TOP, _BELOW, _EDGE = 34, 44, 20
_INK, _FAINT, _PAPER = (38, 38, 38), (200, 200, 200), (255, 255, 255)
_LETTERS = 16


def draw_bars(title: str, names: Sequence[str], values: Sequence[float]) -> bytes:
    """Draw values from 0 to 1, one below the other, as a PNG.

    Args:
        title: the name of the figure.
        names: of the classes.
        values: of the figure.
    """
    font = load_font(_LETTERS)
    written = write_labels(names, _LETTERS)
    left = 2 * _EDGE + round(max(name.font.getlength(name.text) for name in written))
    bottom = _TOP + _STEP * len(names)
    picture = Image.new("RGB", (left + _PLOT + 4 * _EDGE, bottom + _BELOW), _PAPER)
    draw = ImageDraw.Draw(picture)
    for tick in range(0, 11, 2):
        x = left + _PLOT * tick / 10
        draw.line((x, _TOP, x, bottom), _FAINT)
        draw.text((x, bottom + 8), f"{tick / 10:g}", _INK, font, anchor="ma")
    draw.text((left, 6), title, _INK, font)
    for index, (name, value) in enumerate(zip(written, values, strict=True)):
        middle = _TOP + _STEP * (index + 0.5)
        right = left + round(_PLOT * value)
        bar = left, middle - _BAR / 2, max(right, left), middle + _BAR / 2
        draw.rectangle(bar, fill=colour_of(index))
        draw.text((left - 10, middle), name.text, _INK, name.font, anchor="rm")
        draw.text((right + 8, middle), f"{value:.3f}", _INK, font, anchor="lm")
    return png(picture)
