"""Every carrier of an orientation in every format that has it; the pixels are known."""

import io
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from app.images.decode import decode
from app.images.raw_profile import KEYWORD, MAX_TEXT_BYTES, exif_of
from tests.support.pictures import chunk, turned

LIMIT = 1_000_000

# Blocks of 8 pixels, so that lossy formats keep the corners apart.
PICTURE = np.zeros((32, 48, 3), np.uint8)
PICTURE[:8, :8], PICTURE[:8, -8:], PICTURE[-8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def upright(orientation: int) -> NDArray[np.int16]:
    picture = Image.fromarray(PICTURE)
    picture.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(picture), np.int16)


def encode(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, kind, **options)
    return file.getvalue()


def raw_profile(exif: bytes) -> bytes:
    """The text of ImageMagick: 36 bytes a line."""
    digits = exif.hex().encode()
    lines = [digits[at : at + 72] for at in range(0, len(digits), 72)]
    return b"\nexif\n%8d\n" % len(exif) + b"\n".join(lines) + b"\n"


def texts(text: bytes) -> dict[str, tuple[bytes, bytes]]:
    """Kinds and contents of the chunks in which a PNG may have a text."""
    compressed = zlib.compress(text)
    return {
        "tEXt": (b"tEXt", KEYWORD + text),
        "zTXt": (b"zTXt", KEYWORD + b"\0" + compressed),
        "iTXt": (b"iTXt", KEYWORD + b"\0\0en\0Rohprofil\0" + text),
        "iTXt, compressed": (b"iTXt", KEYWORD + b"\1\0\0\0" + compressed),
    }


def with_text(form: str, exif: bytes, *, at_end: bool) -> bytes:
    png = encode("PNG")
    at = len(png) - 12 if at_end else 33
    return png[:at] + chunk(*texts(raw_profile(exif))[form]) + png[at:]


def carriers(orientation: int) -> dict[str, bytes]:
    """The picture in files that carry an orientation, each in its own way."""
    exif, reversed_exif = turned(orientation).tobytes(), big_endian(orientation).tobytes()
    plain = exif.removeprefix(b"Exif\0\0")
    return {
        **{kind: encode(kind, exif=exif) for kind in ("PNG", "TIFF", "JPEG", "MPO", "AVIF")},
        "big-endian JPEG": encode("JPEG", exif=reversed_exif),
        "big-endian TIFF": encode("TIFF", exif=reversed_exif),
        "compressed TIFF": encode("TIFF", exif=exif, compression="tiff_lzw"),
        "BigTIFF": encode("TIFF", exif=exif, big_tiff=True),
        "WebP": encode("WEBP", lossless=True, exif=exif),
        "big-endian WebP": encode("WEBP", lossless=True, exif=reversed_exif),
        "WebP without a prefix": encode("WEBP", lossless=True, exif=plain),
        "PNG, eXIf at the end": exif_at_end(encode("PNG", exif=exif)),
        **{f"PNG, {form}": with_text(form, exif, at_end=False) for form in texts(b"")},
        **{f"PNG, {form} at the end": with_text(form, exif, at_end=True) for form in texts(b"")},
        "PNG, tEXt without a prefix": with_text("tEXt", plain, at_end=False),
    }


def big_endian(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif.endian = ">"
    exif[0x0112] = orientation
    return exif


def exif_at_end(png: bytes) -> bytes:
    at = png.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(png[at : at + 4], "big")
    return png[:at] + png[end:-12] + png[at:end] + png[-12:]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_whatever_carries_it(orientation: int) -> None:
    expected = upright(orientation)
    for name, data in carriers(orientation).items():
        found = decode(data, (expected.shape[0], expected.shape[1]), LIMIT)
        is_lossy = name.endswith(("JPEG", "MPO", "AVIF"))
        assert np.abs(found - expected).mean() < (6 if is_lossy else 0.01), name


@pytest.mark.parametrize("form", texts(b""))
def test_text_gives_the_content_of_a_chunk_of_exif(form: str) -> None:
    exif = turned(6).tobytes()
    assert exif_of(*texts(raw_profile(exif))[form]) == exif.removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("at_end", [False, True])
def test_exif_in_a_chunk_of_its_own_counts_more_than_one_in_a_text(at_end: bool) -> None:
    png = encode("PNG", exif=turned(3))
    at = len(png) - 12 if at_end else 33
    text = chunk(*texts(raw_profile(turned(6).tobytes()))["tEXt"])
    found = decode(png[:at] + text + png[at:], (32, 48), LIMIT)
    np.testing.assert_array_equal(found, upright(3))


def test_orientation_in_xmp_is_not_applied() -> None:
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    )
    xmp += (
        b'syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation='
    )
    xmp += b'"6"/></rdf:RDF></x:xmpmeta>'
    png = encode("PNG")
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    for data in (png[:33] + text + png[33:], encode("WEBP", lossless=True, xmp=xmp)):
        np.testing.assert_array_equal(decode(data, (32, 48), LIMIT), PICTURE)
    found = decode(encode("JPEG", xmp=xmp), (32, 48), LIMIT)
    assert np.abs(found - PICTURE.astype(np.int16)).mean() < 6


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"tEXt", b""),
        (b"tEXt", b"\nexif\n"),
        (b"tEXt", b"\nexif\n  4\nnothing"),
        (b"tEXt", b"\nexif\n  4\n123"),
        (b"zTXt", b""),
        (b"zTXt", b"\0not deflate"),
        (b"iTXt", b"\1\0"),
        (b"iTXt", b"\0\0\0"),
    ],
)
def test_broken_text_does_not_refuse_a_sound_picture(kind: bytes, content: bytes) -> None:
    png = encode("PNG")
    data = png[:33] + chunk(kind, KEYWORD + content) + png[33:]
    np.testing.assert_array_equal(decode(data, (32, 48), LIMIT), PICTURE)


def test_text_is_inflated_up_to_the_limit_and_once() -> None:
    text = b"\nexif\n 9\n" + b"41" * 50_000_000
    exif = exif_of(*texts(text)["zTXt"])
    assert 60_000 < len(exif) < MAX_TEXT_BYTES / 2
    assert set(exif) == {0x41}
    bombs = chunk(*texts(text)["zTXt"])[:150_000]
    png = encode("PNG")
    own = chunk(*texts(raw_profile(turned(6).tobytes()))["tEXt"])
    found = decode(png[:33] + own + bombs + png[33:], (48, 32), LIMIT)
    np.testing.assert_array_equal(found, upright(6))
