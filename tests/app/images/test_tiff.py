"""TIFFs of every kind: those that are read have the pixels of another decoder, all others a name.

tifffile writes the files and reads them back; the colours that their samples mean are computed
here, by TIFF 6.0.
"""

import io
import itertools
import struct
import zlib
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from app.errors import DamagedImage, TooManyPixels, UnsupportedImage
from app.images.decode import decode
from tests.support.pictures import as_file, tiff, tiff_data_offset

HEIGHT, WIDTH = SIZE = (24, 40)
LIMIT = 10_000_000

Samples = NDArray[Any]
Colours = NDArray[np.float64]

PHOTOMETRICS = ("miniswhite", "minisblack", "rgb", "separated", "palette", "cielab", "ycbcr")
CHANNELS = {"rgb": 3, "separated": 4, "cielab": 3, "ycbcr": 3}
EXTRAS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (2,), (0, 0), (2, 0))
UNSIGNED = {1: "u1", 2: "u1", 4: "u1", 8: "u1", 12: "u2", 16: "u2", 32: "u4"}
DTYPES = [*UNSIGNED.items(), (8, "i1"), (16, "i2"), (16, "f2"), (32, "f4"), (64, "f8")]


Order = Literal["<", ">"]
ORDERS: tuple[Order, ...] = ("<", ">")


class Kind(NamedTuple):
    photometric: str
    planar: int = 1
    extra: tuple[int, ...] = ()
    bits: int = 8
    dtype: str = "u1"
    order: Order = "<"
    compression: str | None = None
    tiled: bool = False
    predictor: int = 1
    big: bool = False

    @property
    def channels(self) -> int:
        return CHANNELS.get(self.photometric, 1)


