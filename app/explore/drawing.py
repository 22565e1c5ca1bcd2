"""Pictures of filters and confusion matrices as PNG bytes, drawn with Pillow and NumPy alone.

Shared by the service and by export. This module knows nothing of HTTP, models or files, and
computes no metric beyond what it writes into a picture.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Normalization = Literal["true", "pred", "all"]

MAX_LABEL = 24
"""Characters of a class name that are written out."""

_BACKGROUND = (128, 128, 128)
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


def filter_grid(weights: NDArray[np.float32], scale: int, columns: int) -> bytes:
    """Draw every filter of a convolution, row by row, on neutral grey.

    Args:
        weights: float32 `[out,in,kh,kw]`.
        scale: pixels of the picture for one weight, also the gap between filters.
        columns: filters in a row; fewer filters than that make a narrower picture.

    Returns:
        A PNG. Three input channels are drawn as red, green and blue; any other number as the grey
        mean of the absolute weights over the input channels, which shows where a filter looks and
        not what it looks for. Each filter is scaled from its own smallest to its own largest
        value, all channels together: colours compare within a filter, not between filters, and
        the grey level of a zero weight differs from filter to filter. A filter of one value
        throughout is mid-grey.

    Raises:
        ValueError: no filters, or `scale` or `columns` below one.
    """
    if weights.ndim != 4 or 0 in weights.shape:
        raise ValueError(f"weights have shape {weights.shape}; expected [out,in,kh,kw]")
    if scale < 1 or columns < 1:
        raise ValueError(f"scale is {scale} and columns is {columns}; both are at least 1")
    return png(enlarge(tile_grid(filter_tiles(weights), columns), scale))


def tile_grid(tiles: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Lay pictures out row by row on neutral grey, a pixel apart.

    Args:
        tiles: uint8 `[n,height,width,3]`.
        columns: pictures in a row; fewer pictures than that make a narrower grid.
    """
    count, height, width, _ = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = np.empty((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), np.uint8)
    grid[:] = _BACKGROUND
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        top, left = row * (height + 1) + 1, column * (width + 1) + 1
        grid[top : top + height, left : left + width] = tile
    return grid


def single_filter(weights: NDArray[np.float32], index: int, scale: int) -> bytes:
    """Draw one filter of a convolution as `filter_grid` does, without a margin.

    Args:
        weights: float32 `[out,in,kh,kw]`.
        index: which filter, from 0.
        scale: pixels of the picture for one weight.

    Raises:
        IndexError: there is no such filter.
        ValueError: `scale` is below one.
    """
    if not 0 <= index < len(weights):
        raise IndexError(f"filter {index} does not exist; there are {len(weights)}")
    if scale < 1:
        raise ValueError(f"scale is {scale}; it is at least 1")
    return png(enlarge(filter_tiles(weights[index : index + 1])[0], scale))


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


def confusion_matrix(
    counts: NDArray[np.int64], labels: Sequence[str], normalize: Normalization | None
) -> bytes:
    """Draw a confusion matrix as a heat map with its numbers in the cells.

    Args:
        counts: `[C,C]`, rows true, columns predicted.
        labels: the C class names, in the order of the rows.
        normalize: as for `normalized`. Colours follow the square root of the count's part of
            the largest count, or of the fraction, so that rare mistakes can be seen at all.

    Returns:
        A PNG with accuracy and the number of images in its title. Fractions are given in percent;
        cells without any image are blank.

    Raises:
        ValueError: `counts` is not square or does not have a row for each label.
    """
    size = len(labels)
    labels = [_shortened(label) for label in labels]
    if size == 0 or counts.shape != (size, size):
        raise ValueError(f"counts have shape {counts.shape} for {size} labels")
    values = normalized(counts, normalize)
    top = max(values.max(), 1.0) if normalize is None else 1.0
    texts = [[_cell_text(value, normalize) for value in row] for row in values]
    layout = _layout(labels, texts)
    picture = Image.new("RGB", (layout.width, layout.height), _PAPER)
    draw = ImageDraw.Draw(picture)
    _draw_title(draw, layout, counts, normalize)
    _draw_cells(draw, layout, np.sqrt(values / top), texts)
    _draw_labels(picture, draw, layout, labels)
    return png(picture)


