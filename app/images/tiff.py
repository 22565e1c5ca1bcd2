"""The kinds of TIFF that are read, and the limits of a TIFF's first directory.

TIFF is a toolbox: a file announces how its samples are meant, laid out and packed, and Pillow gives
wrong pixels for some of the combinations and calls others damaged. So the header is read before
Pillow reads the file, and only what is known to be read right is admitted: the tables below, which
`tests/app/images/test_tiff.py` holds against another decoder. Names and numbers are those of TIFF
6.0 and of libtiff.
"""

import struct
from typing import NamedTuple, Self

from app.errors import DamagedImage, TooManyPixels
from app.images.limits import megapixels, unsupported

MAX_VALUES = 10_000
"""The most strips or tiles. Pillow makes a Python object of each one."""

MIN_TILE_PIXELS = 16 * 16
"""The fewest pixels of a tile: TIFF 6.0 wants multiples of 16 for both sides."""

MAX_TAGS = 1_000
"""The most tags; most files have fewer than fifty."""

MAX_SAMPLES = 8
"""The most samples a pixel whose descriptions are read. None that is admitted has more than six."""

MAX_COLOURS = 3 * 256
"""The most values of a palette that are read: that of 8-bit samples."""

_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES = 258, 259, 262, 266, 277
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_LENGTH, _EXTRA, _FORMAT = 284, 317, 322, 323, 338, 339
_COLOUR_MAP, _INK_SET, _XMP = 320, 332, 700
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _ORIENTATION, _ROWS = 254, 255, 256, 257, 274, 278
_SEVERAL = frozenset({_BITS, _EXTRA, _FORMAT, _COLOUR_MAP})
_READ = _SEVERAL | {_COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _PLANAR, _PREDICTOR}
_READ |= {_TILE_WIDTH, _TILE_LENGTH, _INK_SET}
_PARTS = frozenset({_SUBFILE, _OLD_SUBFILE})  # which Pillow does not need
_NUMBERS = _READ | {_WIDTH, _HEIGHT, _ORIENTATION, _ROWS}

_BYTE, _ASCII = 1, 2
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # by type