def ramps(kind: Kind) -> Samples:
    """Samples `[HEIGHT,WIDTH,channels]` that differ between the channels, over the whole range."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    channels = range(kind.channels + len(kind.extra))
    parts: Samples = np.stack([(3 * x + (2 * each + 4) * y) % 97 / 96 for each in channels], -1)
    if kind.dtype[0] == "f":
        return parts.astype(kind.dtype)
    least = -(2 ** (kind.bits - 1)) if kind.dtype[0] == "i" else 0
    parts = np.round(parts * (2**kind.bits - 1)) + least
    return parts.astype(kind.dtype)


def colour_map(kind: Kind) -> Samples:
    values: Samples = np.random.default_rng(5).integers(0, 256, (3, 2**kind.bits), dtype=np.uint16)
    return values * np.uint16(257)


def written(kind: Kind, samples: Samples) -> bytes:
    """Return a file; raises ValueError for a kind that tifffile does not write."""
    options: dict[str, Any] = (
        {"colormap": colour_map(kind)} if kind.photometric == "palette" else {}
    )
    if samples.shape[2] > 1:
        options["planarconfig"] = kind.planar
    if kind.extra:
        options["extrasamples"] = kind.extra
    if kind.bits not in {8, 16, 32, 64}:
        options["bitspersample"] = kind.bits
    if kind.photometric == "ycbcr":
        options["subsampling"] = (1, 1)
    data = np.moveaxis(samples, 2, 0) if kind.planar == 2 else samples
    data = data.squeeze(2) if samples.shape[2] == 1 else data
    file = io.BytesIO()
    with tifffile.TiffWriter(file, byteorder=kind.order, bigtiff=kind.big) as writer:
        writer.write(
            data,
            photometric=kind.photometric,
            compression=kind.compression,
            tile=(16, 16) if kind.tiled else None,
            predictor=kind.predictor if kind.predictor > 1 else None,
            metadata=None,
            **options,
        )
    return file.getvalue()


def colours(kind: Kind, samples: Samples) -> Colours:
    """Return what unsigned samples mean, over white, `[HEIGHT,WIDTH,3]` from 0 to 255."""
    eight = samples * (255 / (2**kind.bits - 1)) if kind.bits < 8 else samples >> (kind.bits - 8)
    values = eight.astype(np.float64)
    match kind.photometric:
        case "palette":
            rgb = (colour_map(kind) >> 8).T[samples[..., 0]].astype(np.float64)
        case "miniswhite":
            rgb = np.repeat(255 - values[..., :1], 3, -1)
        case "minisblack":
            rgb = np.repeat(values[..., :1], 3, -1)
        case "separated":
            rgb = (255 - values[..., :3]) * (255 - values[..., 3:4]) / 255
        case _:
            rgb = values[..., :3]
    alpha = values[..., kind.channels : kind.channels + 1] / 255
    if kind.extra[:1] == (2,):
        return rgb * alpha + 255 * (1 - alpha)
    if kind.extra[:1] == (1,):
        return (rgb + 255 * (1 - alpha)).clip(0, 255)
    return rgb


def read_right(kind: Kind) -> bool:
    """Whether a kind is read; its pixels must be right, and its samples those of tifffile."""
    samples = ramps(kind)
    data = written(kind, samples)
    try:
        found = decode(data, SIZE, LIMIT)
    except UnsupportedImage:
        return False
    back = tifffile.imread(io.BytesIO(data)).reshape(samples.shape if kind.planar == 1 else -1)
    expected = samples if kind.planar == 1 else np.moveaxis(samples, 2, 0).ravel()
    np.testing.assert_array_equal(back, expected)
    assert kind.dtype[0] == "u", kind
    # Rounding, twice where alpha is divided out.
    assert np.abs(found - colours(kind, samples)).max() <= 1.51, kind
    return True


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("photometric", PHOTOMETRICS)
def test_every_kind_has_its_pixels_or_is_named(
    photometric: str, planar: int, extra: tuple[int, ...]
) -> None:
    ways = itertools.product(DTYPES, ORDERS, (None, "lzw", "packbits"), (False, True))
    for (bits, dtype), order, compression, tiled in ways:
        kind = Kind(photometric, planar, extra, bits, dtype, order, compression, tiled)
        single = kind.channels + len(extra) == 1
        cannot_write = bits in {1, 2, 4, 12} and (compression is not None or order == ">")
        if photometric == "palette":
            cannot_write |= bool(extra) or (bits, dtype) not in {(8, "u1"), (16, "u2")}
        if (single and planar == 2) or cannot_write:
            continue
        read_right(kind)


READ = [
    *(Kind("minisblack", bits=bits, dtype=UNSIGNED[bits]) for bits in (1, 2, 4, 8, 12, 16)),
    *(Kind("miniswhite", bits=bits, dtype=UNSIGNED[bits]) for bits in (1, 2, 4, 8, 16)),
    Kind("minisblack", bits=16, dtype="u2", order=">"),
    Kind("minisblack", extra=(2,)),
    *(
        Kind(photometric, extra=extra, bits=bits, dtype=UNSIGNED[bits], order=order)
        for photometric, extra in (("rgb", ()), ("rgb", (2,)), ("rgb", (1,)), ("separated", ()))
        for bits in (8, 16)
        for order in ORDERS
    ),
    Kind("rgb", 2),
    Kind("rgb", 2, (2,)),
    Kind("rgb", 2, bits=16, dtype="u2", compression="lzw"),
    Kind("palette"),
    Kind("rgb", big=True),
    *(
        Kind("rgb", compression=compression, tiled=tiled)
        for compression in ("lzw", "zlib", "packbits", "lzma", "zstd")
        for tiled in (False, True)
    ),
    *(
        Kind(
            "rgb", planar, bits=bits, dtype=UNSIGNED[bits], order=order, compression=compression
        )._replace(predictor=2)
        for planar in (1, 2)
        for bits in (8, 16)
        for order in ORDERS
        for compression in ("lzw", "zlib")
    ),
]


@pytest.mark.parametrize("kind", READ, ids=str)
def test_usual_kind_is_read(kind: Kind) -> None:
    assert read_right(kind)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Kind("minisblack", extra=(2,), bits=16, dtype="u2"), "16-bit grey with alpha, uncompre"),
        (Kind("minisblack", 2, (2,), compression="lzw"), "8-bit grey with alpha, in separate pl"),
        (Kind("miniswhite", bits=16, dtype="u2", order=">"), r"16-bit grey \(0 is white\), uncom"),
        (Kind("minisblack", bits=32, dtype="f4"), "32-bit floating-point grey, uncompressed"),
        (Kind("minisblack", bits=16, dtype="i2"), "16-bit signed grey, uncompressed"),
        (Kind("rgb", 2, bits=16, dtype="u2"), "16-bit RGB, in separate planes, uncompressed"),
        (Kind("separated", 2, bits=16, dtype="u2"), "16-bit CMYK, in separate planes, uncompre"),
        (Kind("ycbcr"), "8-bit YCbCr, uncompressed"),
        (Kind("cielab"), "8-bit CIELAB, uncompressed"),
        (Kind("rgb", order=">", big=True), "8-bit RGB, uncompressed, big-endian, BigTIFF"),
        (Kind("palette", bits=16, dtype="u2"), "16-bit palette"),
        (Kind("minisblack", extra=(0,) * 20), "8-bit grey with .*, 21 samples a pixel"),
    ],
)
def test_other_kind_is_named_with_what_to_send(kind: Kind, name: str) -> None:
    with pytest.raises(UnsupportedImage, match=f"of this kind is not read: {name}.*; convert it t"):
        decode(written(kind, ramps(kind)), SIZE, LIMIT)


def packed(
    bits: int, photometric: int, order: str, *, compression: int, fill_order: int, planar: int
) -> tuple[bytes, Samples]:
    """Return a file of one channel whose samples fill their bytes, and the samples."""
    name = {0: "miniswhite", 1: "minisblack", 3: "palette"}[photometric]
    kind = Kind(name, bits=bits, dtype=UNSIGNED[bits])
    samples = ramps(kind)
    flags = samples >> np.arange(bits - 1, -1, -1, dtype=samples.dtype) & 1
    pixels = np.packbits(flags.reshape(HEIGHT, -1).astype(np.uint8), axis=1).tobytes()
    pixels = zlib.compress(pixels) if compression == 8 else pixels
    if fill_order == 2:
        pixels = pixels.translate(bytes(int(f"{each:08b}"[::-1], 2) for each in range(256)))
    offset = tiff_data_offset(11 if photometric == 3 else 10)
    values = {256: WIDTH, 257: HEIGHT, 258: bits, 259: compression, 262: photometric}
    values |= {266: fill_order, 273: offset, 277: 1, 279: len(pixels), 284: planar}
    tags = [(tag, 4, 1, value) for tag, value in values.items()]
    if photometric != 3:
        return tiff(tags, pixels, order), samples
    tags += [(320, 3, 3 * 2**bits, offset + len(pixels))]
    return tiff(tags, pixels + colour_map(kind).astype(f"{order}u2").tobytes(), order), samples


@pytest.mark.parametrize("fill_order", [1, 2])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_packed_samples_have_their_pixels_or_are_named(
    order: str, compression: int, planar: int, fill_order: int
) -> None:
    for bits, photometric in itertools.product((1, 2, 4, 8, 12), (0, 1, 3)):
        if photometric == 3 and bits > 8:
            continue
        data, samples = packed(
            *(bits, photometric, order),
            compression=compression,
            fill_order=fill_order,
            planar=planar,
        )
        np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), samples[..., 0])
        name = {0: "miniswhite", 1: "minisblack", 3: "palette"}[photometric]
        try:
            found = decode(data, SIZE, LIMIT)
        except UnsupportedImage:
            assert bits == 12 or fill_order == 2 or (planar == 2 and compression == 1)
            continue
        expected = colours(Kind(name, bits=bits, dtype=UNSIGNED[bits]), samples)
        assert np.abs(found - expected).max() <= 0.51, (bits, photometric)


@pytest.mark.parametrize(
    ("photometric", "planar"),
    [("minisblack", 1), ("miniswhite", 1), ("rgb", 1), ("rgb", 2), ("ycbcr", 1), ("separated", 1)],
)
@pytest.mark.parametrize("tiled", [False, True])
def test_jpeg_inside_has_the_samples_of_another_decoder(
    photometric: str, planar: int, tiled: bool
) -> None:
    kind = Kind(photometric, planar)
    y, x = np.mgrid[:64, :80]
    waves = [np.sin((x + 3 * each) / 15) * np.cos(y / 11) for each in range(kind.channels)]
    samples = np.round(127 + 100 * np.stack(waves, -1)).astype(np.uint8)
    data = np.moveaxis(samples, 2, 0) if planar == 2 else samples.squeeze()
    file = io.BytesIO()
    options: dict[str, Any] = {"planarconfig": planar} if kind.channels > 1 else {}
    tile = (32, 32) if tiled else None
    tifffile.imwrite(
        file, data, photometric=photometric, compression="jpeg", tile=tile, metadata=None, **options
    )
    back = np.atleast_3d(tifffile.imread(io.BytesIO(file.getvalue())))
    back = np.moveaxis(back, 0, 2) if planar == 2 else back
    expected = back if photometric == "ycbcr" else colours(kind, back)  # tifffile converts it
    found = decode(file.getvalue(), (64, 80), LIMIT)
    assert np.abs(found - expected.astype(np.float64)).max() <= 1


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "packbits"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_fax_has_the_samples_of_another_decoder(compression: str, photometric: int) -> None:
    flags = Image.fromarray(ramps(Kind("minisblack"))[..., 0]).point(lambda each: each > 90, "1")
    file = io.BytesIO()
    flags.save(file, "TIFF", compression=compression, tiffinfo={262: photometric})
    samples = tifffile.imread(io.BytesIO(file.getvalue())).astype(bool)
    white = samples if photometric == 1 else ~samples
    np.testing.assert_array_equal(decode(file.getvalue(), SIZE, LIMIT)[..., 0] == 255, white)


def test_rgb_of_four_samples_without_a_tag_for_the_last_has_alpha() -> None:
    kind = Kind("rgb", extra=(2,))
    samples = ramps(kind)
    data = written(kind, samples)
    at = data.index(b"\x52\x01\x03\x00\x01\x00\x00\x00\x02\x00")
    found = decode(data[:at] + b"\xfe" + data[at + 1 :], SIZE, LIMIT)  # tag 510 means nothing
    assert np.abs(found - colours(kind, samples)).max() <= 1


def test_grey_of_two_samples_without_a_tag_for_the_last_is_named() -> None:
    kind = Kind("minisblack", extra=(2,))
    data = written(kind, ramps(kind))
    at = data.index(b"\x52\x01\x03\x00\x01\x00\x00\x00\x02\x00")
    with pytest.raises(UnsupportedImage, match="8-bit grey, 2 samples a pixel, uncompressed"):
        decode(data[:at] + b"\xfe" + data[at + 1 :], SIZE, LIMIT)


def test_inks_other_than_cmyk_are_named() -> None:
    kind = Kind("separated")
    file = io.BytesIO()
    other = [(332, "H", 1, 2, True)]
    tifffile.imwrite(file, ramps(kind), photometric="separated", metadata=None, extratags=other)
    with pytest.raises(UnsupportedImage, match="8-bit CMYK, uncompressed, ink set 2, little-endi"):
        decode(file.getvalue(), SIZE, LIMIT)


@pytest.mark.parametrize("order", ORDERS)
def test_palette_of_eight_bit_colours_is_named(order: Order) -> None:
    kind = Kind("palette", order=order)
    colour_maps = [colour_map(kind) // 257, colour_map(kind)]
    old, sixteen = (each.astype(f"{order}u2").tobytes() for each in colour_maps)
    data = written(kind, ramps(kind)).replace(sixteen, old)
    with pytest.raises(UnsupportedImage, match="8-bit palette, uncompressed, colours of 8 bits, "):
        decode(data, SIZE, LIMIT)


def small(*tags: tuple[int, int, int, int]) -> bytes:
    """An uncompressed grey file of 2x1 pixels with more tags, or others."""
    entries = {256: 2, 257: 1, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 279: 2}
    own = {tag[0] for tag in tags}
    entries[273] = tiff_data_offset(len(own | entries.keys()))
    rest = [(tag, 4, 1, value) for tag, value in entries.items() if tag not in own]
    return tiff([*rest, *tags], bytes([7, 9]))


def test_samples_that_spell_the_sign_of_a_camera_are_read() -> None:
    tags = {256: 2, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 279: 2}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<I2sH", 10, b"CR", len(tags)) + directory + bytes(4)
    assert decode(data, (1, 2), LIMIT)[0].tolist() == [[67] * 3, [82] * 3]


def test_file_that_does_not_say_what_its_samples_mean_is_damaged() -> None:
    data = small().replace(b"\x06\x01\x04\x00", b"\xfe\x01\x04\x00")
    with pytest.raises(DamagedImage, match=r"does not say what its samples mean \(tag 262\)"):
        decode(data, (1, 2), LIMIT)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ([(322, 9, 1, 16), (323, 9, 1, 10_000_000)], "tag 322 does not hold one whole number"),
        ([(322, 4, 1, 90_000), (322, 4, 1, 16), (323, 4, 1, 90_000)], "tag 322 .*stands twice"),
        ([(322, 1, 4, 0)], "tag 322 does not hold one whole number"),
        ([(259, 4, 0, 1)], "tag 259 does not hold one whole number"),
        ([(322, 4, 1, 1), (323, 4, 1, 1)], "tiles of 1x1; the least are 16x16"),
    ],
)
def test_tag_that_decoders_could_read_in_different_ways_is_damage(
    tags: list[tuple[int, int, int, int]], message: str
) -> None:
    with pytest.raises(DamagedImage, match=message):
        decode(small(*tags), (1, 2), LIMIT)


@pytest.mark.parametrize("tag", [256, 257, 258, 259, 262, 274, 277, 278])
def test_number_in_a_byte_is_named(tag: int) -> None:
    value = {256: 2, 258: 8, 274: 6}.get(tag, 1)
    with pytest.raises(UnsupportedImage, match=f"not read: tag {tag} of type BYTE; convert it to"):
        decode(small((tag, 1, 1, value)), (1, 2), LIMIT)


@pytest.mark.parametrize("tag", [(254, 4, 1, 1), (254, 4, 1, 4), (254, 4, 1, 5), (255, 3, 1, 2)])
def test_thumbnail_or_mask_in_place_of_the_picture_is_named(tag: tuple[int, int, int, int]) -> None:
    with pytest.raises(
        UnsupportedImage, match="8-bit grey, uncompressed, a reduced copy or a mask"
    ):
        decode(small(tag), (1, 2), LIMIT)


@pytest.mark.parametrize(
    "tag",
    [
        *((254, 4, 1, 0), (254, 4, 1, 2), (255, 3, 1, 1), (255, 3, 1, 3)),
        *((254, 1, 1, 0), (254, 13, 1, 0), (254, 3, 2, 0)),  # odd, and not needed
    ],
)
def test_page_of_several_is_read(tag: tuple[int, int, int, int]) -> None:
    assert decode(small(tag), (1, 2), LIMIT)[0].tolist() == [[7] * 3, [9] * 3]


def test_tile_of_more_pixels_than_the_limit_is_named() -> None:
    with pytest.raises(TooManyPixels, match=r"tiles of 5000x5000 pixels; the limit is 10 megapix"):
        decode(small((322, 4, 1, 5000), (323, 4, 1, 5000)), (1, 2), LIMIT)


def test_orientation_of_a_sixteen_bit_file_is_applied() -> None:
    samples = ramps(Kind("minisblack", bits=16, dtype="u2"))[..., 0]
    upright = as_file(samples, "TIFF", tiffinfo={274: 3})
    np.testing.assert_array_equal(decode(upright, SIZE, LIMIT)[..., 0], samples[::-1, ::-1] >> 8)
