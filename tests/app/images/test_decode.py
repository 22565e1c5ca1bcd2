"""app.images.decode on files that are made here, so that every expected pixel is known."""

import contextlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.errors import DamagedImage, ImageError, NotAnImage, TooManyPixels, UnsupportedImage
from app.images import decode as decode_module
from app.images.decode import decode, warning_of
from app.images.jpeg import MAX_SEGMENTS_WITHOUT_END
from app.images.plain_png import PlainPng
from tests.support.pictures import chunk, tiff, tiff_data_offset

SIZE = (32, 32)
LIMIT = 40_000_000
SAMPLE = Path(__file__).parents[2] / "support" / "sample.npz"

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def photo() -> Pixels:
    """A real CIFAR-10 image, uint8 [32,32,3]."""
    with np.load(SAMPLE) as sample:
        pixels: Pixels = sample["train_images"][0]
        return pixels


def encode(image: Image.Image | Pixels, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int = 3) -> Pixels:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def over_white(rgba: Pixels) -> NDArray[np.float64]:
    alpha = rgba[..., 3:].astype(np.float64) / 255
    blended: NDArray[np.float64] = rgba[..., :3] * alpha + 255 * (1 - alpha)
    return blended


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes, after: bytes = b""
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *extra, data, after, chunk(b"IEND")])


LOSSLESS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"big_tiff": True}),
]


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_lossless_image_of_model_size_keeps_its_pixels_exactly(
    photo: Pixels, kind: str, options: dict[str, Any]
) -> None:
    found = decode(encode(photo, kind, **options), SIZE, LIMIT)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, photo)


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 0), ("AVIF", 0), ("MPO", 0)])
def test_lossy_image_of_model_size_is_what_pillow_decodes(
    photo: Pixels, kind: str, tolerance: int
) -> None:
    data = encode(photo, kind, quality=90)
    with Image.open(io.BytesIO(data)) as image:
        whole = np.asarray(image.convert("RGB"), np.int16)
    assert np.abs(decode(data, SIZE, LIMIT) - whole).max() <= tolerance


def test_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode(data, SIZE, LIMIT)[16, 16].tolist() == pytest.approx([255, 0, 0], abs=2), kind


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_grey_palette_and_one_bit_images_keep_their_pixels(photo: Pixels, kind: str) -> None:
    for mode in ("L", "P", "1"):
        image = Image.fromarray(photo).convert(mode)
        expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(decode(encode(image, kind), SIZE, LIMIT), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_are_composited_over_white(kind: str) -> None:
    rgba = noise(32, 32, 4)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = decode(encode(rgba, kind, **options), SIZE, LIMIT)
    assert np.abs(found - over_white(rgba)).max() <= 1


def test_grey_with_alpha_is_composited_over_white() -> None:
    grey = noise(32, 32, 2)
    data = encode(Image.fromarray(grey, "LA"), "PNG")
    assert np.abs(decode(data, SIZE, LIMIT) - over_white(grey[..., [0, 0, 0, 1]])).max() <= 1


def test_transparency_is_weighed_before_resampling() -> None:
    # Fully transparent red must not bleed into the white beside it.
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:, :, 0], rgba[:, 32:] = 255, (255, 255, 255, 255)
    assert decode(encode(rgba, "PNG"), SIZE, LIMIT).min() >= 254


