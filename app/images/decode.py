"""Bytes of an image file to the pixels that a model takes: uint8 `[H,W,3]`, RGB.

It reads PNG, JPEG (including MPO), WebP, GIF, BMP, TIFF and, if Pillow was built with it, AVIF; of
an animation it reads the first frame. The bytes come from strangers. All of Pillow's errors are
translated here, sizes are checked in the header before anything is decoded, metadata that can cost
more than the pixels never reaches Pillow, and no decoder in Python is used. `png`, `jpeg`, `tiff`
and `bmp` refuse by name the kinds of a format that Pillow reads wrongly or calls damaged.

Colour is not managed: samples count as sRGB, as they do in training, and embedded profiles are not
applied. Resource limits are the constants of this module, `limits`, `jpeg`, `tiff` and
`raw_profile`.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.AvifImagePlugin import SUPPORTED as AVIF_SUPPORTED
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as ExifTag
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app.errors import DamagedImage, ImageError, NotAnImage, TooManyPixels, UnsupportedImage
from app.images import RgbImage
from app.images.bmp import check_bmp
from app.images.jpeg import (
    JPEG_END,
    jpeg_has_all_scans,
    jpeg_lacks_end,
    without_jpeg_metadata,
)
from app.images.limits import MAX_PIECES, megapixels
from app.images.plain_png import PlainPng
from app.images.png import without_png_metadata
from app.images.samples import eight_bit
from app.images.tiff import check_tiff

LIGHT_PIXELS = 2_100_000
"""Images up to this size, a screen of 1920x1080, are decoded however few bytes they have."""

MAX_PIXELS_A_BYTE = 400
"""The most pixels for each byte of a larger image. Flat screenshots and blurred skies have up to
300; decompression bombs have 1000 and more."""

MAX_JPEG_SCANS = 50
"""The most scans of a JPEG; about ten are usual. Even a short scan makes the decoder visit all
pixels."""

MAX_EXIF_BYTES = 65_536
"""The most bytes of EXIF that are read: the size of a JPEG segment."""

MAX_BRAND_BYTES = 256
"""The most bytes in which the brands of a HEIF or AVIF are looked for; about thirty are usual."""

_SIGNATURE = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<WebP>RIFF.{4}WEBP)"
    rb"|(?P<GIF>GIF8[79]a)|(?P<BMP>BM)|(?P<TIFF>II[*+]\0|MM\0[*+])"
    rb"|(?P<AVIF>.{4}ftypavi[fs])|(?P<HEIC>.{4}ftyp(?:hei|hev|mif1|msf1))",
    re.DOTALL,
)

_WEBP_ANIMATION, _WEBP_ALPHA = 0x02, 0x10  # in the chunk VP8X

# Begins with 101, where libjpeg fills up with zeros, so that it means other samples in any Huffman
# code; as long as the ten blocks that libjpeg decodes at a time can be.
_FILLING = bytes((0xA5 + 7 * index) % 0xFB for index in range(4096))
_CHECKED_ROWS = 64

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Hides Pillow's warnings about metadata that is not used here. This is the filter as `warnings`
# stores it.
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class _Source(io.BytesIO):
    """A file that limits the number of reads, because Pillow reads headers record by record."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_PIECES:
            raise DamagedImage(f"image is made of more than {MAX_PIECES} pieces")
        return super().read(size)


class _JpegReader(JpegImageFile):
    """Skips the resolution, for which Pillow would read all of the EXIF, however long."""

    def _read_dpi_from_exif(self) -> None:
        pass


