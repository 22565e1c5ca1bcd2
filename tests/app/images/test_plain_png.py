"""The short way of a small PNG gives what Pillow's reader gives, or leaves the file to it."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from app.errors import DamagedImage
from app.images.decode import decode
from app.images.plain_png import MAX_BYTES, PlainPng

MODES = ("L", "RGB")


def encoded(image: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def noise(mode: str, width: int, height: int) -> Image.Image:
    """A picture for which an encoder chooses several filters."""
    channels = len(mode)
    rng = np.random.default_rng([width, height, channels])
    slope = np.linspace(0, 200, width)[np.newaxis, :, np.newaxis]
    samples = (slope + rng.integers(0, 55, (height, width, channels))).astype(np.uint8)
    return Image.merge(mode, [Image.fromarray(band) for band in np.moveaxis(samples, 2, 0)])


def outcome(data: bytes) -> object:
    """What Pillow's reader makes of a file: mode, size and samples, or None for an error."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return image.mode, image.size, image.tobytes()
    except (OSError, SyntaxError, ValueError):
        return None


def short_outcome(data: bytes) -> object:
    """The same of the short way; the reader's for a file that is left to it."""
    png = PlainPng.find(data)
    if png is None:
        return outcome(data)
    try:
        image = png.decode()
    except ValueError:
        return None
    return image.mode, image.size, image.tobytes()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (32, 32), (3, 97), (256, 256)])
def test_usual_file_gives_the_pixels_of_pillows_reader(mode: str, size: tuple[int, int]) -> None:
    image = noise(mode, *size)
    for level in (0, 1, 9):
        data = encoded(image, compress_level=level)
        if len(data) <= MAX_BYTES:
            assert PlainPng.find(data) is not None
        assert short_outcome(data) == (mode, size, image.tobytes()) == outcome(data)


def test_every_filter_is_undone() -> None:
    pixels = np.asarray(noise("RGB", 20, 5))
    rows = []
    for number, row in enumerate(pixels.astype(int)):
        above = pixels[number - 1].astype(int) if number else np.zeros_like(row)
        left = np.vstack([np.zeros((1, 3), int), row[:-1]])
        corner = np.vstack([np.zeros((1, 3), int), above[:-1]])
        guess = left + above - corner
        distances = np.abs(guess - np.stack([left, above, corner]))
        paeth = np.choose(distances.argmin(0), [left, above, corner])
        predicted = [np.zeros_like(row), left, above, (left + above) // 2, paeth][number]
        rows.append(bytes([number]) + ((row - predicted) % 256).astype(np.uint8).tobytes())
    data = file_of(20, 5, b"".join(rows))
    assert short_outcome(data) == ("RGB", (20, 5), pixels.tobytes()) == outcome(data)


def file_of(width: int, height: int, rows: bytes, *methods: int, parts: int = 1) -> bytes:
    """A file of 8-bit RGB; `methods` of compression, filters and interlacing, 0 unless given."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, *(methods or (0, 0, 0)))
    pixels = zlib.compress(rows)
    step = -(-len(pixels) // parts)
    idats = [b"IDAT" + pixels[at : at + step] for at in range(0, len(pixels), step)]
    pieces = [head, *idats, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(piece) - 4) + piece + struct.pack(">I", zlib.crc32(piece))
        for piece in pieces
    )


def test_pixels_that_do_not_match_their_checksum_are_refused() -> None:
    data = encoded(noise("RGB", 32, 32))
    changed = data[:-13] + bytes([data[-13] ^ 1]) + data[-12:]
    assert PlainPng.find(data) is not None
    with pytest.raises(DamagedImage, match="a chunk of pixels does not match its checksum"):
        decode(changed, (32, 32), 10_000)


def other_shapes() -> Iterator[bytes]:
    grey = noise("L", 32, 32)
    yield encoded(grey.convert("P"))
    yield encoded(grey.convert("1"))
    yield encoded(Image.fromarray(np.zeros((32, 32), np.uint16)))
    yield encoded(grey, transparency=7)
    yield encoded(grey) + b"more"
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    grey.save(buffer, "PNG", exif=exif)
    yield buffer.getvalue()
    yield encoded(noise("LA", 32, 32))
    yield encoded(noise("RGBA", 32, 32))
    yield encoded(noise("RGB", 150, 150), compress_level=0)


@pytest.mark.parametrize("data", list(other_shapes()))
def test_file_of_another_shape_is_left_to_the_reader(data: bytes) -> None:
    assert outcome(data) is not None
    assert PlainPng.find(data) is None


def test_interlaced_file_is_left_to_the_reader() -> None:
    pixels = np.asarray(noise("RGB", 8, 8))
    steps = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2)]
    steps.append((1, 2, 0, 1))  # row, its step, column, its step of Adam7's passes
    passes = [pixels[top::down, left::right] for top, down, left, right in steps]
    rows = b"".join(b"\0" + row.tobytes() for each in passes for row in each)
    data = file_of(8, 8, rows, 0, 0, 1)
    assert PlainPng.find(data) is None
    assert outcome(data) == ("RGB", (8, 8), pixels.tobytes())


@pytest.mark.parametrize("methods", [(1, 0, 0), (0, 1, 0), (0, 64, 0), (0, 0, 2)])
def test_unknown_methods_are_left_to_the_reader(methods: tuple[int, int, int]) -> None:
    assert PlainPng.find(file_of(4, 4, bytes(13 * 4), *methods)) is None


def test_pixels_in_several_chunks_are_left_to_the_reader() -> None:
    data = file_of(20, 20, bytes(61 * 20), parts=2)
    assert PlainPng.find(data) is None
    assert outcome(data) == ("RGB", (20, 20), bytes(1200))


@pytest.mark.parametrize("mode", MODES)
def test_damaged_files_are_left_to_the_reader(mode: str) -> None:
    sound = encoded(noise(mode, 7, 5))
    damaged = [sound[:end] for end in range(8, len(sound))]
    for position in range(8, len(sound)):
        for flipped in (1, 0x80, 0xFF):
            changed = bytearray(sound)
            changed[position] ^= flipped
            damaged.append(bytes(changed))
    assert PlainPng.find(sound) is not None
    for data in damaged:
        assert PlainPng.find(data) is None, data


def test_too_few_and_too_many_rows_are_judged_as_by_the_reader() -> None:
    row = bytes(1 + 3 * 4)
    for rows in (0, 1, 3, 4, 5, 9):
        data = file_of(4, 4, row * rows)
        assert PlainPng.find(data) is not None
        assert short_outcome(data) == outcome(data), rows
