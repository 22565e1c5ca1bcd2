"""The kinds of BMP that are read.

Pillow reads some palettes wrongly, calls bit fields that it does not know damaged, and decodes
runs in Python, pixel by pixel. So the header is read before Pillow reads the file, and only what is
known to be read right is admitted, as `tests/app/images/test_bmp.py` proves it.
"""

import struct

from app.images.limits import unsupported

MAX_COLOURS = 256
"""The most colours of a palette: what 8 bits can name."""

_CORE_HEADER, _OS2_HEADER = 12, 64
_HEADERS = frozenset({_CORE_HEADER, 40, 52, 56, _OS2_HEADER, 108, 124})

_RAW, _BIT_FIELDS = 0, 3
_COMPRESSIONS = {
    _RAW: "",
    1: ", run-length encoded",
    2: ", run-length encoded",
    4: ", JPEG inside",
    5: ", PNG inside",
}
_OS2_COMPRESSIONS = _COMPRESSIONS | {3: ", Huffman-coded", 4: ", run-length encoded"}

_BITS = frozenset({1, 4, 8, 16, 24, 32})
# Masks of red, green, blue and alpha by bits of a pixel.
_FIELDS = {
    16: {(0xF800, 0x7E0, 0x1F, 0), (0x7C00, 0x3E0, 0x1F, 0)},
    24: {(0xFF0000, 0xFF00, 0xFF, 0)},
    32: {
        (0xFF0000, 0xFF00, 0xFF, 0),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        (0xFF000000, 0xFF00, 0xFF, 0),
        (0xFF000000, 0xFF00, 0xFF, 0xFF0000),
    },
}


def check_bmp(data: bytes) -> None:
    """Refuse a kind that Pillow does not read right.

    Args:
        data: the file; begins with `BM`.

    Raises:
        UnsupportedImage: the file is of another kind than the admitted ones.
        struct.error: the header is cut short.
    """
    kind = _unsupported_kind(data)
    if kind:
        raise unsupported("BMP", kind, "PNG, or to BMP of 24 bits without compression")


def _unsupported_kind(data: bytes) -> str | None:
    """Return what the file is, if it is not admitted."""
    (size,) = struct.unpack_from("<I", data, 14)
    if size == _CORE_HEADER:
        (bits,) = struct.unpack_from("<H", data, 24)
        compression = colours = 0
    elif size in _HEADERS:
        bits, compression, colours = struct.unpack_from("<HI12xI", data, 28)
    else:
        return f"header of {size} bytes"
    if compression == _BIT_FIELDS and size != _OS2_HEADER:
        masks = struct.unpack_from("<4I" if size >= 56 else "<3I", data, 54)
        if (*masks, 0)[:4] in _FIELDS.get(bits, ()):
            return None
        return f"{bits}-bit, bit fields {'/'.join(f'{mask:X}' for mask in masks)}"
    if bits not in _BITS or compression != _RAW:
        names = _OS2_COMPRESSIONS if size == _OS2_HEADER else _COMPRESSIONS
        return f"{bits}-bit{names.get(compression, f', compression {compression}')}"
    if bits <= 8 and colours > MAX_COLOURS:
        return f"{bits}-bit, palette of {colours} colours"
    if bits in {4, 8} and _is_mistaken(data, size, bits, colours or 1 << bits):
        return f"{bits}-bit, palette of {colours or 1 << bits} greys"
    return None


def _is_mistaken(data: bytes, size: int, bits: int, colours: int) -> bool:
    """Whether Pillow takes a palette's indices for samples of 1 or 8 bits, which they are not."""
    entry = 3 if size == _CORE_HEADER else 4
    greys = (0, 255) if colours == 2 else range(min(colours, 16))
    palette = data[14 + size : 14 + size + entry * len(greys)]
    return (bits == 4 or colours == 2) and all(
        palette[index * entry :][:3] == bytes([grey] * 3) for index, grey in enumerate(greys)
    )
