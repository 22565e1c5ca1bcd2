"""BMPs of every kind, made here: those that are read have their pixels, all others a name."""

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import UnsupportedImage
from app.images.decode import decode

HEIGHT, WIDTH = SIZE = (6, 13)
LIMIT = 10_000
CORE, INFO, OS2 = 12, 40, 64
HEADERS = (CORE, INFO, 52, 56, OS2, 108, 124)

Rows = Sequence[bytes]
Colours = NDArray[np.float64]


def bmp(
    header: int,
    bits: int,
    rows: Rows,
    *,
    compression: int = 0,
    masks: Sequence[int] = (),
    palette: Sequence[tuple[int, int, int]] = (),
    top_down: bool = False,
) -> bytes:
    """Return a file of rows from the top."""
    padded = [row + bytes(-len(row) % 4) for row in (rows if top_down else rows[::-1])]
    pixels = b"".join(padded)
    if header == CORE:
        head = struct.pack("<IHHHH", CORE, WIDTH, HEIGHT, 1, bits)
    else:
        height = -HEIGHT if top_down else HEIGHT
        numbers = header, WIDTH, height, 1, bits, compression, len(pixels), 0, 0, len(palette), 0
        head = struct.pack("<IiiHHIIiiII", *numbers)
        fields = struct.pack(f"<{len(masks)}I", *masks)
        # Behind the oldest header, the masks are a part of their own.
        head = head + fields if header == INFO else (head + fields).ljust(header, b"\0")
    filler = b"" if header == CORE else b"\0"
    colours = b"".join(bytes(colour[::-1]) + filler for colour in palette)
    offset = 14 + len(head) + len(colours)
    start = b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset)
    return start + head + colours + pixels