# Files are opened by class, because `Image.open` applies limits of its own, for the whole process,
# and raises before it reports the image's size.
_READERS: dict[str, type[ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": _JpegReader,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
} | ({"AVIF": AvifImageFile} if AVIF_SUPPORTED else {})


def is_bounded(data: bytes) -> bool:
    """Return whether few bytes and pixels mean little time, and `warning_of` has nothing to say.

    A TIFF's strips may be very many, and a JPEG without an end is decoded twice.
    """
    return data.startswith(b"\x89PNG") or not (
        data.startswith((b"II", b"MM"))
        or (data.startswith(b"\xff\xd8") and not data.endswith(JPEG_END))
    )


def warning_of(data: bytes) -> str | None:
    """Return the fault of a file that `decode` reads all the same; None for most files."""
    return "the JPEG has no end marker; its pixels are all there" if jpeg_lacks_end(data) else None


def decode(
    data: bytes, size: tuple[int, int], max_pixels: int, *, max_pixels_whole: int | None = None
) -> RgbImage:
    """Decode an image file to the size that a model takes.

    The image is rotated by its EXIF orientation (one in XMP alone is not read) and cropped to the
    largest centred part with the model's aspect ratio. That part is resampled with an antialiased
    bicubic filter (as torchvision's presets crop and timm's resample). Transparency is composited
    over white; 16-bit samples keep their upper 8 bits. An image of the model's size keeps its
    pixels exactly. An image of more than `LIGHT_PIXELS` needs a byte for every `MAX_PIXELS_A_BYTE`
    pixels, so that the bytes a sender spends bound the work spent on them. A JPEG that lacks only
    its end marker is read, as browsers do; `warning_of` tells.

    Args:
        data: the file's bytes.
        size: height and width in pixels of the result.
        max_pixels: the most pixels that the header may announce.
        max_pixels_whole: the same limit for images that must be held whole because they cannot be
            reduced while they are decoded: all but sequential JPEGs. Defaults to `max_pixels`.

    Returns:
        Read-only uint8 `[H,W,3]`, RGB.

    Raises:
        NotAnImage: the data do not start like any known format.
        DamagedImage: the data are cut short, broken, or made of too many pieces.
        UnsupportedImage: HEIC, or a kind of TIFF, BMP, JPEG or PNG that is not known to be read
            right; the message names it.
        TooManyPixels: the header announces more than the limits; nothing was decoded.
    """
    whole = max_pixels_whole or max_pixels

    def fit(kind: str) -> RgbImage:
        return _fit(_load(kind, data, max(size), max_pixels, whole), size)

    return _translated(data, whole, fit)


def decode_whole(
    data: bytes, longest: int, max_pixels: int, *, max_pixels_whole: int | None = None
) -> RgbImage:
    """Decode a whole image file for display, not only the part that a model sees.

    Args:
        data: the file's bytes.
        longest: the longer side in pixels to which a larger image is reduced.
        max_pixels: as for `decode`.
        max_pixels_whole: likewise.

    Returns:
        Read-only uint8 `[height,width,3]`, RGB, rotated by its EXIF orientation.

    Raises:
        ImageError: as `decode` does.
    """
    whole = max_pixels_whole or max_pixels

    def fit(kind: str) -> RgbImage:
        loaded = _load(kind, data, longest, max_pixels, whole)
        width, height = loaded.extent
        scale = min(1.0, longest / max(width, height))
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        return _fit(loaded, size[::-1] if loaded.orientation >= 5 else size, crop=False)

    return _translated(data, whole, fit)


class _Loaded(NamedTuple):
    """A decoded image before it is rotated.

    `extent` is its width and height, fractional if it was reduced while it was decoded.
    """

    image: Image.Image
    extent: tuple[float, float]
    orientation: int


def _translated(data: bytes, max_pixels: int, read: Callable[[str], RgbImage]) -> RgbImage:
    """Call `read` with the file's format, and translate Pillow's errors."""
    match = _SIGNATURE.match(data)
    kind = match.lastgroup if match else None
    if kind == "HEIC" and {b"avif", b"avis"} & _brands(data):
        kind = "AVIF"
    if kind is None:
        raise NotAnImage(f"not an image in a known format: {', '.join(_READERS)}")
    if kind not in _READERS:
        raise UnsupportedImage(f"{kind} is not read; send {', '.join(_READERS)}")
    try:
        return read(kind)
    except ImageError:
        raise
    except Image.DecompressionBombError as exc:  # raised before Pillow says how large it is
        limit = megapixels(max_pixels)
        raise TooManyPixels(f"{kind} image is far over the limit of {limit}") from exc
    except Exception as exc:  # Pillow documents no list of what its decoders raise
        raise DamagedImage(f"{kind} image is damaged: {exc or type(exc).__name__}") from exc


def _brands(data: bytes) -> set[bytes]:
    """Return the compatible brands of a file that begins with a box `ftyp` (ISO 14496-12, 4.3)."""
    end = min(int.from_bytes(data[:4], "big"), MAX_BRAND_BYTES)
    return {data[at : at + 4] for at in range(16, end, 4)}


def _load(kind: str, data: bytes, side: int, max_pixels: int, max_pixels_whole: int) -> _Loaded:
    """Decode an image that will be resampled to `side` pixels on its longer side."""
    what = f" for {'progressive JPEG' if kind == 'JPEG' else kind}"
    what = what if max_pixels_whole < max_pixels else ""
    if kind == "PNG" and (png := PlainPng.find(data)):
        size = png.width, png.height
        _check_pixels(size, len(data), max_pixels_whole, what)
        return _Loaded(png.decode(), size, orientation=1)
    # The filter stays, because `warnings.catch_warnings` is not safe between threads.
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    if kind == "JPEG" and jpeg_lacks_end(data):
        return _load_without_end(data, side, max_pixels, max_pixels_whole)
    data = _prepared(kind, data, max_pixels_whole)
    # Each piece takes a byte, so a short file has few. The pieces of a TIFF may overlap.
    source = io.BytesIO(data) if len(data) <= MAX_PIECES and kind != "TIFF" else _Source(data)
    image = _READERS[kind](source)
    if isinstance(image, JpegImageFile) and _is_sequential(image, data[: source.tell()]):
        _check_pixels(image.size, len(data), max_pixels)
    else:
        _check_pixels(image.size, len(data), max_pixels_whole, what)
        _check_passes(image, data)
    # libjpeg reduces with a box filter. Twice the target leaves enough for the bicubic one.
    image.draft(None, (2 * side, 2 * side))
    if kind == "JPEG":
        image.decodermaxblock = len(data)  # a file that is read at once is not copied
    image.load()
    picture, factor = eight_bit(image, data, 3 * side)
    # Pillow rotates a TIFF when it loads it, and leaves no EXIF in `info`.
    orientation = _orientation(image.info["exif"]) if "exif" in image.info else 1
    return _Loaded(picture, (image.width / factor, image.height / factor), orientation)


def _prepared(kind: str, data: bytes, max_pixels_whole: int) -> bytes:
    """Return what Pillow shall read of a file; refuse a kind that it does not read right."""
    match kind:
        case "PNG":
            return without_png_metadata(data)
        case "JPEG":
            return without_jpeg_metadata(data)
        case "WebP":
            return _with_transparency(data)
        case "BMP":
            check_bmp(data)
        case "TIFF":
            check_tiff(data, max_pixels_whole)
    return data


def _with_transparency(data: bytes) -> bytes:
    """Return an animated WebP that says that it has transparency.

    What its first frame leaves of the canvas is transparent in any case, but Pillow forgets it if
    the file does not say so.
    """
    flags = data[20] if data[12:16] == b"VP8X" and len(data) > 20 else 0
    if flags & _WEBP_ANIMATION and not flags & _WEBP_ALPHA:
        return b"".join([data[:20], bytes([flags | _WEBP_ALPHA]), memoryview(data)[21:]])
    return data


def _load_without_end(data: bytes, side: int, max_pixels: int, max_pixels_whole: int) -> _Loaded:
    """Decode a JPEG that lacks its end marker, and none of its pixels.

    libjpeg fills up what is missing without a word. So the file is decoded twice, with other bytes
    in place of what may be missing: pixels that depend on them are not in the file. After those
    bytes comes the restart marker that is due, because libjpeg looks for it where it lacks one.
    """

    def load(filling: bytes) -> _Loaded:
        ended = data.rstrip(b"\xff") + filling + JPEG_END
        return _load("JPEG", ended, side, max_pixels, max_pixels_whole)

    scan = data.rindex(b"\xff\xda")
    restarts = [data.rfind(bytes([0xFF, 0xD0 + each]), scan) for each in range(8)]
    due = (restarts.index(max(restarts)) + 1) % 8 if max(restarts) > 0 else 0
    expected = _checksum(load(b"").image)
    loaded = load(_FILLING + bytes([0xFF, 0xD0 + due]) + _FILLING)
    if _checksum(loaded.image) != expected or not jpeg_has_all_scans(data):
        raise DamagedImage("JPEG image is damaged: it ends before its last pixels")
    return loaded


def _checksum(image: Image.Image) -> int:
    """Return a checksum of the pixels, made strip by strip because a copy takes memory."""
    checksum = 0
    for top in range(0, image.height, _CHECKED_ROWS):
        bottom = min(top + _CHECKED_ROWS, image.height)
        strip = image.crop((0, top, image.width, bottom))
        checksum = zlib.crc32(strip.tobytes(), checksum)
    return checksum


def _is_sequential(image: JpegImageFile, before_scan: bytes) -> bool:
    """Whether one scan holds the whole image, so that libjpeg does not keep the coefficients."""
    header = struct.pack(">HB", 6 + 2 * image.layers, image.layers)
    return "progressive" not in image.info and before_scan[-6 - 2 * image.layers :][:3] == header


def _check_pixels(size: tuple[int, int], weight: int, limit: int, what: str = "") -> None:
    width, height = size
    if width * height > limit:
        raise TooManyPixels(
            f"image is {width}x{height} pixels; the limit is {megapixels(limit)}{what}"
        )
    if width * height > max(LIGHT_PIXELS, weight * MAX_PIXELS_A_BYTE):
        raise TooManyPixels(
            f"image is {width}x{height} pixels in {weight} bytes; above "
            f"{megapixels(LIGHT_PIXELS)} at most {MAX_PIXELS_A_BYTE} pixels a byte are decoded"
        )


def _check_passes(image: ImageFile, data: bytes) -> None:
    """Refuse files that make a decoder visit far more pixels than the image has."""
    if isinstance(image, JpegImageFile):
        scans = data.count(b"\xff\xda")
        if scans > MAX_JPEG_SCANS:
            raise DamagedImage(f"JPEG image has {scans} scans; the limit is {MAX_JPEG_SCANS}")


def _orientation(exif: bytes) -> int:
    tags = Image.Exif()
    try:
        tags.load(exif[:MAX_EXIF_BYTES])
        orientation = tags.get(ExifTag.Orientation)
    except Exception:  # noqa: BLE001 - damaged EXIF means no orientation
        return 1
    return orientation if orientation in _TRANSPOSES else 1


def _fit(loaded: _Loaded, size: tuple[int, int], *, crop: bool = True) -> RgbImage:
    """Crop, resample, composite over white and rotate: uint8 `[H,W,3]`."""
    image, extent, orientation = loaded
    height, width = size
    stored = (height, width) if orientation >= 5 else (width, height)
    if image.size != stored:
        box = central_box(extent, stored) if crop else (0.0, 0.0, *extent)
        image = image.resize(stored, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    if image.mode in {"LA", "RGBA"}:
        white = Image.new("RGB", stored, "white")
        white.paste(image.convert("RGB"), mask=image.getchannel("A"))
        image = white
    if orientation in _TRANSPOSES:
        image = image.transpose(_TRANSPOSES[orientation])
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, 3)


def central_box(
    size: tuple[float, float], target: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return the part of an image that `decode` keeps.

    Args:
        size: width and height of the image.
        target: width and height of the model's input.

    Returns:
        The largest centred box of the target's aspect ratio: left, upper, right, lower.
    """
    scale = min(size[0] / target[0], size[1] / target[1])
    # Rounding can make one of them a little less than 0, which Pillow does not take.
    left = max((size[0] - target[0] * scale) / 2, 0.0)
    upper = max((size[1] - target[1] * scale) / 2, 0.0)
    return left, upper, size[0] - left, size[1] - upper
