"""Pictures of a confusion matrix, and of the test images behind one of its cells.

The matrix comes as counts. Its fractions are computed here too, as the picture shows them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from app.artifact.tensors import Images
from app.explore.lettering import Label, load_font, write_labels
from app.explore.pictures import GREY, enlarged, png, tile_grid

Normalization = Literal["true", "pred", "all"]
Counted = Literal["images", "objects", "pixels"]
"""The things that a matrix counts."""

_IMAGES_ACROSS = 6
_INK = (38, 38, 38)
_FAINT = (110, 110, 110)
_PAPER = (255, 255, 255)

# ColorBrewer's sequential "Blues": one hue, lightness falls steadily, and zero is nearly paper.
_BLUES = np.array(
    [
        (247, 251, 255),
        (222, 235, 247),
        (198, 219, 239),
        (158, 202, 225),
        (107, 174, 214),
        (66, 146, 198),
        (33, 113, 181),
        (8, 81, 156),
        (8, 48, 107),
    ],
    dtype=np.float64,
)


def normalized(counts: NDArray[np.int64], normalize: Normalization | None) -> NDArray[np.float64]:
    """Return a confusion matrix as fractions, as scikit-learn's `confusion_matrix` defines them.

    Args:
        counts: `[C,C]`, rows true, columns predicted.
        normalize: "true" divides each row by its sum (the diagonal is recall), "pred" each column
            (the diagonal is precision), "all" everything by the total. None leaves the counts.

    Returns:
        float64 `[C,C]`. Rows, columns or a matrix without any image stay zero.
    """
    axes: dict[Normalization | None, tuple[int, ...]] = {"true": (1,), "pred": (0,), "all": (0, 1)}
    values = counts.astype(np.float64)
    if normalize is None:
        return values
    totals = values.sum(axis=axes[normalize], keepdims=True)
    fractions = np.zeros_like(values)
    np.divide(values, totals, out=fractions, where=totals > 0)
    return fractions


def draw_matrix(
    counts: NDArray[np.int64],
    labels: Sequence[str],
    normalize: Normalization | None,
    *,
    counted: Counted = "images",
) -> bytes:
    """Draw a confusion matrix as a heat map with its numbers in the cells.

    Args:
        counts: `[C,C]`, rows true, columns predicted.
        labels: the C class names, in the order of the rows.
        normalize: as for `normalized`. A cell's colour follows the square root of its count,
            relative to the largest count, or of its fraction, so that rare mistakes are visible.
        counted: the things counted. With objects and their boxes, the last label is background.

    Returns:
        A PNG with accuracy and number of things in its title. Fractions are in percent; cells
        without any are blank.

    Raises:
        ValueError: `counts` is not square or does not have a row for each label.
    """
    size = len(labels)
    if size == 0 or counts.shape != (size, size):
        raise ValueError(f"counts have shape {counts.shape} for {size} labels")
    values = normalized(counts, normalize)
    top = max(values.max(), 1.0) if normalize is None else 1.0
    texts = [[_cell_text(value, normalize) for value in row] for row in values]
    names = write_labels(labels, 20 if size <= 20 else 14)
    geometry = _measure(names, texts)
    picture = Image.new("RGB", (geometry.width, geometry.height), _PAPER)
    draw = ImageDraw.Draw(picture)
    title = _title_of_objects(counts) if counted == "objects" else _title(counts, counted)
    _draw_title(draw, geometry, title, normalize, counted)
    _draw_cells(draw, geometry, np.sqrt(values / top), texts)
    _draw_labels(picture, draw, geometry, names)
    return png(picture)


def contact_sheet(images: Images, scale: int) -> bytes:
    """Draw the images of a cell, six in a row, as a PNG; an empty cell is a small grey square.

    Args:
        images: uint8 `[N,H,W,3]`.
        scale: side in pixels of the square that is drawn for each pixel.
    """
    if not len(images):
        images = np.full((1, 8, 8, 3), GREY, np.uint8)
    return enlarged(tile_grid(images, _IMAGES_ACROSS), scale)


@dataclass(frozen=True)
class _Geometry:
    """Where the parts of the picture are, in pixels, and the fonts of its numbers and title."""

    cell: int
    left: int
    top: int
    width: int
    height: int
    rotated: bool
    numbers: ImageFont.FreeTypeFont
    title: ImageFont.FreeTypeFont


def _measure(names: Sequence[Label], texts: list[list[str]]) -> _Geometry:
    """Fit cells to the longest number. Names that are wider than a cell run upwards."""
    size = len(names)
    numbers = load_font(20 if size <= 20 else 11)
    longest = max(numbers.getlength(text) for row in texts for text in row)
    cell = round(max(longest + (20 if size <= 20 else 8), 64 if size <= 20 else 26, 440 / size))
    longest_name = round(max(name.font.getlength(name.text) for name in names))
    rotated = longest_name > cell - 8
    edge = longest_name + 14
    below = (edge if rotated else 40) + 48
    left, top = edge + 52, 84
    side = cell * size
    width, height = left + side + 28, top + side + below
    return _Geometry(cell, left, top, width, height, rotated, numbers, load_font(26))


def _cell_text(value: float, normalize: Normalization | None) -> str:
    if value == 0:
        return ""
    if normalize is None:
        return str(int(value))
    percent = 100 * value
    return "<0.1" if percent < 0.05 else f"{percent:.1f}"


def _draw_title(
    draw: ImageDraw.ImageDraw,
    geometry: _Geometry,
    title: tuple[str, str],
    normalize: Normalization | None,
    counted: str,
) -> None:
    units = {
        None: counted,
        "true": "percent of each true class",
        "pred": "percent of each predicted class",
        "all": f"percent of all {counted}",
    }
    draw.text((geometry.left, 32), title[0], _INK, geometry.title, anchor="lm")
    line = f"{title[1]}; cells show {units[normalize]}"
    draw.text((geometry.left, 62), line, _FAINT, load_font(15), anchor="lm")


def _title(counts: NDArray[np.int64], counted: Counted) -> tuple[str, str]:
    total, right = int(counts.sum()), int(counts.trace())
    accuracy = f"accuracy {right / total:.2%}" if total else f"no {counted}"
    return accuracy, f"{right:,} of {total:,} {counted} right"


def _title_of_objects(counts: NDArray[np.int64]) -> tuple[str, str]:
    objects, right = int(counts[:-1].sum()), int(counts.trace())
    found = f"{right / objects:.1%} of the objects found" if objects else "no objects"
    return found, f"{right:,} of {objects:,} found, {int(counts[-1].sum()):,} boxes beside them"


def _draw_cells(
    draw: ImageDraw.ImageDraw,
    geometry: _Geometry,
    shades: NDArray[np.float64],
    texts: list[list[str]],
) -> None:
    colours = _blues(shades)
    # The luminance of Rec. 709 decides between light and dark ink.
    dark = colours @ np.array([0.2126, 0.7152, 0.0722]) < 140
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            left, top = geometry.left + column * geometry.cell, geometry.top + row * geometry.cell
            red, green, blue = (int(value) for value in colours[row, column])
            box = (left, top, left + geometry.cell - 2, top + geometry.cell - 2)
            draw.rectangle(box, (red, green, blue))
            middle = (left + geometry.cell / 2 - 1, top + geometry.cell / 2 - 1)
            ink = _PAPER if dark[row, column] else _INK
            draw.text(middle, text, ink, geometry.numbers, anchor="mm")


def _blues(shades: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Map shades from 0 to 1 to colours: uint8 `[...,3]`."""
    stops = np.linspace(0, 1, len(_BLUES))
    bands = [np.interp(shades, stops, _BLUES[:, band]) for band in range(3)]
    return np.rint(np.stack(bands, axis=-1)).astype(np.uint8)


