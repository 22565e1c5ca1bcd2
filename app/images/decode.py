"""Bytes of an image file to the pixels that a model takes: uint8 `[H,W,3]`, RGB.

PNG, JPEG (MPO included), WebP, GIF and other animations (first frame), BMP, TIFF and, where
Pillow was built with it, AVIF. The bytes come from strangers: everything that Pillow raises is
translated here, sizes are checked from the header before anything is decoded, metadata that can
cost more than the pixels never reaches Pillow, and nothing is decoded by Python.

This module knows nothing of HTTP. It does not manage colour: samples are taken as sRGB, as they
are in training, and embedded profiles are not applied.
"""

import io
import re
import struct
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
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
from app.images.samples import eight_bit
from app.images.stripping import MAX_PIECES, without_jpeg_metadata, without_png_metadata

LIGHT_PIXELS = 2_100_000  # decoded however few the bytes: a screen of 1920x1080
# Of a larger image: flat screenshots and blurred skies have up to 300, bombs 1000 and more.
MAX_PIXELS_A_BYTE = 400
MAX_TIFF_VALUES = 10_000  # strips or tiles: Pillow makes a Python object of each
MAX_TIFF_TAGS = 1_000  # some tens are usual
MAX_JPEG_SCANS = 50  # about ten are usual; each goes over all pixels again, whatever its length
MAX_EXIF_BYTES = 65_536  # what fits into the one segment that JPEG has for EXIF

_SIGNATURE = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<WebP>RIFF.{4}WEBP)"
    rb"|(?P<GIF>GIF8[79]a)|(?P<BMP>BM)|(?P<TIFF>II[*+]\0|MM\0[*+])"
    rb"|(?P<AVIF>.{4}ftyp(?:avif|avis|mif1|msf1))|(?P<HEIC>.{4}ftyp(?:hei|hev))",
    re.DOTALL,
)