def test_palette_with_one_transparent_colour_is_composited_over_white() -> None:
    image = Image.fromarray(noise(32, 32, 1) % 4, "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    for kind in ("PNG", "GIF"):
        found = decode(encode(image, kind, transparency=2), SIZE, LIMIT)
        hidden = np.asarray(image) == 2
        assert (found[hidden] == 255).all()
        assert (found[np.asarray(image) == 1] == (40, 50, 60)).all()


def test_palette_with_an_alpha_for_each_colour_is_composited_over_white() -> None:
    palette = chunk(b"PLTE", bytes([0, 0, 0, 200, 100, 0])), chunk(b"tRNS", bytes([255, 128]))
    found = decode(png(2, 1, 8, 3, bytes([0, 0, 1]), *palette), (1, 2), LIMIT)
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[0, 1].tolist() == pytest.approx([227, 177, 127], abs=1)


@pytest.mark.parametrize(
    ("depth", "colour", "rows", "transparent"),
    [
        (1, 0, bytes([0, 0b0100_0000]), struct.pack(">H", 1)),
        (2, 0, bytes([0, 0b0011_0000]), struct.pack(">H", 3)),
        (4, 0, bytes([0, 0x07]), struct.pack(">H", 7)),
        (8, 0, bytes([0, 0, 9]), struct.pack(">H", 9)),
        (16, 0, bytes([0, 0, 0, 9, 200]), struct.pack(">H", 9 * 256 + 200)),
        (8, 2, bytes([0, 0, 0, 0, 9, 8, 7]), struct.pack(">HHH", 9, 8, 7)),
        (16, 2, bytes([0, *[0] * 6, 9, 1, 8, 1, 7, 1]), struct.pack(">HHH", 2305, 2049, 1793)),
    ],
)
def test_png_transparent_colour_of_any_depth_turns_white(
    depth: int, colour: int, rows: bytes, transparent: bytes
) -> None:
    data = png(2, 1, depth, colour, rows, chunk(b"tRNS", transparent))
    found = decode(data, (1, 2), LIMIT)
    assert found[0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize(("height", "width"), [(5, 9), (300, 400)])
def test_png_colours_alike_in_upper_bytes_are_not_all_transparent(height: int, width: int) -> None:
    samples = np.full((height, width, 3), 99 * 256 + 1, np.uint16)
    samples[:, width // 2 :, 1] += 1
    rows = np.pad(samples.astype(">u2").view(np.uint8).reshape(height, -1), ((0, 0), (1, 0)))
    transparent = chunk(b"tRNS", samples[0, 0].astype(">u2").tobytes())
    data = png(width, height, 16, 2, rows.tobytes(), transparent)
    expected = np.full((height, width, 3), 255, np.uint8)
    expected[:, width // 2 :] = 99
    np.testing.assert_array_equal(decode(data, (height, width), LIMIT), expected)
    reduced = decode(data, (6, 8), LIMIT)
    assert (reduced[:, 0] == 255).all()
    assert (reduced[:, -1] == 99).all()


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    samples = (np.arange(1024, dtype=np.uint16) * 64).reshape(32, 32)
    for kind in ("PNG", "TIFF"):
        found = decode(encode(Image.fromarray(samples), kind), SIZE, LIMIT)
        np.testing.assert_array_equal(found[..., 1], samples >> 8)


def test_cmyk_is_converted_to_rgb(photo: Pixels) -> None:
    image = Image.fromarray(photo).convert("CMYK")
    expected = np.asarray(image.convert("RGB"), np.int16)
    np.testing.assert_array_equal(decode(encode(image, "TIFF"), SIZE, LIMIT), expected)
    found = decode(encode(image, "JPEG", quality=100, subsampling=0), SIZE, LIMIT)
    assert np.abs(found - expected).mean() < 3


@pytest.mark.parametrize(
    "brands", [b"heic", b"hevc", b"mif1heic", b"msf1hevcmif1", b"mif1", b"miafheic", b"MiHEmif1"]
)
def test_heic_is_named_with_what_is_read_instead(brands: bytes) -> None:
    body = b"ftyp" + brands[:4] + bytes(4) + brands
    data = struct.pack(">I", 4 + len(body)) + body + b"avif" + bytes(100)
    with pytest.raises(UnsupportedImage, match="HEIC is not read; send PNG, JPEG"):
        decode(data, SIZE, LIMIT)


@pytest.mark.parametrize("brand", [b"mif1", b"miaf", b"MA1A"])
def test_avif_whose_first_brand_is_another_is_read(photo: Pixels, brand: bytes) -> None:
    data = encode(photo, "AVIF", quality=90)
    assert data[8:12] == b"avif"
    assert b"avif" in data[16 : int.from_bytes(data[:4], "big")]
    general = data[:8] + brand + data[12:]
    np.testing.assert_array_equal(decode(general, SIZE, LIMIT), decode(data, SIZE, LIMIT))


ONE_COLOUR = np.full((16, 16, 3), 90, np.uint8)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (imagecodecs.jpegxl_encode(ONE_COLOUR), "JPEG XL"),
        (imagecodecs.jpegxl_encode(ONE_COLOUR, usecontainer=True), "JPEG XL"),
        (imagecodecs.jpeg2k_encode(ONE_COLOUR, codecformat="jp2"), "JPEG 2000"),
        (imagecodecs.jpeg2k_encode(ONE_COLOUR, codecformat="j2k"), "JPEG 2000"),
        (imagecodecs.jpegxr_encode(ONE_COLOUR), "JPEG XR"),
        (imagecodecs.qoi_encode(ONE_COLOUR), "QOI"),
        *(
            (encode(ONE_COLOUR, kind), name)
            for kind, name in [
                ("ICO", "ICO"),
                ("ICNS", "ICNS"),
                ("PPM", "Netpbm"),
                ("DDS", "DDS"),
                ("EPS", "PostScript"),
                ("PDF", "PDF"),
            ]
        ),
        (b"8BPS\0\1" + bytes(20), "PSD"),
        (b"gimp xcf v011\0", "XCF"),
        (b"<svg/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- by hand -->\n<svg width='9'>", "SVG"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"FUJIFILMCCD-RAW 0201", "Camera raw"),
        (b"IIRO\x08\0\0\0", "Camera raw"),
        (b"II*\0\x10\0\0\0CR\2\0", "Camera raw"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "Camera raw"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_format_is_named_with_what_is_read_instead(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImage, match=f"^{name} is not read; send PNG, JPEG, WebP, GIF, "):
        decode(data, SIZE, LIMIT)


def a_jpeg(photo: Pixels, at: int, replacement: bytes) -> bytes:
    """A JPEG in whose frame's header some bytes are others; `at` counts from the marker."""
    data = encode(photo, "JPEG")
    at += data.index(b"\xff\xc0")
    return data[:at] + replacement + data[at + len(replacement) :]


@pytest.mark.parametrize(
    ("at", "replacement", "kind"),
    [
        (1, b"\xc3", "lossless"),
        (1, b"\xc5", "hierarchical"),
        (1, b"\xcb", "lossless, arithmetic-coded"),
        (1, b"\xf7", "JPEG-LS"),
        (4, b"\x0c", "12-bit"),
        (5, b"\0\0", "of a height that stands behind its first scan"),
        (9, b"\2", "of 2 components"),
    ],
)
def test_jpeg_of_another_kind_is_named_with_what_to_send(
    photo: Pixels, at: int, replacement: bytes, kind: str
) -> None:
    with pytest.raises(UnsupportedImage) as caught:
        decode(a_jpeg(photo, at, replacement), SIZE, LIMIT)
    assert str(caught.value) == (
        f"JPEG image of this kind is not read: {kind}; convert it to PNG or to baseline JPEG"
    )


@pytest.mark.parametrize(
    "data",
    [
        imagecodecs.jpeg8_encode(np.zeros((32, 32, 3), np.uint16), bitspersample=12),
        imagecodecs.jpeg8_encode(np.zeros((32, 32, 3), np.uint8), lossless=True),
        imagecodecs.jpegls_encode(np.zeros((32, 32), np.uint8)),
    ],
    ids=["12-bit", "lossless", "JPEG-LS"],
)
def test_jpeg_of_another_kind_by_another_encoder_is_not_called_damaged(data: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="JPEG image of this kind is not read"):
        decode(data, SIZE, LIMIT)


# All are of the same grey ramp, made by libjpeg.
ARITHMETIC = {
    "last zeros left out": (
        "ffd8ffe000104a46494600010100000100010000ffdb004300010101010101010101010101010101010101010101"
        "01010101010101010101010101010101010101010101010101010101010101010101010101010101010101ffc900"
        "0b080008000801011100ffcc000600101005ffda0008010100003f00ff00d2657c604f42163a4f0292585107534a"
        "e5ffd9"
    ),
    "sequential": (
        "ffd8ffe000104a46494600010100000100010000ffdb004300020101010101020101010202020202040302020202"
        "0504040304060506060605060606070908060709070606080b08090a0a0a0a0a06080b0c0b0a0c090a0a0affc900"
        "0b080008000801011100ffcc000600101005ffda0008010100003f00ff00a51ced813d0859c442327a66f3c50cff"
        "d9"
    ),
    "progressive": (
        "ffd8ffe000104a46494600010100000100010000ffdb004300020101010101020101010202020202040302020202"
        "0504040304060506060605060606070908060709070606080b08090a0a0a0a0a06080b0c0b0a0c090a0a0affca00"
        "0b080008000801011100ffcc00040010ffda0008010100000001ff0048ffcc00041005ffda000801010001050215"
        "f7ef0e80ffcc00041005ffda0008010100063f0260084df0ffcc00041005ffda0008010100013f21aa4974ffda00"
        "08010100000010ffcc00041005ffda0008010100013f10d5c27343b4ffd9"
    ),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_coded_jpeg_is_read(name: str) -> None:
    found = decode(bytes.fromhex(ARITHMETIC[name]), (8, 8), LIMIT)
    assert np.abs(found[..., 0] - (20.0 + 3 * np.arange(64).reshape(8, 8))).max() <= 1


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_coded_jpeg_is_read_without_its_end(name: str) -> None:
    data = bytes.fromhex(ARITHMETIC[name])
    whole = decode(data, (8, 8), LIMIT)
    np.testing.assert_array_equal(decode(data[:-2], (8, 8), LIMIT), whole)


SCANS: list[dict[str, Any]] = [
    {},
    {"optimize": True},
    {"progressive": True},
    {"subsampling": 0},
    {"restart_marker_blocks": 2},
]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", SCANS)
@pytest.mark.parametrize("size", [(32, 32), (100, 75), (600, 450)])
def test_jpeg_that_lacks_only_its_end_is_read_with_a_warning(
    photo: Pixels, size: tuple[int, int], options: dict[str, Any], mode: str
) -> None:
    data = encode(Image.fromarray(photo).resize(size).convert(mode), "JPEG", **options)
    whole = decode(data, SIZE, LIMIT)
    assert warning_of(data) is None
    for end in (1, 2):
        np.testing.assert_array_equal(decode(data[:-end], SIZE, LIMIT), whole)
        assert warning_of(data[:-end]) == "the JPEG has no end marker; its pixels are all there"
        with pytest.raises(TooManyPixels):
            decode(data[:-end], SIZE, 1000)


@pytest.mark.parametrize("options", SCANS)
@pytest.mark.parametrize("size", [(32, 32), (100, 75), (600, 450)])
def test_jpeg_that_lacks_pixels_is_damaged(
    photo: Pixels, size: tuple[int, int], options: dict[str, Any]
) -> None:
    data = encode(Image.fromarray(photo).resize(size), "JPEG", quality=90, **options)
    whole = decode(data, SIZE, LIMIT)
    for missing in (*range(3, 100), len(data) // 4, len(data) // 2):
        for cut in (data[:-missing], data[:-missing] + b"\xff"):
            try:
                found = decode(cut, SIZE, LIMIT)
            except DamagedImage:
                continue
            # The last bytes may make no difference at the size of the model.
            assert missing < 8
            np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", SCANS)
@pytest.mark.parametrize("size", [(32, 32), (100, 75), (600, 450)])
def test_jpeg_whose_end_marker_was_put_back_is_damaged_too(
    photo: Pixels, size: tuple[int, int], options: dict[str, Any], mode: str
) -> None:
    image = Image.fromarray(photo).resize(size).convert(mode)
    data = encode(image, "JPEG", quality=90, **options)
    first = 0.5 if "progressive" in options else 0.75  # its last scans only hold finest bits
    for part in (first, first - 0.1, first - 0.2):
        cut = data[: int(part * len(data))].rstrip(b"\xff")
        for end in (b"\xff\xd9", b"\xff\xff\xd9"):
            with pytest.raises(DamagedImage):
                decode(cut + end, SIZE, LIMIT)


@pytest.mark.parametrize("size", [(64, 49), (49, 64), (49, 49), (50, 33)])
def test_jpeg_whose_last_pixel_mixes_colours_of_blocks_is_damaged_too(
    photo: Pixels, size: tuple[int, int]
) -> None:
    data = encode(Image.fromarray(photo).resize(size), "JPEG", quality=95, subsampling=2)
    for part in (0.8, 0.85, 0.9):
        cut = data[: int(part * len(data))].rstrip(b"\xff")
        with pytest.raises(DamagedImage, match="it ends before its last pixels"):
            decode(cut + b"\xff\xd9", SIZE, LIMIT)


def test_progressive_jpeg_of_a_part_of_its_first_scan_is_damaged(photo: Pixels) -> None:
    data = encode(Image.fromarray(photo).resize((64, 64)), "JPEG", progressive=True)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 1)
    first_end = data.rindex(b"\xff\xc4", 0, second)
    for missing in range(1, 30):
        with pytest.raises(DamagedImage, match="it ends before its last pixels"):
            decode(data[: first_end - missing] + b"\xff\xd9", SIZE, LIMIT)


@pytest.mark.parametrize("options", SCANS)
@pytest.mark.parametrize("length", [1, 2, 3, 100, 10_000])
def test_zeros_in_place_of_a_jpegs_pixels_are_no_pixels(
    photo: Pixels, options: dict[str, Any], length: int
) -> None:
    data = encode(Image.fromarray(photo).resize((100, 75)), "JPEG", quality=90, **options)
    filled = data[:-2] + bytes(length)
    np.testing.assert_array_equal(decode(filled, SIZE, LIMIT), decode(data, SIZE, LIMIT))
    for part in (0.5, 0.7, 0.9):
        with pytest.raises(DamagedImage):
            decode(data[: int(part * len(data))] + bytes(length), SIZE, LIMIT)


@pytest.mark.parametrize("grey", [128, 255])
def test_zeros_that_are_pixels_of_a_jpeg_are_read(photo: Pixels, grey: int) -> None:
    files = []
    for height in range(160, 800, 16):
        padded = Image.new("L", (32, height), grey)
        padded.paste(Image.fromarray(photo).convert("L"))
        files.append(encode(padded, "JPEG", optimize=True))
    with_zeros = [data for data in files if data[:-2].endswith(b"\0\0\0")]
    assert with_zeros
    for data in with_zeros:
        np.testing.assert_array_equal(decode(data[:-2], SIZE, LIMIT), decode(data, SIZE, LIMIT))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", SCANS)
def test_jpeg_that_ends_in_grey_is_read(photo: Pixels, options: dict[str, Any], mode: str) -> None:
    padded = photo.copy()
    padded[len(photo) // 2 :] = 128
    data = encode(Image.fromarray(padded).convert(mode), "JPEG", **options)
    whole = decode(data, SIZE, LIMIT)
    assert np.abs(whole[-4:].astype(int) - 128).max() <= 2
    for behind in (b"the end", data, b"\xff\xda", b"\xff\xda\0\x0c\xff", b"\xff\xda" * 20):
        np.testing.assert_array_equal(decode(data + behind, SIZE, LIMIT), whole)


def test_what_looks_like_scans_behind_the_end_costs_little_time(photo: Pixels) -> None:
    data = encode(photo, "JPEG")
    scan = b"\xff\xda\0\x0c\xff" + bytes(range(256)) + b"\0\xff\0" * 85
    began = time.process_time()
    decode(data + scan * 2000 + b"\xff\xd9", SIZE, LIMIT)
    assert time.process_time() - began < 0.5


def test_jpeg_that_lacks_pixels_from_a_restart_on_is_damaged(photo: Pixels) -> None:
    data = encode(Image.fromarray(photo).resize((100, 75)), "JPEG", restart_marker_blocks=2)
    restarts = [match.start() for match in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    assert len(restarts) > 16
    for at in restarts:
        with pytest.raises(DamagedImage, match="it ends before its last pixels"):
            decode(data[:at], SIZE, LIMIT)


def test_progressive_jpeg_that_lacks_scans_is_damaged(photo: Pixels) -> None:
    data = encode(photo, "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(scans) > 5
    for at in scans[1:]:
        with pytest.raises(DamagedImage, match="it ends before its last pixels"):
            decode(data[: data.rindex(b"\xff\xc4", 0, at)], SIZE, LIMIT)


def test_end_of_a_thumbnail_is_not_that_of_its_jpeg(photo: Pixels) -> None:
    exif = b"Exif\0\0" + encode(photo, "JPEG")
    data = encode(photo, "JPEG", exif=exif)
    assert warning_of(data) is None
    assert warning_of(data + b"more") is None
    assert warning_of(data[:-2]) is not None
    np.testing.assert_array_equal(decode(data[:-2], SIZE, LIMIT), decode(data, SIZE, LIMIT))


def test_jpeg_of_very_many_segments_is_not_read_without_its_end(photo: Pixels) -> None:
    data = encode(photo, "JPEG")[:-2]
    comments = b"\xff\xfe\0\2" * MAX_SEGMENTS_WITHOUT_END
    few = data[:2] + comments[: len(comments) // 2] + data[2:]
    assert warning_of(few) is not None
    assert decode(few, SIZE, LIMIT).shape == (32, 32, 3)
    many = data[:2] + comments + data[2:]
    assert warning_of(many) is None
    with pytest.raises(DamagedImage):
        decode(many, SIZE, LIMIT)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_have_no_warning(photo: Pixels, kind: str) -> None:
    assert warning_of(encode(photo, kind)) is None


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xda", b"\xff\xd8\xff" * 99])
def test_what_is_no_jpeg_has_no_warning(data: bytes) -> None:
    assert warning_of(data) is None


@pytest.mark.parametrize("size", [100, 4096])
def test_png_whose_pixels_were_changed_is_damaged(size: int) -> None:
    pixels = noise(32, 32)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    whole = zlib.compress(rows, 0)
    parts = [whole[:-4][at : at + size] for at in range(0, len(whole) - 4, size)] + [whole[-4:]]
    start = png(32, 32, 8, 2, b"")[:33]
    data = start + b"".join(chunk(b"IDAT", part) for part in parts) + chunk(b"IEND")
    np.testing.assert_array_equal(decode(data, SIZE, LIMIT), pixels)
    for at in range(len(start) + 4, len(data) - 16, 41):
        changed = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        with pytest.raises(DamagedImage):
            decode(changed, SIZE, LIMIT)


def test_png_of_apples_own_kind_is_named_with_what_to_send(photo: Pixels) -> None:
    data = encode(photo, "PNG")
    with pytest.raises(UnsupportedImage, match=r"Apple's own \(CgBI\); convert it to standard"):
        decode(data[:8] + chunk(b"CgBI", bytes(4)) + data[8:], SIZE, LIMIT)


def gif(frame: Image.Image, canvas: tuple[int, int], left: int, upper: int) -> bytes:
    """A GIF whose only frame lies at a place of a larger canvas."""
    data = encode(frame, "GIF")
    at = data.index(b"," + struct.pack("<HHHH", 0, 0, *frame.size))
    header = data[:6] + struct.pack("<HH", *canvas) + data[10 : at + 1]
    return header + struct.pack("<HH", left, upper) + data[at + 5 :]


@pytest.mark.parametrize("transparency", [None, 2])
@pytest.mark.parametrize("mode", ["P", "L"])
def test_part_of_a_gifs_canvas_without_a_frame_is_transparent(
    mode: str, transparency: int | None
) -> None:
    frame = Image.fromarray(noise(7, 9, 1) % 4, mode)
    if mode == "P":
        frame.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    if transparency is not None:
        frame.info["transparency"] = transparency
    found = decode(gif(frame, (20, 16), 5, 4), (16, 20), LIMIT)
    expected = Image.new("RGB", (20, 16), "white")
    expected.paste(frame.convert("RGBA"), (5, 4), frame.convert("RGBA"))
    np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("transparency", [None, 2])
@pytest.mark.parametrize("is_grey", [(False, True), (True, False), (False, False), (True, True)])
def test_gif_has_the_palette_of_its_first_frame(
    is_grey: tuple[bool, bool], transparency: int | None
) -> None:
    rng = np.random.default_rng(3)
    greys = np.repeat(np.arange(256), 3).reshape(256, 3)
    samples = rng.permutation(256).astype(np.uint8).reshape(16, 16)
    files, frames = (greys if grey else rng.integers(0, 256, (256, 3)) for grey in is_grey)
    options = {} if transparency is None else {"transparency": transparency}
    data = encode(Image.fromarray(samples), "GIF", **options)
    at = data.index(b"," + struct.pack("<HHHH", 0, 0, 16, 16)) + 9
    tables = [each.astype(np.uint8).tobytes() for each in (files, frames)]
    with_own_palette = bytes([data[at] | 0x87])
    frame = with_own_palette + tables[1] + data[at + 1 :]
    data = data[:13] + tables[0] + data[13 + 768 : at] + frame
    expected = frames[samples]
    expected[samples == (-1 if transparency is None else transparency)] = 255
    np.testing.assert_array_equal(decode(data, (16, 16), LIMIT), expected)


@pytest.mark.parametrize("alpha", [0, 0x10])
def test_part_of_a_webps_canvas_without_a_frame_is_transparent(alpha: int, photo: Pixels) -> None:
    def riff(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<I", len(body)) + body

    def numbers(*values: int) -> bytes:  # of 24 bits
        return b"".join(value.to_bytes(3, "little") for value in values)

    frame = numbers(8 // 2, 4 // 2, 32 - 1, 32 - 1, 100) + bytes(1)
    body = (
        b"WEBP"
        + riff(b"VP8X", bytes([2 | alpha, 0, 0, 0]) + numbers(60 - 1, 40 - 1))
        + riff(b"ANIM", bytes(6))
        + riff(b"ANMF", frame + encode(photo, "WEBP", lossless=True)[12:])
    )
    expected = np.full((40, 60, 3), 255, np.uint8)
    expected[4:36, 8:40] = photo
    np.testing.assert_array_equal(decode(riff(b"RIFF", body), (40, 60), LIMIT), expected)


def test_large_gif_with_a_small_frame_is_reduced_with_white_round_it() -> None:
    frame = Image.new("P", (500, 601))
    frame.putpalette([200, 0, 0])
    expected = Image.new("RGB", (1203, 1203), "white")
    expected.paste((200, 0, 0), (301, 299, 801, 900))
    reduced = np.asarray(expected.resize(SIZE, Image.Resampling.BICUBIC), np.int16)
    found = decode(gif(frame, (1203, 1203), 301, 299), SIZE, LIMIT)
    assert np.abs(found - reduced).max() <= 12
    assert np.abs(found - reduced).mean() < 1


def test_pillow_warnings_about_metadata_neither_escape_nor_refuse_the_picture() -> None:
    tags = {256: 2, 257: 1, 258: 8, 259: 1, 262: 1, 273: tiff_data_offset(9), 277: 1, 279: 2}
    entries = [(tag, 4, 1, value) for tag, value in tags.items()]
    # "Software", announced to be longer than the file.
    data = tiff([*entries, (305, 2, 60_000, 9)], bytes([7, 9]))
    assert decode(data, (1, 2), LIMIT)[0].tolist() == [[7] * 3, [9] * 3]


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_orientation_that_does_not_exist_is_left_alone(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = noise(20, 30)
    np.testing.assert_array_equal(
        decode(encode(picture, "PNG", exif=exif), (20, 30), LIMIT), picture
    )


def test_damaged_exif_does_not_refuse_a_sound_picture(photo: Pixels) -> None:
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {})):
            data = encode(photo, kind, exif=exif, **options)
            assert np.abs(decode(data, SIZE, LIMIT) - photo.astype(np.int16)).mean() < 12


def test_centre_of_a_wide_or_tall_image_is_kept() -> None:
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, :100], wide[:, 100:200], wide[:, 200:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    for picture in (wide, wide.transpose(1, 0, 2)):
        found = decode(encode(picture, "PNG"), SIZE, LIMIT)
        assert (found[2:-2, 2:-2] == (0, 255, 0)).all()


def test_centre_crop_takes_the_aspect_ratio_of_the_model() -> None:
    found = decode(encode(noise(60, 60), "PNG"), (10, 30), LIMIT)
    with Image.open(io.BytesIO(encode(noise(60, 60), "PNG"))) as image:
        expected = image.resize((30, 10), Image.Resampling.BICUBIC, box=(0, 20, 60, 40))
    assert found.shape == (10, 30, 3)
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_crop_of_any_size_lies_inside_the_image() -> None:
    """Rounding puts the box of 58x80 pixels for 224x224 a little outside."""
    for side in (28, 58, 80, 116, 253):
        for target in (28, 224, 299):
            found = decode(encode(noise(side, side + 1), "PNG"), (target, target), LIMIT)
            assert found.shape == (target, target, 3)


def test_small_image_is_enlarged() -> None:
    found = decode(encode(np.full((3, 3, 3), 77, np.uint8), "PNG"), SIZE, LIMIT)
    assert (found == 77).all()


def test_resampling_averages_what_a_pixel_covers() -> None:
    checks = np.indices((512, 512)).sum(0) % 2 * 255
    found = decode(encode(checks.astype(np.uint8), "PNG"), SIZE, LIMIT)
    assert np.abs(found.astype(int) - 127).max() <= 2


def test_reduced_decoding_of_a_large_jpeg_stays_close_to_the_full_one() -> None:
    rng = np.random.default_rng(0)
    scene = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    grain = rng.integers(-12, 13, (3000, 4000, 1), dtype=np.int16)
    pixels = np.asarray(scene.resize((4000, 3000), Image.Resampling.BICUBIC)) + grain
    data = encode(np.clip(pixels, 0, 255).astype(np.uint8), "JPEG", quality=85)
    with Image.open(io.BytesIO(data)) as image:
        full = image.resize(SIZE, Image.Resampling.BICUBIC, box=(500, 0, 3500, 3000))
    found = decode(data, SIZE, LIMIT).astype(np.int16)
    assert np.abs(found - np.asarray(full)).mean() <= 3


@pytest.mark.parametrize("size", [(1003, 700), (641, 1201), (833, 839), (515, 513)])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_reduced_to_the_same_part_whatever_its_size(
    mode: str, size: tuple[int, int]
) -> None:
    x, y = np.meshgrid(*(np.linspace(0, 9, side) for side in size))
    waves = np.stack([127 + 100 * np.sin((1 + each) * x) * np.cos(3 * y) for each in range(3)], -1)
    whole = Image.fromarray(np.round(waves).astype(np.uint8)).convert(mode)
    data = encode(whole, "JPEG", quality=95)
    side, left, top = min(size), (size[0] - min(size)) / 2, (size[1] - min(size)) / 2
    box = (left, top, left + side, top + side)
    expected = whole.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC, box=box)
    assert np.abs(decode(data, SIZE, LIMIT) - np.asarray(expected, np.int16)).mean() < 1.5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG",
        b"GIF",
        bytes(1000),
        b"<html>" + b" " * 2000 + b"<svg>",
        b"\0\0\0\x10ftypmp42",
    ],
)
def test_bytes_of_no_known_format_are_not_an_image(data: bytes) -> None:
    with pytest.raises(NotAnImage, match="PNG, JPEG, WebP"):
        decode(data, SIZE, LIMIT)


def test_pixel_limit_is_named_with_the_size() -> None:
    with pytest.raises(TooManyPixels) as caught:
        decode(png(30000, 30000, 8, 2, b""), SIZE, LIMIT)
    assert str(caught.value) == "image is 30000x30000 pixels; the limit is 40 megapixels"


def test_image_of_exactly_the_limit_is_decoded() -> None:
    data = encode(noise(40, 50), "PNG")
    assert decode(data, SIZE, 2000).shape == (32, 32, 3)
    with pytest.raises(TooManyPixels, match=r"image is 50x40 pixels; the limit is 0\.001999 mega"):
        decode(data, SIZE, 1999)


def test_formats_that_are_decoded_whole_have_their_own_limit() -> None:
    picture = noise(40, 50)
    assert decode(encode(picture, "JPEG"), SIZE, 2000, max_pixels_whole=1000).shape == (32, 32, 3)
    with pytest.raises(TooManyPixels, match=r"the limit is 0\.001 megapixels for PNG"):
        decode(encode(picture, "PNG"), SIZE, 2000, max_pixels_whole=1000)
    with pytest.raises(TooManyPixels, match="for progressive JPEG"):
        decode(encode(picture, "JPEG", progressive=True), SIZE, 2000, max_pixels_whole=1000)


def test_many_pixels_in_few_bytes_are_refused_with_both_numbers() -> None:
    data = encode(Image.new("RGBA", (1500, 1500)), "WEBP", lossless=True)
    with pytest.raises(TooManyPixels) as caught:
        decode(data, SIZE, LIMIT)
    assert str(caught.value) == (
        f"image is 1500x1500 pixels in {len(data)} bytes; "
        "above 2.1 megapixels at most 400 pixels a byte are decoded"
    )
    enough = data + bytes(1500 * 1500 // 400 + 1 - len(data))
    assert (decode(enough, SIZE, LIMIT) == 255).all()


def test_screen_of_one_colour_is_decoded_however_few_its_bytes() -> None:
    screen = Image.new("RGB", (1920, 1080), (30, 60, 120))
    for kind, options in (("PNG", {}), ("GIF", {}), ("WEBP", {"lossless": True})):
        assert (decode(encode(screen, kind, **options), SIZE, LIMIT) == (30, 60, 120)).all(), kind
    large = encode(screen.resize((3840, 2160)), "PNG")
    assert (decode(large, SIZE, LIMIT) == (30, 60, 120)).all()


@pytest.mark.parametrize("size", [(1000, 700), (701, 1003), (2300, 400)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_large_image_that_is_converted_in_strips_stays_close_to_the_whole_one(
    mode: str, size: tuple[int, int]
) -> None:
    picture = Image.fromarray(noise(9, 9, 4), "RGBA").resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        whole = picture.convert("L")
        stored = Image.fromarray(np.asarray(whole).astype(np.uint16) * 257)
    else:
        stored = whole = picture.convert(mode)
    data = encode(stored, "TIFF" if mode == "CMYK" else "PNG")
    rgba = whole.convert("RGB" if mode == "CMYK" else "RGBA").convert("RGBA")
    side, left, top = min(size), (size[0] - min(size)) / 2, (size[1] - min(size)) / 2
    box = (left, top, left + side, top + side)
    expected = over_white(np.asarray(rgba.resize(SIZE, Image.Resampling.BICUBIC, box=box)))
    assert np.abs(decode(data, SIZE, LIMIT) - expected).mean() < 1


def everything(photo: Pixels) -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = Image.fromarray(photo).convert("P")
    return {
        "png": encode(photo, "PNG", exif=exif),
        "png palette": encode(palette, "PNG", transparency=3),
        "jpeg": encode(photo, "JPEG", exif=exif),
        "progressive": encode(photo, "JPEG", progressive=True),
        "mpo": encode(photo, "MPO"),
        "webp": encode(noise(32, 32, 4), "WEBP", exif=exif),
        "webp lossless": encode(photo, "WEBP", lossless=True),
        "gif": encode(palette, "GIF", save_all=True, append_images=[palette, palette]),
        "bmp": encode(photo, "BMP"),
        "bmp palette": encode(palette, "BMP"),
        "tiff": encode(photo, "TIFF", exif=exif),
        "tiff lzw": encode(photo, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": encode(photo, "TIFF", compression="jpeg"),
        "bigtiff": encode(photo, "TIFF", big_tiff=True),
        "avif": encode(photo, "AVIF", exif=exif),
    }


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_truncated_image_is_damaged(photo: Pixels, kind: str) -> None:
    data = encode(photo, kind)
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(DamagedImage, match="damaged"):
            decode(data[: int(len(data) * part)], SIZE, LIMIT)


def test_only_image_errors_escape_from_mutated_files(
    photo: Pixels, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(20)
    for data in everything(photo).values():
        for _ in range(40):
            broken = bytearray(data[: rng.integers(1, len(data))] if rng.random() < 0.4 else data)
            # Most of what decides is in the headers.
            reach = min(len(broken), 200) if rng.random() < 0.7 else len(broken)
            for position in rng.integers(0, reach, rng.integers(0, 6)):
                broken[position] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
            with contextlib.suppress(ImageError):
                assert decode(bytes(broken), SIZE, LIMIT).shape == (32, 32, 3)
    # libtiff has lines of its own here, which nothing in Python can turn off.
    assert ".py:" not in capfd.readouterr().err


def test_truncation_at_every_offset_of_a_header_is_an_image_error(photo: Pixels) -> None:
    for data in everything(photo).values():
        for end in range(min(160, len(data))):
            with pytest.raises(ImageError):
                decode(data[:end], SIZE, LIMIT)


def jpeg_announcing(data: bytes, width: int, height: int) -> bytes:
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def bmp_of_runs(width: int, height: int, runs: bytes) -> bytes:
    """A run-length encoded BMP of 8 bits with a black palette."""
    offset = 54 + 4 * 256
    sizes = struct.pack("<IHHI", offset + len(runs), 0, 0, offset)
    header = struct.pack("<iiHHII", width, height, 1, 8, 1, len(runs))
    end = struct.pack("<iiII", 0, 0, 256, 0)
    return b"BM" + sizes + struct.pack("<I", 40) + header + end + bytes(4 * 256) + runs


@pytest.fixture(scope="module")
def hostile(photo: Pixels) -> dict[str, bytes]:
    """Files that cost far more than their length or their limits let expect."""
    megabyte = zlib.compress(bytes(1 << 20))
    rows = b"".join(b"\0" + row.tobytes() for row in photo)
    texts = [chunk(b"zTXt", b"%d\0\0" % index + megabyte) for index in range(60)]
    jpeg, gif, bmp = encode(photo, "JPEG"), encode(photo, "GIF"), encode(photo, "BMP")
    black = encode(Image.new("L", (2048, 2048)), "JPEG", progressive=True)
    last_scan = black[black.rindex(b"\xff\xda") : -2]
    tags = b"".join(struct.pack("<HHII", tag, 3, 1, 1) for tag in range(65535))
    exif = b"II*\0\x08\0\0\0\xff\xff" + tags + bytes(4)
    pieces = [exif[at : at + 65000] for at in range(0, len(exif), 65000)]
    segments = [b"\xff\xe1" + struct.pack(">H", len(p) + 8) + b"Exif\0\0" + p for p in pieces]
    lossless = bytearray(encode(photo, "WEBP", lossless=True))
    lossless[21:25] = struct.pack("<I", 0x0FFFFFFF)
    avif = bytearray(encode(photo, "AVIF"))
    at = avif.index(b"ispe") + 8
    avif[at : at + 8] = struct.pack(">II", 16000, 16000)
    return {
        "png 30000x30000": png(30000, 30000, 8, 2, bytes(10_000_000)),
        "png 25 megapixels": png(5000, 5000, 8, 2, bytes(15001 * 5000)),
        "png texts": png(32, 32, 8, 2, rows, *texts),
        "png texts at the end": png(32, 32, 8, 2, rows, after=b"".join(texts)),
        "png profiles": png(32, 32, 8, 2, rows, *[chunk(b"iCCP", b"p\0\0" + megabyte)] * 1000),
        "png empty chunks": png(32, 32, 8, 2, rows, chunk(b"abCd") * 800_000),
        "png empty data chunks": png(32, 32, 8, 2, rows, chunk(b"IDAT") * 800_000),
        "png of no size": png(0, 0, 8, 2, b""),
        "png exif": png(32, 32, 8, 2, rows, chunk(b"eXIf", exif)),
        "jpeg 65500x65500": jpeg_announcing(jpeg, 65500, 65500),
        "jpeg progressive 5000x5000": jpeg_announcing(black, 5000, 5000),
        "jpeg scans": black[:-2] + last_scan * 5000 + b"\xff\xd9",
        "jpeg comments": b"\xff\xd8" + b"\xff\xfe\0\x02" * 1_000_000 + jpeg[2:],
        "jpeg junk": b"\xff\xd8\xff" + bytes(5_000_000),
        "jpeg exif": b"\xff\xd8" + b"".join(segments) + jpeg[2:],
        "jpeg without an end": encode(noise(1300, 1600), "JPEG")[:-2],
        "jpeg without its last half": encode(noise(1300, 1600), "JPEG")[:400_000],
        "jpeg restarts without an end": jpeg[:-2] + b"\xff\xd0" * 500_000,
        **hostile_jpeg_segments(jpeg),
        "gif canvas": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "gif comments": gif[:13] + bytes(768) + b"!\xfe" + b"\x01a" * 2_000_000 + b"\0;",
        "webp canvas": bytes(lossless),
        "avif canvas": bytes(avif),
        "bmp run lengths": bmp_of_runs(2_000_000, 1, b"\1\1\0\0\0\1"),
        "bmp 60000x60000": bmp[:18] + struct.pack("<ii", 60000, 60000) + bmp[26:],
        **hostile_tiffs(),
        **{f"light {kind}": data for kind, data in flat(1449).items()},
        **{f"heavy {kind}": data for kind, data in flat(3535).items()},
    }


def hostile_jpeg_segments(jpeg: bytes) -> dict[str, bytes]:
    def before(marker: int, body: bytes, times: int) -> bytes:
        segment = struct.pack(">BBH", 255, marker, len(body) + 2) + body
        return jpeg[:2] + segment * times + jpeg[2:]

    resources, tables, components = b"8BIM" + bytes(8), b"\1" * 65, b"\1\x11\0"
    return {
        "jpeg exif in pieces": before(0xE1, b"Exif\0\0" + bytes(6400), 5000),
        "jpeg photoshop": before(0xED, b"Photoshop 3.0\0" + resources * 5000, 500),
        "jpeg tables": before(0xDB, tables * 1000, 500),
        "jpeg components": before(0xC0, b"\x08\0\x20\0\x20\3" + components * 20_000, 100),
        "jpeg segments": before(0xE5, b"", 1_000_000),
    }


def flat(side: int) -> dict[str, bytes]:
    """One colour, in the forms that cost the most memory beside their pixels."""
    size = (side, side)
    palette = chunk(b"PLTE", bytes(768)), chunk(b"tRNS", bytes(128))
    return {
        "png palette": png(*size, 8, 3, bytes((side + 1) * side), *palette),
        "png 16-bit": png(*size, 16, 0, bytes((2 * side + 1) * side)),
        "png rgba": png(*size, 8, 6, bytes((4 * side + 1) * side)),
        "png key": png(*size, 8, 2, bytes((3 * side + 1) * side), chunk(b"tRNS", bytes(6))),
        "gif": encode(Image.new("P", size), "GIF"),
        "webp": encode(Image.new("RGBA", size), "WEBP", lossless=True),
        "avif": encode(Image.new("RGB", size), "AVIF", speed=10),
        "tiff cmyk": encode(Image.new("CMYK", size), "TIFF", compression="tiff_adobe_deflate"),
        "jpeg": encode(Image.new("RGB", size), "JPEG", progressive=True),
    }


def hostile_tiffs() -> dict[str, bytes]:
    def tags(width: int, height: int, compression: int) -> list[tuple[int, int, int, int]]:
        values = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1}
        return [(tag, 4, 1, value) for tag, value in values.items()]

    strips = 500_000
    offset = tiff_data_offset(9)
    strip_tags = [(273, 4, strips, offset), (278, 4, 1, 1), (279, 4, strips, offset)]
    tile = zlib.compress(bytes(10_000 * 10_000))
    offset = tiff_data_offset(10)
    tile_tags = [(322, 4, 1, 10_000), (323, 4, 1, 10_000)]
    tile_tags += [(324, 4, 1, offset), (325, 4, 1, len(tile))]
    tiny = 85 * 85
    tiny_tags = [(322, 4, 1, 1), (323, 4, 1, 1), (324, 4, tiny, offset), (325, 4, tiny, offset)]
    whole = [(273, 4, 1, 8), (279, 4, 1, 100)]
    # Type 1 is bytes.
    byte_tags = [(322, 1, 4, 0), (323, 4, 1, 1_000_000_000), *tile_tags[2:]]
    return {
        "tiff 2^31 wide": tiff(tags(2**31 - 1, 2**31 - 1, 1) + whole),
        "tiff strips": tiff(tags(1, strips, 1) + strip_tags, bytes(4 * strips)),
        "tiff tile": tiff(tags(32, 32, 8) + tile_tags, tile),
        "tiff tiny tiles": tiff(tags(85, 85, 1) + tiny_tags, bytes(4 * tiny)),
        "tiff tile of bytes": tiff(tags(32, 32, 8) + byte_tags, tile),
        "tiff tags": tiff([(index, 4, 1, 1) for index in range(65_000)]),
    }


CHILD = """
import contextlib, gc, json, pathlib, sys, time, tracemalloc
from app.errors import ImageError
from app.images.decode import decode, warning_of

def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

def attempt(data):
    try:
        decode(data, (32, 32), 40_000_000, max_pixels_whole=12_500_000)
    except ImageError as error:
        return type(error).__name__
    return "decoded"

found = {}
paths = sorted(pathlib.Path(sys.argv[1]).iterdir())
attempt(paths[0].read_bytes())
for path in paths:
    data = path.read_bytes()
    gc.collect()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    times = []
    for _ in range(5):
        start = time.process_time()
        outcome = attempt(data)
        times.append(time.process_time() - start)
    resident = status("VmHWM") - before
    tracemalloc.start()
    attempt(data)
    allocated = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    found[path.name] = [outcome, min(times) * 1000, resident, allocated]
print(json.dumps(found))
"""
SOUND = "sound png"
Costs = dict[str, tuple[str, float, float, float]]

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
resets_peak = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="/proc/self/clear_refs, which resets the peak of memory, cannot be written here",
)


@pytest.fixture(scope="module")
def costs(hostile: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Costs:
    """Of each hostile file, and a sound one: the outcome, milliseconds of processor time, MiB, and
    Python's MiB."""
    folder = tmp_path_factory.mktemp("hostile")
    files = hostile | {SOUND: encode(noise(1449, 1449), "PNG")}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    command = [sys.executable, "-W", "error", "-c", CHILD, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    assert done.stderr == ""
    found: Costs = json.loads(done.stdout)
    assert found.keys() == files.keys()
    return found


@only_linux
def test_hostile_files_cost_little_time(costs: Costs) -> None:
    """Little is less than twice a sound PNG of two megapixels, on any machine."""
    limit = 2 * costs[SOUND][1]
    for name, (outcome, milliseconds, *_) in costs.items():
        # A sound file that brings its bytes is decoded, and may cost what a picture costs.
        if not (name.startswith("heavy") and outcome == "decoded"):
            assert milliseconds < limit, (name, outcome, milliseconds)


@only_linux
@resets_peak
def test_hostile_files_cost_little_memory(costs: Costs) -> None:
    for name, (outcome, _, resident, allocated) in costs.items():
        # 12.5 megapixels at four bytes are 48 MiB; nothing holds them twice.
        limit = 60 if name.startswith("heavy") else 50
        assert max(resident, allocated) < limit, (name, outcome, resident, allocated)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("png 30000x30000", TooManyPixels),
        ("png empty chunks", DamagedImage),
        ("png of no size", DamagedImage),
        ("jpeg 65500x65500", TooManyPixels),
        ("jpeg scans", DamagedImage),
        ("jpeg comments", DamagedImage),
        ("jpeg junk", DamagedImage),
        ("jpeg tables", DamagedImage),
        ("jpeg components", DamagedImage),
        ("jpeg segments", DamagedImage),
        ("bmp run lengths", UnsupportedImage),
        ("gif canvas", TooManyPixels),
        ("gif comments", DamagedImage),
        ("tiff tiny tiles", DamagedImage),
        ("webp canvas", TooManyPixels),
        ("avif canvas", TooManyPixels),
        ("bmp 60000x60000", TooManyPixels),
        ("tiff 2^31 wide", TooManyPixels),
        ("tiff strips", DamagedImage),
        ("tiff tile", TooManyPixels),
        ("tiff tags", DamagedImage),
        ("heavy webp", TooManyPixels),
        ("heavy avif", TooManyPixels),
        ("heavy gif", TooManyPixels),
        ("heavy png palette", TooManyPixels),
        ("heavy png 16-bit", TooManyPixels),
    ],
)
def test_hostile_file_is_refused_for_what_it_is(
    hostile: dict[str, bytes], name: str, error: type[ImageError]
) -> None:
    with pytest.raises(error):
        decode(hostile[name], SIZE, LIMIT)


@pytest.mark.parametrize(
    "name",
    [
        *("png texts", "png texts at the end", "png profiles", "png exif"),
        *("jpeg exif", "jpeg exif in pieces", "jpeg photoshop"),
    ],
)
def test_large_metadata_does_not_refuse_a_sound_picture(
    photo: Pixels, hostile: dict[str, bytes], name: str
) -> None:
    found = decode(hostile[name], SIZE, LIMIT)
    assert np.abs(found - photo.astype(np.int16)).mean() < 12


def test_nothing_is_decoded_before_the_pixel_limit_is_checked(
    photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PlainPng, "decode", forbidden)
    for name in {
        "PNG",
        "JPEG",
        "WebP",
        "GIF",
        "BMP",
        "TIFF",
        "AVIF",
    } & decode_module._READERS.keys():
        monkeypatch.setattr(decode_module._READERS[name], "load", forbidden)
        with pytest.raises(TooManyPixels, match="image is 32x32 pixels"):
            decode(encode(photo, name.upper()), SIZE, 1000)