_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_PHOTOMETRICS = {
    _WHITE_IS_ZERO: "grey (0 is white)",
    _GREY: "grey",
    _RGB: "RGB",
    _PALETTE: "palette",
    4: "mask",
    _CMYK: "CMYK",
    _YCBCR: "YCbCr",
    8: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    32803: "colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
_CHANNELS = {_WHITE_IS_ZERO: 1, _GREY: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, 8: 3}

_UNSPECIFIED, _ASSOCIATED, _ALPHA = 0, 1, 2
_EXTRAS = {_UNSPECIFIED: "an unspecified sample", _ASSOCIATED: "associated alpha", _ALPHA: "alpha"}
_FORMATS = {1: "", 2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}

_REDUCED, _MASK, _OLD_REDUCED = 1, 4, 2  # the first two are bits

_NONE, _JPEG, _PACK_BITS = 1, 7, 32773
_FAX = {2: "CCITT RLE", 3: "CCITT Group 3", 4: "CCITT Group 4"}
_DICTIONARIES = {5: "LZW", 8: "Deflate", 32946: "Deflate", 34925: "LZMA", 50000: "Zstandard"}
_COMPRESSIONS = {
    _NONE: "uncompressed",
    6: "old-style JPEG",
    _JPEG: "JPEG",
    _PACK_BITS: "PackBits",
    50001: "WebP",
    50002: "JPEG XL",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    **_FAX,
    **_DICTIONARIES,
}

# The bits of a sample, by what the samples and the extra ones mean.
_Admitted = dict[tuple[int, tuple[int, ...]], frozenset[int]]
_8, _8_16 = frozenset({8}), frozenset({8, 16})
_ADMITTED: _Admitted = {
    (_WHITE_IS_ZERO, ()): frozenset({1, 2, 4, 8, 16}),
    (_GREY, ()): frozenset({1, 2, 4, 8, 12, 16}),
    (_GREY, (_ALPHA,)): _8,
    (_RGB, ()): _8_16,
    (_RGB, (_UNSPECIFIED,)): _8_16,
    (_RGB, (_ASSOCIATED,)): _8_16,
    (_RGB, (_ALPHA,)): _8_16,
    (_RGB, (_UNSPECIFIED, _UNSPECIFIED)): _8,
    (_RGB, (_ALPHA, _UNSPECIFIED)): _8,
    (_PALETTE, ()): frozenset({1, 2, 4, 8}),
    (_CMYK, ()): _8_16,
    (_CMYK, (_UNSPECIFIED,)): _8,
    (_CMYK, (_UNSPECIFIED, _UNSPECIFIED)): _8,
    (_YCBCR, ()): _8,
}
_ADMITTED_PLANES: _Admitted = {
    (_RGB, ()): _8_16,
    (_RGB, (_ASSOCIATED,)): _8_16,
    (_RGB, (_ALPHA,)): _8_16,
    (_CMYK, ()): _8_16,
}
_ADMITTED_UNCOMPRESSED_PLANES: _Admitted = {
    (_GREY, ()): _8,
    (_PALETTE, ()): _8,
    (_RGB, ()): _8,
    (_RGB, (_ALPHA,)): _8,
    (_CMYK, ()): _8,
}


_INSTEAD = "PNG, or to TIFF of 8-bit grey or RGB in one plane"


class _Kind(NamedTuple):
    """What the header says of the samples; the defaults are those of TIFF 6.0."""

    order: str
    big: bool
    is_part: bool
    photometric: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    extra: tuple[int, ...]
    samples: int
    planar: int
    compression: int
    predictor: int
    fill_order: int
    ink_set: int
    colour_map: tuple[int, ...]

    @classmethod
    def of(cls, tags: dict[int, tuple[int, ...]], order: str, *, big: bool) -> Self:
        def number(tag: int, default: int) -> int:
            return tags.get(tag, (default,))[0]

        if _PHOTOMETRIC not in tags:
            raise DamagedImage("TIFF image does not say what its samples mean (tag 262)")
        photometric, samples = number(_PHOTOMETRIC, 0), number(_SAMPLES, 1)
        # Some writers of RGB with alpha leave the tag out.
        without_tag = (_ALPHA,) if (photometric, samples) == (_RGB, 4) else ()
        return cls(
            order=order,
            big=big,
            is_part=bool(number(_SUBFILE, 0) & (_REDUCED | _MASK))
            or number(_OLD_SUBFILE, 1) == _OLD_REDUCED,
            photometric=photometric,
            bits=tags.get(_BITS, (1,)),
            formats=tags.get(_FORMAT, (1,)),
            extra=tags.get(_EXTRA, without_tag),
            samples=samples,
            planar=number(_PLANAR, 1),
            compression=number(_COMPRESSION, _NONE),
            predictor=number(_PREDICTOR, 1),
            fill_order=number(_FILL_ORDER, 1),
            ink_set=number(_INK_SET, 1),
            colour_map=tags.get(_COLOUR_MAP, ()),
        )

    @property
    def admitted(self) -> bool:
        """Whether Pillow is known to read it right."""
        if self.planar == 1 or (self.samples == 1 and self.compression != _NONE):
            table = _ADMITTED
        elif self.planar == 2:
            table = _ADMITTED_PLANES if self.compression != _NONE else _ADMITTED_UNCOMPRESSED_PLANES
        else:
            return False
        bits = self.bits[0]
        return (
            bits in table.get((self.photometric, self.extra), ())
            and self.samples == _CHANNELS[self.photometric] + len(self.extra)
            and self.bits in {(bits,), (bits,) * self.samples}
            and set(self.formats) == {1}
            and self.ink_set == 1
            and not self.is_part
            and not self._has_short_colours
            and (self.order == "<" or not (self.big or self._is_little_endian_alone(bits)))
            and self._is_packing_admitted(bits)
        )

    def _is_little_endian_alone(self, bits: int) -> bool:
        return bits == 12 or (self.photometric, bits) == (_WHITE_IS_ZERO, 16)

    @property
    def _has_short_colours(self) -> bool:
        """Whether the colours have 8 bits, as old writers have them and libtiff finds out."""
        return self.photometric == _PALETTE and 0 < max(self.colour_map, default=0) < 256

    def _is_packing_admitted(self, bits: int) -> bool:
        fax = bits == 1 and self.photometric in {_WHITE_IS_ZERO, _GREY}
        if self.compression in _FAX:
            packed = fax
        elif self.compression == _JPEG:
            packed = bits == 8 and not self.extra
        else:
            known = self.compression in {_NONE, _PACK_BITS, *_DICTIONARIES}
            packed = known and self.photometric != _YCBCR
        predicted = bits in _8_16 and self.compression in _DICTIONARIES
        return (
            packed
            and (self.predictor == 1 or (self.predictor == 2 and predicted))
            and (self.fill_order == 1 or (self.fill_order == 2 and fax))
        )

    def __str__(self) -> str:
        """Say what it is: `16-bit grey with alpha, uncompressed, little-endian`."""
        bits = "/".join(map(str, dict.fromkeys(self.bits)))
        form = _FORMATS.get(self.formats[0], "undefined ")
        meaning = _PHOTOMETRICS.get(self.photometric, f"photometric {self.photometric}")
        extra = " and ".join(_EXTRAS.get(each, f"extra sample {each}") for each in self.extra)
        channels = _CHANNELS.get(self.photometric, 0) + len(self.extra)
        details = [
            f"{bits}-bit {form}{meaning}{' with ' if extra else ''}{extra}",
            f"{self.samples} samples a pixel" if self.samples != channels else "",
            "in separate planes" if self.planar == 2 else "",
            _COMPRESSIONS.get(self.compression, f"compression {self.compression}"),
            f"predictor {self.predictor}" if self.predictor != 1 else "",
            f"fill order {self.fill_order}" if self.fill_order != 1 else "",
            f"ink set {self.ink_set}" if self.ink_set != 1 else "",
            "a reduced copy or a mask of another image" if self.is_part else "",
            "colours of 8 bits" if self._has_short_colours else "",
            "little-endian" if self.order == "<" else "big-endian",
            "BigTIFF" if self.big else "",
        ]
        return ", ".join(filter(None, details))


def check_tiff(data: bytes, max_pixels: int) -> None:
    """Refuse a file that Pillow would not read right or not read quickly.

    Args:
        data: the file; begins with the signature of TIFF or BigTIFF.
        max_pixels: the most pixels of a tile.

    Raises:
        DamagedImage: the first directory is cut short, or has more tags or values than the limits.
        UnsupportedImage: the file is of another kind than the admitted ones.
        TooManyPixels: a tile is larger than the limit.
        struct.error: the directory lies outside the file.
    """
    order, big = "<" if data[:1] == b"I" else ">", b"+" in data[2:4]
    tags, counts = _read_tags(data, order, big=big)
    kind = _Kind.of(tags, order, big=big)
    if not kind.admitted:
        raise unsupported("TIFF", str(kind), _INSTEAD)
    for tag, values in counts.items():
        if tag < _XMP and values > MAX_VALUES:
            raise DamagedImage(f"TIFF tag {tag} has {values} values; the limit is {MAX_VALUES}")
    (width, *_), (height, *_) = tags.get(_TILE_WIDTH, (0,)), tags.get(_TILE_LENGTH, (0,))
    if 0 < width * height < MIN_TILE_PIXELS:
        raise DamagedImage(f"TIFF image has tiles of {width}x{height}; the least are 16x16")
    if width * height > max_pixels:
        raise TooManyPixels(
            f"TIFF image has tiles of {width}x{height} pixels; "
            f"the limit is {megapixels(max_pixels)}"
        )


def _read_tags(
    data: bytes, order: str, *, big: bool
) -> tuple[dict[int, tuple[int, ...]], dict[int, int]]:
    """Return the values of the tags that are read here, and each tag's number of values."""
    word = "Q" if big else "I"
    (start,) = struct.unpack_from(order + word, data, 8 if big else 4)
    number = struct.Struct(order + ("Q" if big else "H"))
    (count,) = number.unpack_from(data, start)
    if count > MAX_TAGS:
        raise DamagedImage(f"TIFF image has {count} tags; the limit is {MAX_TAGS}")
    head, offset = struct.Struct(f"{order}HH{word}"), struct.Struct(order + word)
    tags: dict[int, tuple[int, ...]] = {}
    counts: dict[int, int] = {}
    for index in range(count):
        at = start + number.size + index * (head.size + offset.size)
        tag, kind, values = head.unpack_from(data, at)
        if kind != _ASCII:
            counts[tag] = values
        single = tag not in _SEVERAL
        if tag in _READ and (
            tag in tags or kind not in _INTEGERS or not values or (single and values > 1)
        ):
            raise DamagedImage(f"TIFF tag {tag} does not hold one whole number, or stands twice")
        if kind == _BYTE and tag in _NUMBERS:  # Pillow takes no numbers out of bytes
            raise unsupported("TIFF", f"tag {tag} of type BYTE", _INSTEAD)
        if tag not in _READ and not (tag in _PARTS and kind in _INTEGERS and values == 1):
            continue
        place = at + head.size
        if values * struct.calcsize(f"={_INTEGERS[kind]}") > offset.size:
            (place,) = offset.unpack_from(data, place)
        most = MAX_COLOURS if tag == _COLOUR_MAP else MAX_SAMPLES
        layout = f"{order}{min(values, most)}{_INTEGERS[kind]}"
        tags[tag] = struct.unpack_from(layout, data, place)
    return tags, counts
