"""app.images.jpeg and app.images.png on files whose segments and chunks are known."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from app.errors import DamagedImage
from app.images.decode import decode
from app.images.jpeg import MAX_JPEG_TABLE_BYTES, without_jpeg_metadata
from app.images.limits import MAX_PIECES
from app.images.png import without_png_metadata
from tests.support.pictures import as_file, turned

PIXELS = np.random.default_rng(7).integers(0, 256, (32, 48, 3), dtype=np.uint8)
LIMIT = 40_000_000


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 255, marker, len(body) + 2) + body


def after_start(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def photograph() -> bytes:
    """A JPEG with what cameras and editors add: it is to be turned by its EXIF."""
    profile = [b"ICC_PROFILE\0" + bytes([part, 9]) + bytes(65_000) for part in range(1, 10)]
    pages = [b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000)] * 50
    return after_start(
        as_file(PIXELS, "JPEG", exif=turned(6), comment=b"by hand"),
        *(segment(0xE1, page) for page in [b"http://ns.adobe.com/xap/1.0/\0<x/>", *pages]),
        *(segment(0xE2, part) for part in [*profile, b"MPF\0" + bytes(80)]),
        segment(0xED, b"Photoshop 3.0\0" + bytes(100)),
    )


def test_photograph_keeps_its_pixels_and_its_orientation_but_not_what_was_added() -> None:
    data, plain = photograph(), as_file(PIXELS, "JPEG", exif=turned(6))
    with Image.open(io.BytesIO(plain)) as image:
        expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(decode(data, (48, 32), LIMIT), expected)
    assert without_jpeg_metadata(data) == plain == without_jpeg_metadata(plain)


def test_jpeg_of_another_colour_space_keeps_the_segment_that_says_so() -> None:
    data = as_file(PIXELS, "JPEG", keep_rgb=True, quality=100)
    # The names of its channels would say it too.
    data = data.replace(b"R\x11\0G\x11\0B\x11", b"\1\x11\0\2\x11\0\3\x11")
    data = data.replace(b"R\0G\0B\0", b"\1\0\2\0\3\0")
    found = decode(data, (32, 48), LIMIT)
    assert np.abs(found - PIXELS.astype(np.int16)).max() <= 4


@pytest.mark.parametrize("junk", [b"\0\1\2", b"\xff\0", b"\xff", b"\xff" * 5 + b"\0\xff\0"])
def test_junk_between_segments_hides_none_of_them(junk: bytes) -> None:
    plain = as_file(PIXELS, "JPEG")
    comment = segment(0xFE, b"\xff\xda\xff")
    assert without_jpeg_metadata(after_start(plain, junk, comment, junk)) == plain


def test_jpeg_tables_up_to_the_limit_are_kept() -> None:
    plain = as_file(PIXELS, "JPEG")
    restart = segment(0xDD, bytes(2))
    most = (MAX_JPEG_TABLE_BYTES - len(plain[: plain.index(b"\xff\xda")])) // len(restart)
    assert decode(after_start(plain, restart * most), (32, 48), LIMIT).shape == (32, 48, 3)
    with pytest.raises(DamagedImage, match="bytes of tables or more; the limit is 16384 bytes"):
        decode(after_start(plain, restart * (most + 10)), (32, 48), LIMIT)


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("marker", [0xDC, 0xE1, 0xDA])
def test_segment_shorter_than_its_length_hides_none(marker: int, length: int) -> None:
    hiding = struct.pack(">BBH", 255, marker, length) + segment(0xDA, bytes(8))
    with pytest.raises(DamagedImage, match=f"a segment's length is {length}, not 2 or more"):
        decode(after_start(as_file(PIXELS, "JPEG"), hiding), (32, 48), LIMIT)


@pytest.mark.parametrize("end", [2, 3, 5, 100, 300])
def test_jpeg_without_a_scan_is_damaged(end: int) -> None:
    with pytest.raises(DamagedImage, match="it ends before its first scan"):
        without_jpeg_metadata(as_file(PIXELS, "JPEG")[:end])


def test_png_keeps_its_exif_but_not_its_texts() -> None:
    plain = as_file(PIXELS, "PNG", exif=turned(3))
    text = struct.pack(">I4s", 5, b"tEXt") + b"a\0bcd" + bytes(4)
    assert without_png_metadata(plain[:33] + text * 100 + plain[33:]) == plain


def test_png_of_as_many_chunks_as_the_limit_is_kept() -> None:
    plain = as_file(PIXELS, "PNG")
    empty = struct.pack(">I4s", 0, b"abCd") + bytes(4)
    with_header_data_and_end = plain[:33] + empty * (MAX_PIECES - 3) + plain[33:]
    assert without_png_metadata(with_header_data_and_end) == plain
    with pytest.raises(DamagedImage, match="PNG image is made of more than 20000 chunks"):
        without_png_metadata(plain[:33] + empty + with_header_data_and_end[33:])


def test_file_without_metadata_is_not_copied() -> None:
    png, jpeg = as_file(PIXELS, "PNG", exif=turned(3)), as_file(PIXELS, "JPEG", exif=turned(6))
    assert without_png_metadata(png) is png
    assert without_jpeg_metadata(jpeg) is jpeg