def filter_tiles(weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a picture of each filter, uint8 `[out,kh,kw,3]`, as `filter_grid` describes it."""
    if weights.shape[1] == 3:
        tiles = weights.transpose(0, 2, 3, 1).astype(np.float64)
    else:
        grey = np.abs(weights.astype(np.float64)).mean(axis=1)
        tiles = np.repeat(grey[..., np.newaxis], 3, axis=3)
    low = tiles.min(axis=(1, 2, 3), keepdims=True)
    spread = tiles.max(axis=(1, 2, 3), keepdims=True) - low
    unit = np.full_like(tiles, 0.5)
    np.divide(tiles - low, spread, out=unit, where=spread > 0)
    levels: NDArray[np.uint8] = np.rint(unit * 255).astype(np.uint8)
    return levels


def enlarge(pixels: NDArray[np.uint8], scale: int) -> Image.Image:
    """Return a picture of uint8 `[height,width,3]` with squares of `scale` pixels for each."""
    return Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1))


def data_url(pixels: NDArray[np.uint8]) -> str:
    """Return a picture uint8 `[height,width,3]` as a PNG within a URL."""
    return "data:image/png;base64," + base64.b64encode(png(Image.fromarray(pixels))).decode()


def png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class _Layout:
    """Where the parts of a confusion matrix are, in pixels."""

    cell: int
    left: int
    top: int
    width: int
    height: int
    rotated: bool
    names: ImageFont.FreeTypeFont
    numbers: ImageFont.FreeTypeFont
    title: ImageFont.FreeTypeFont


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's embedded font, so that a picture is the same on every machine."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError("Pillow was built without FreeType")
    return font


def _layout(labels: Sequence[str], texts: list[list[str]]) -> _Layout:
    """Cells hold their longest number; names that are wider than a cell are turned upright."""
    size = len(labels)
    names = _font(20 if size <= 20 else 14)
    numbers = _font(20 if size <= 20 else 11)
    longest = max(numbers.getlength(text) for row in texts for text in row)
    cell = round(max(longest + (20 if size <= 20 else 8), 64 if size <= 20 else 26, 440 / size))
    longest_name = round(max(names.getlength(label) for label in labels))
    rotated = longest_name > cell - 8
    edge = longest_name + 14
    below = (edge if rotated else 40) + 48
    left, top = edge + 52, 84
    side = cell * size
    width, height = left + side + 28, top + side + below
    return _Layout(cell, left, top, width, height, rotated, names, numbers, _font(26))


def _shortened(label: str) -> str:
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"


def _cell_text(value: float, normalize: Normalization | None) -> str:
    if value == 0:
        return ""
    if normalize is None:
        return str(int(value))
    percent = 100 * value
    return "<0.1" if percent < 0.05 else f"{percent:.1f}"


def _draw_title(
    draw: ImageDraw.ImageDraw,
    layout: _Layout,
    counts: NDArray[np.int64],
    normalize: Normalization | None,
) -> None:
    total, right = int(counts.sum()), int(counts.trace())
    title = f"accuracy {right / total:.2%}" if total else "no images"
    units = {
        None: "images",
        "true": "percent of each true class",
        "pred": "percent of each predicted class",
        "all": "percent of all images",
    }
    draw.text((layout.left, 32), title, _INK, layout.title, anchor="lm")
    line = f"{right:,} of {total:,} images right; cells show {units[normalize]}"
    draw.text((layout.left, 62), line, _FAINT, _font(15), anchor="lm")


def _draw_cells(
    draw: ImageDraw.ImageDraw,
    layout: _Layout,
    shades: NDArray[np.float64],
    texts: list[list[str]],
) -> None:
    colours = _blues(shades)
    # The luminance of Rec. 709 decides which ink stands out.
    dark = colours @ np.array([0.2126, 0.7152, 0.0722]) < 140
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            left, top = layout.left + column * layout.cell, layout.top + row * layout.cell
            red, green, blue = (int(value) for value in colours[row, column])
            box = (left, top, left + layout.cell - 2, top + layout.cell - 2)
            draw.rectangle(box, (red, green, blue))
            middle = (left + layout.cell / 2 - 1, top + layout.cell / 2 - 1)
            ink = _PAPER if dark[row, column] else _INK
            draw.text(middle, text, ink, layout.numbers, anchor="mm")


def _blues(shades: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Map shades from 0 to 1 to colours: uint8 `[...,3]`."""
    stops = np.linspace(0, 1, len(_BLUES))
    bands = [np.interp(shades, stops, _BLUES[:, band]) for band in range(3)]
    return np.rint(np.stack(bands, axis=-1)).astype(np.uint8)


def _draw_labels(
    picture: Image.Image, draw: ImageDraw.ImageDraw, layout: _Layout, labels: Sequence[str]
) -> None:
    side = layout.cell * len(labels)
    for index, label in enumerate(labels):
        middle = (index + 0.5) * layout.cell - 1
        place = (layout.left - 10, layout.top + middle)
        draw.text(place, label, _INK, layout.names, anchor="rm")
        below = (layout.left + middle, layout.top + side + 10)
        if layout.rotated:
            _draw_upright(picture, below, label, layout.names)
        else:
            draw.text(below, label, _INK, layout.names, anchor="ma")
    axis = _font(20)
    draw.text((layout.left + side / 2, layout.height - 22), "predicted", _FAINT, axis, anchor="mm")
    _draw_upright(picture, (24, layout.top + side / 2), "true", axis, _FAINT, centred=True)


def _draw_upright(
    picture: Image.Image,
    place: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont,
    ink: tuple[int, int, int] = _INK,
    *,
    centred: bool = False,
) -> None:
    """Write from bottom to top, centred across `place` and ending, or centred, at it."""
    ascent, descent = font.getmetrics()
    mask = Image.new("L", (round(font.getlength(text)) + 2, ascent + descent))
    ImageDraw.Draw(mask).text((1, 0), text, 255, font)
    mask = mask.transpose(Image.Transpose.ROTATE_90)
    left = round(place[0] - mask.width / 2)
    top = round(place[1] - mask.height / 2) if centred else round(place[1])
    picture.paste(ink, (left, top), mask)