def bit_fields(bits: int, masks: Sequence[int]) -> tuple[Rows, Colours]:
    """Return rows of random samples, and what they mean over white."""
    rng = np.random.default_rng(5)
    pixels = np.zeros((HEIGHT, WIDTH), np.uint64)
    rgba = np.full((HEIGHT, WIDTH, 4), 255.0)
    for channel, mask in enumerate(masks):
        if mask:
            most = (1 << mask.bit_count()) - 1
            samples = rng.integers(0, most + 1, pixels.shape, dtype=np.uint64)
            pixels |= samples * np.uint64(mask & -mask)
            rgba[..., channel] = samples * (255 / most)
    stored = pixels.astype("<u4").view(np.uint8).reshape(HEIGHT, WIDTH, 4)[..., : bits // 8]
    alpha = rgba[..., 3:] / 255
    return [row.tobytes() for row in stored], rgba[..., :3] * alpha + 255 * (1 - alpha)


def read_right(data: bytes, expected: Colours) -> bool:
    """Whether a file is read; its pixels must be right."""
    try:
        found = decode(data, SIZE, LIMIT)
    except UnsupportedImage:
        return False
    assert np.abs(found - expected).max() <= 1.51
    return True


FIELDS: dict[str, tuple[int, tuple[int, int, int, int]]] = {
    "565": (16, (0xF800, 0x7E0, 0x1F, 0)),
    "555": (16, (0x7C00, 0x3E0, 0x1F, 0)),
    "1555": (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
    "444": (16, (0xF00, 0xF0, 0xF, 0)),
    "4444": (16, (0xF00, 0xF0, 0xF, 0xF000)),
    "565 of BGR": (16, (0x1F, 0x7E0, 0xF800, 0)),
    "BGR": (24, (0xFF0000, 0xFF00, 0xFF, 0)),
    "RGB": (24, (0xFF, 0xFF00, 0xFF0000, 0)),
    "BGRX": (32, (0xFF0000, 0xFF00, 0xFF, 0)),
    "BGRA": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "RGBX": (32, (0xFF, 0xFF00, 0xFF0000, 0)),
    "RGBA": (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
    "XBGR": (32, (0xFF000000, 0xFF0000, 0xFF00, 0)),
    "ABGR": (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
    "XRGB": (32, (0xFF00, 0xFF0000, 0xFF000000, 0)),
    "ARGB": (32, (0xFF00, 0xFF0000, 0xFF000000, 0xFF)),
    "BGXR": (32, (0xFF000000, 0xFF00, 0xFF, 0)),
    "BGAR": (32, (0xFF000000, 0xFF00, 0xFF, 0xFF0000)),
    "2101010": (32, (0x3FF00000, 0xFFC00, 0x3FF, 0)),
}
READ = {"565", "555", "BGR", "BGRX", "BGRA", "RGBA", "XBGR", "ABGR", "BGXR", "BGAR"}


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("name", FIELDS)
def test_bit_fields_have_their_pixels_or_are_named(name: str, top_down: bool) -> None:
    bits, masks = FIELDS[name]
    rows, expected = bit_fields(bits, masks)
    # The older headers have no alpha.
    for header in (56, 108, 124) if masks[3] else (INFO, 52, 56, 108, 124):
        named = masks if header >= 56 else masks[:3]
        data = bmp(header, bits, rows, compression=3, masks=named, top_down=top_down)
        assert read_right(data, expected) == (name in READ), header


@pytest.mark.parametrize("name", ["555", "BGR", "BGRX"])
@pytest.mark.parametrize("header", HEADERS)
def test_pixels_without_bit_fields_are_read(header: int, name: str) -> None:
    bits, masks = FIELDS[name]
    rows, expected = bit_fields(bits, masks)
    for top_down in (False,) if header == CORE else (False, True):
        assert read_right(bmp(header, bits, rows, top_down=top_down), expected)


def palettes(colours: int) -> dict[str, list[tuple[int, int, int]]]:
    rng = np.random.default_rng(colours)
    red, green, blue = rng.integers(0, 256, (3, colours)).tolist()
    scale = [255 * each // max(colours - 1, 1) for each in range(colours)]
    return {
        "colours": list(zip(red, green, blue, strict=True)),
        "greys": [(each, each, each) for each in scale],
        "greys downwards": [(each, each, each) for each in scale[::-1]],
        "indices": [(each, each, each) for each in range(colours)],
        "white": [(255, 255, 255)] * colours,
    }


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_palettes_have_their_pixels_or_are_named(bits: int, header: int) -> None:
    for colours in {2**bits} if header == CORE else {2, 3, 2**bits - 1, 2**bits}:
        if not 1 < colours <= 2**bits:
            continue
        for name, palette in palettes(colours).items():
            indices = np.random.default_rng(bits).integers(0, colours, SIZE)
            flags = indices[..., np.newaxis] >> np.arange(bits - 1, -1, -1) & 1
            rows = np.packbits(flags.reshape(HEIGHT, -1).astype(np.uint8), axis=1)
            data = bmp(header, bits, [row.tobytes() for row in rows], palette=palette)
            is_read = read_right(data, np.array(palette)[indices].astype(np.float64))
            # Pillow would take these for samples.
            black_and_white = name == "greys" and colours == 2 and bits > 1
            assert is_read != (black_and_white or (name == "indices" and bits == 4 and colours > 2))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (bmp(INFO, 8, [b""], compression=1), "8-bit, run-length encoded"),
        (bmp(INFO, 4, [b""], compression=2), "4-bit, run-length encoded"),
        (bmp(OS2, 24, [b""], compression=4), "24-bit, run-length encoded"),
        (bmp(OS2, 1, [b""], compression=3), "1-bit, Huffman-coded"),
        (bmp(INFO, 0, [b""], compression=4), "0-bit, JPEG inside"),
        (bmp(INFO, 0, [b""], compression=5), "0-bit, PNG inside"),
        (bmp(INFO, 32, [b""], compression=6), "32-bit, compression 6"),
        (bmp(INFO, 2, [bytes(4)] * HEIGHT), "2-bit"),
        (bmp(INFO, 64, [bytes(104)] * HEIGHT), "64-bit"),
        (bmp(16, 24, [bytes(39)] * HEIGHT), "header of 16 bytes"),
        (
            bmp(INFO, 16, [bytes(26)] * HEIGHT, compression=3, masks=(0xF00, 0xF0, 0xF)),
            "16-bit, bit fields F00/F0/F",
        ),
        (
            bmp(INFO, 8, [bytes(13)] * HEIGHT, palette=[(1, 2, 3)] * 257),
            "8-bit, palette of 257 colours",
        ),
        (
            bmp(INFO, 8, [bytes(13)] * HEIGHT, palette=[(0, 0, 0), (255, 255, 255)]),
            "8-bit, palette of 2 greys",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_kind_is_named_with_what_to_send(data: bytes, kind: str) -> None:
    with pytest.raises(UnsupportedImage) as caught:
        decode(data, SIZE, LIMIT)
    assert str(caught.value) == (
        f"BMP image of this kind is not read: {kind}; convert it to PNG, or to BMP of 24 bits "
        "without compression"
    )


def test_many_runs_are_named_as_a_few_are() -> None:
    rows = [(b"\1\0\1\1" * 25_000) + b"\0\1"]
    with pytest.raises(UnsupportedImage, match="8-bit, run-length encoded"):
        decode(bmp(INFO, 8, rows, compression=1), SIZE, LIMIT)