_TILE_WIDTH, _TILE_LENGTH, _TIFF_XMP, _TIFF_ASCII = 322, 323, 700, 2

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# What Pillow thinks of metadata that is not used here; as `warnings` keeps the filter.
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class _Source(io.BytesIO):
    """Ends a decoder that asks too often: Pillow walks headers in Python, a record at a time."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_PIECES:
            raise DamagedImage(f"image is made of more than {MAX_PIECES} pieces")
        return super().read(size)


class _JpegReader(JpegImageFile):
    """Leaves out the resolution, for which Pillow reads all of the EXIF, however long."""

    def _read_dpi_from_exif(self) -> None:
        pass


# Opened by class and not through Image.open: that one applies limits of its own, process-wide,
# and raises before it says how large the image is.
_READERS: dict[str, type[ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": _JpegReader,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
} | ({"AVIF": AvifImageFile} if AVIF_SUPPORTED else {})


def decode(
    data: bytes, size: tuple[int, int], max_pixels: int, *, max_pixels_whole: int | None = None
) -> NDArray[np.uint8]:
    """Decode an image file to the size that a model takes.

    The image is turned as its EXIF orientation says, the largest centred part with the model's
    aspect ratio is kept, and that part is resampled with an antialiased bicubic filter (as
    torchvision's presets crop and timm's resample). Transparency is composited over white; 16-bit
    samples keep their upper 8 bits. An image of the model's size keeps its pixels exactly. One of
    more than `LIGHT_PIXELS` has to bring a byte for every `MAX_PIXELS_A_BYTE` of them: what its
    sender spends bounds what is spent on it.

    Args:
        data: the file's bytes.
        size: height and width in pixels of the result.
        max_pixels: how many pixels the header may announce.
        max_pixels_whole: the same for what cannot be reduced while it is decoded, so that every
            pixel has to be held: anything but a sequential JPEG. `max_pixels` unless given.

    Returns:
        Read-only uint8 `[H,W,3]`, RGB.

    Raises:
        NotAnImage: no known format starts like this.
        DamagedImage: the data are cut short, broken, or made of absurdly many pieces.
        UnsupportedImage: HEIC, run-length encoded BMP, or samples without a meaning in 8 bits,
            such as floats.
        TooManyPixels: the header announces more than the limits; nothing was decoded.
    """
    whole = max_pixels_whole or max_pixels

    def fit(kind: str) -> NDArray[np.uint8]:
        return _fit(_load(kind, data, max(size), max_pixels, whole), size)

    return _translated(data, whole, fit)


def decode_whole(
    data: bytes, longest: int, max_pixels: int, *, max_pixels_whole: int | None = None
) -> NDArray[np.uint8]:
    """Decode all of an image file, not only the part that a model sees, to show it.

    Args:
        data: the file's bytes.
        longest: what its longer side is reduced to, in pixels; a smaller image stays as it is.
        max_pixels: as for `decode`, which also says what is raised.
        max_pixels_whole: likewise.

    Returns:
        Read-only uint8 `[height,width,3]`, RGB, turned as its EXIF orientation says.
    """
    whole = max_pixels_whole or max_pixels

    def fit(kind: str) -> NDArray[np.uint8]:
        loaded = _load(kind, data, longest, max_pixels, whole)
        width, height = loaded.extent
        scale = min(1.0, longest / max(width, height))
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        return _fit(loaded, size[::-1] if loaded.orientation >= 5 else size, crop=False)

    return _translated(data, whole, fit)


class _Loaded(NamedTuple):
    """A decoded image before it is turned.

    `extent` is its width and height, in fractions where it was reduced on the way.
    """

    image: Image.Image
    extent: tuple[float, float]
    orientation: int


def _translated(
    data: bytes, max_pixels: int, read: Callable[[str], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Read a file of a known format; whatever Pillow raises becomes an error of ours."""
    match = _SIGNATURE.match(data)
    kind = match.lastgroup if match else None
    if kind is None:
        raise NotAnImage(f"not an image in a format that is read: {', '.join(_READERS)}")
    if kind not in _READERS:
        raise UnsupportedImage(f"{kind} is not read; send {', '.join(_READERS)}")
    try:
        return read(kind)
    except ImageError:
        raise
    except Image.DecompressionBombError as exc:  # raised before Pillow says how large it is
        limit = _megapixels(max_pixels)
        raise TooManyPixels(f"{kind} image is far over the limit of {limit}") from exc
    except Exception as exc:  # Pillow documents no list of what its decoders raise
        raise DamagedImage(f"{kind} image is damaged: {exc or type(exc).__name__}") from exc


def _load(kind: str, data: bytes, side: int, max_pixels: int, max_pixels_whole: int) -> _Loaded:
    """Decode what is to be resampled to `side` pixels on its longer side."""
    # A filter that stays, because `warnings.catch_warnings` is not safe between threads.
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    if kind == "PNG":
        data = without_png_metadata(data)
    elif kind == "JPEG":
        data = without_jpeg_metadata(data)
    elif kind == "TIFF":
        _check_tiff_tags(data)
    source = _Source(data)
    image = _READERS[kind](source)
    _check_decoder(image)
    if isinstance(image, JpegImageFile) and _is_sequential(image, data[: source.tell()]):
        _check_pixels(image, len(data), max_pixels)
    else:
        what = " for progressive JPEG" if kind == "JPEG" else f" for {kind}"
        what = what if max_pixels_whole < max_pixels else ""
        _check_pixels(image, len(data), max_pixels_whole, what)
        _check_passes(image, data, max_pixels_whole)
    # Twice the target leaves the filter enough to work on: libjpeg reduces with a box.
    image.draft(None, (2 * side, 2 * side))
    image.load()
    picture, factor = eight_bit(image, data, 3 * side)
    # Pillow turns a TIFF when it loads it, and leaves no EXIF in `info`.
    orientation = _orientation(image.info["exif"]) if "exif" in image.info else 1
    return _Loaded(picture, (image.width / factor, image.height / factor), orientation)