def _draw_labels(
    picture: Image.Image, draw: ImageDraw.ImageDraw, geometry: _Geometry, names: Sequence[Label]
) -> None:
    side = geometry.cell * len(names)
    baseline = geometry.top + side + 10 + max(name.font.getmetrics()[0] for name in names)
    for index, name in enumerate(names):
        middle = (index + 0.5) * geometry.cell - 1
        place = (geometry.left - 10, geometry.top + middle)
        draw.text(place, name.text, _INK, name.font, anchor="rm")
        if geometry.rotated:
            below = (geometry.left + middle, geometry.top + side + 10)
            _draw_upright(picture, below, name)
        else:
            draw.text((geometry.left + middle, baseline), name.text, _INK, name.font, anchor="ms")
    axis = load_font(20)
    draw.text(
        (geometry.left + side / 2, geometry.height - 22), "predicted", _FAINT, axis, anchor="mm"
    )
    _draw_upright(picture, (24, geometry.top + side / 2), Label("true", axis), _FAINT, centred=True)


def _draw_upright(
    picture: Image.Image,
    place: tuple[float, float],
    label: Label,
    ink: tuple[int, int, int] = _INK,
    *,
    centred: bool = False,
) -> None:
    """Write upwards. The text is centred on `place` horizontally, and ends there or is centred."""
    ascent, descent = label.font.getmetrics()
    mask = Image.new("L", (round(label.font.getlength(label.text)) + 2, ascent + descent))
    ImageDraw.Draw(mask).text((1, 0), label.text, 255, label.font)
    mask = mask.transpose(Image.Transpose.ROTATE_90)
    left = round(place[0] - mask.width / 2)
    top = round(place[1] - mask.height / 2) if centred else round(place[1])
    picture.paste(ink, (left, top), mask)