def _is_sequential(image: JpegImageFile, before_scan: bytes) -> bool:
    """Whether one scan holds all of the image, so that libjpeg need not keep its coefficients."""
    header = struct.pack(">HB", 6 + 2 * image.layers, image.layers)
    return "progressive" not in image.info and before_scan[-6 - 2 * image.layers :][:3] == header


def _check_pixels(image: ImageFile, weight: int, limit: int, what: str = "") -> None:
    width, height = image.size
    if width * height > limit:
        raise TooManyPixels(
            f"image is {width}x{height} pixels; the limit is {_megapixels(limit)}{what}"
        )
    if width * height > max(LIGHT_PIXELS, weight * MAX_PIXELS_A_BYTE):
        raise TooManyPixels(
            f"image is {width}x{height} pixels in {weight} bytes; above "
            f"{_megapixels(LIGHT_PIXELS)} at most {MAX_PIXELS_A_BYTE} pixels a byte are decoded"
        )


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.4g} megapixels"


def _check_decoder(image: ImageFile) -> None:
    """Refuse what Pillow decodes in Python, pixel by pixel: of what is read, run lengths in BMP."""
    if any(tile.codec_name in Image.DECODERS for tile in image.tile):
        raise UnsupportedImage(
            f"{image.format} image is run-length encoded, which is not read; send it uncompressed"
        )


def _check_passes(image: ImageFile, data: bytes, max_pixels: int) -> None:
    """Refuse what makes a decoder go over far more pixels than the image has."""
    if isinstance(image, JpegImageFile):
        scans = data.count(b"\xff\xda")
        if scans > MAX_JPEG_SCANS:
            raise DamagedImage(f"JPEG image has {scans} scans; the limit is {MAX_JPEG_SCANS}")
    elif isinstance(image, TiffImageFile):
        width, height = image.tag_v2.get(_TILE_WIDTH, 0), image.tag_v2.get(_TILE_LENGTH, 0)
        # A tag may hold bytes where a number belongs, and those would be repeated.
        if not isinstance(width, int) or not isinstance(height, int):
            raise DamagedImage("TIFF image has tiles whose size is not a number")
        if width * height > max_pixels:
            raise TooManyPixels(
                f"TIFF image has tiles of {width}x{height} pixels; "
                f"the limit is {_megapixels(max_pixels)}"
            )


def _check_tiff_tags(data: bytes) -> None:
    """Refuse a first directory with more tags or values than Pillow can list in short time."""
    order, big = "<" if data[:1] == b"I" else ">", b"+" in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (tags,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    if tags > MAX_TIFF_TAGS:
        raise DamagedImage(f"TIFF image has {tags} tags; the limit is {MAX_TIFF_TAGS}")
    entry = struct.Struct(order + ("HHQQ" if big else "HHII"))
    for index in range(tags):
        tag, kind, values, _ = entry.unpack_from(
            data, start + (8 if big else 2) + index * entry.size
        )
        if tag < _TIFF_XMP and kind != _TIFF_ASCII and values > MAX_TIFF_VALUES:
            raise DamagedImage(
                f"TIFF tag {tag} has {values} values; the limit is {MAX_TIFF_VALUES}"
            )


def _orientation(exif: bytes) -> int:
    tags = Image.Exif()
    try:
        tags.load(exif[:MAX_EXIF_BYTES])
        orientation = tags.get(ExifTag.Orientation)
    except Exception:  # noqa: BLE001 - one connection must not end the worker
        return 1
    return orientation if orientation in _TRANSPOSES else 1


def _fit(loaded: _Loaded, size: tuple[int, int], *, crop: bool = True) -> NDArray[np.uint8]:
    """Crop, resample, composite over white and turn: uint8 `[H,W,3]`."""
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
    """Return the part of an image that a model sees, as `decode` crops it.

    Args:
        size: width and height of the image.
        target: width and height of what the model takes.

    Returns:
        The largest centred box of the target's aspect ratio: left, upper, right, lower.
    """
    scale = min(size[0] / target[0], size[1] / target[1])
    left, upper = (size[0] - target[0] * scale) / 2, (size[1] - target[1] * scale) / 2
    return left, upper, size[0] - left, size[1] - upper
