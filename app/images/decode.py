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
from typing import NamedTuple, TypeVar

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
    MAX_JPEG_SCANS,
    jpeg_has_all_scans,
    jpeg_is_arithmetic,
    jpeg_lacks_end,
    without_jpeg_metadata,
)
from app.images.limits import MAX_PIECES, megapixels
from app.images.other_formats import HEIC, is_avif, name_of
from app.images.placement import CROP, Placement, Resize, central_box, letterboxed, place
from app.images.plain_png import PlainPng
from app.images.png import without_png_metadata
from app.images.samples import eight_bit
from app.images.tiff import check_tiff

LIGHT_PIXELS = 2_100_000
"""Images up to this size, a screen of 1920x1080, are decoded however few bytes they have."""

MAX_PIXELS_A_BYTE = 400
"""The most pixels for each byte of a larger image. Flat screenshots and blurred skies have up to
300; decompression bombs have 1000 and more."""

MAX_EXIF_BYTES = 65_536
"""The most bytes of EXIF that are read: the size of a JPEG segment."""

_SIGNATURE = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<WebP>RIFF.{4}WEBP)"
    rb"|(?P<GIF>GIF8[79]a)|(?P<BMP>BM)|(?P<TIFF>II\*\0(?!\x10\0\0\0CR)|II\+\0|MM\0[*+])",
    re.DOTALL,
)

_WEBP_ANIMATION, _WEBP_ALPHA = 0x02, 0x10  # in the chunk VP8X

# Begins with 101, where libjpeg fills up with zeros, so that it means other samples in any Huffman
# code; as long as the ten blocks that libjpeg decodes at a time can be.
_FILLING = bytes((0xA5 + 7 * index) % 0xFB for index in range(4096))
_LEFT_OUT_ZEROS = 3  # by an arithmetic coder from the end of a scan; more than two are rare
_LAST_BYTES = 2  # of a scan, which may be zero
_CHECKED_ROWS = 64
_CUT = "JPEG image is damaged: it ends before its last pixels"

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

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


_STRETCH = Resize(policy="stretch")

T = TypeVar("T")


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


def begins_like_image(head: bytes) -> bool:
    """Return whether a file with these first bytes, 32 or more, is of a known format or HEIC."""
    return bool(_SIGNATURE.match(head)) or is_avif(head) or name_of(head) == HEIC


def is_bounded(data: bytes) -> bool:
    """Return whether few bytes and pixels mean little time, and `warning_of` has nothing to say.

    A TIFF's strips may be very many. A JPEG without an end is decoded two to four times, in a
    thread; one that may be cut, up to four times where it is.
    """
    return data.startswith(b"\x89PNG") or not (
        data.startswith((b"II", b"MM"))
        or (data.startswith(b"\xff\xd8") and not data.endswith(JPEG_END))
    )


def warning_of(data: bytes) -> str | None:
    """Return the fault of a file that `decode` reads all the same; None for most files."""
    return "the JPEG has no end marker; its pixels are all there" if jpeg_lacks_end(data) else None


def decode(
    data: bytes,
    size: tuple[int, int],
    max_pixels: int,
    *,
    max_pixels_whole: int | None = None,
    resize: Resize = CROP,
) -> RgbImage:
    """Decode an image file to the size that a model takes.

    The image is rotated by its EXIF orientation (one in XMP alone is not read) and resampled to the
    model's size with an antialiased filter, as `resize` says: by default its largest centred part
    with the model's aspect ratio, with a bicubic one (as torchvision's presets crop and timm's
    resample). Transparency is composited over white; 16-bit samples keep their upper 8 bits. An
    image of the model's size keeps its pixels exactly. An image of more than `LIGHT_PIXELS` needs a
    byte for every `MAX_PIXELS_A_BYTE` pixels, so that the bytes a sender spends bound the work
    spent on them. A JPEG that lacks only its end marker is read, as browsers do; `warning_of`
    tells.

    Args:
        data: the file's bytes.
        size: height and width in pixels of the result.
        max_pixels: the most pixels that the header may announce.
        max_pixels_whole: the same limit for images that must be held whole because they cannot be
            reduced while they are decoded: all but sequential JPEGs. Defaults to `max_pixels`.
        resize: how the image is made as large as that.

    Returns:
        Read-only uint8 `[H,W,3]`, RGB.

    Raises:
        NotAnImage: the data do not start like any known format.
        DamagedImage: the data are cut short, broken, or made of too many pieces.
        UnsupportedImage: HEIC or another format that is not read, or a kind of TIFF, BMP, JPEG or
            PNG that is not known to be read right; the message names it.
        TooManyPixels: the header announces more than the limits; nothing was decoded.
    """
    whole = max_pixels_whole or max_pixels

    def fit(kind: str) -> RgbImage:
        return _fit(_load(kind, data, max(size), max_pixels, whole), size, resize)

    return _translated(data, whole, fit)


def decode_placed(
    data: bytes,
    size: tuple[int, int],
    max_pixels: int,
    *,
    max_pixels_whole: int | None = None,
    resize: Resize = CROP,
) -> tuple[RgbImage, Placement]:
    """Decode as `decode` does; also return where the picture lies in the result."""
    whole = max_pixels_whole or max_pixels

    def fit(kind: str) -> tuple[RgbImage, Placement]:
        loaded = _load(kind, data, max(size), max_pixels, whole)
        height, width = size
        placement = place(loaded.upright, (width, height), resize.policy)
        return _fit(loaded, size, resize), placement

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
        return _fit(loaded, size[::-1] if loaded.orientation >= 5 else size, _STRETCH)

    return _translated(data, whole, fit)


class Measured(NamedTuple):
    """The size of an image file in pixels.

    Attributes:
        height: upright, as `decode_whole` gives it.
        width: likewise.
        orientation: of EXIF, 1 to 8, by which the stored image is turned to be upright. From 5 on,
            the stored image has the two sizes the other way round. 1 in a TIFF, whose pixels
            Pillow turns itself.
    """

    height: int
    width: int
    orientation: int


def measure(data: bytes, max_pixels: int) -> Measured:
    """Return an image's size, and find out whether it can be decoded.

    It costs as much as to decode a thumbnail: little for a JPEG, all pixels of other formats.

    Args:
        data: the file's bytes.
        max_pixels: as for `decode`.

    Raises:
        ImageError: as `decode` does.
    """

    def size_of(kind: str) -> Measured:
        loaded = _load(kind, data, 1, max_pixels, max_pixels)
        width, height = loaded.upright
        return Measured(height, width, loaded.orientation)

    return _translated(data, max_pixels, size_of)


class _Loaded(NamedTuple):
    """A decoded image before it is rotated.

    `size` is the file's width and height. `extent` is that of `image`, fractional if it was reduced
    while it was decoded. A JPEG `may_be_cut` if it lacks scans, or if its last pixel may be of a
    block without data.
    """

    image: Image.Image
    size: tuple[int, int]
    extent: tuple[float, float]
    orientation: int
    may_be_cut: bool = False

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height after the rotation."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def _translated(data: bytes, max_pixels: int, read: Callable[[str], T]) -> T:
    """Call `read` with the file's format, and translate Pillow's errors."""
    match = _SIGNATURE.match(data)
    kind = match.lastgroup if match else "AVIF" if is_avif(data) else name_of(data)
    if kind is None:
        formats = ", ".join(_READERS)
        raise NotAnImage(f"not an image in a known format: {formats}; it begins with {data[:16]!r}")
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


def _load(kind: str, data: bytes, side: int, max_pixels: int, max_pixels_whole: int) -> _Loaded:
    """Decode an image that will be resampled to `side` pixels on its longer side."""
    what = f" for {'progressive JPEG' if kind == 'JPEG' else kind}"
    what = what if max_pixels_whole < max_pixels else ""
    if kind == "PNG" and (png := PlainPng.find(data)):
        size = png.width, png.height
        _check_pixels(size, len(data), max_pixels_whole, what)
        return _Loaded(png.decode(), size, size, orientation=1)
    # The filter stays, because `warnings.catch_warnings` is not safe between threads.
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def load(content: bytes) -> _Loaded:
        return _load_with_pillow(kind, content, side, max_pixels, max_pixels_whole, what)

    return _load_jpeg(data, load) if kind == "JPEG" else load(data)


def _load_with_pillow(
    kind: str, data: bytes, side: int, max_pixels: int, max_pixels_whole: int, what: str
) -> _Loaded:
    data = _prepared(kind, data, max_pixels_whole)
    # Each piece takes a byte, so a short file has few. The pieces of a TIFF may overlap.
    source = io.BytesIO(data) if len(data) <= MAX_PIECES and kind != "TIFF" else _Source(data)
    image = _READERS[kind](source)
    if kind == "GIF" and image.mode == "L":
        image.palette = None  # the file's own is not that of its first frame
    header = data[: source.tell()]
    is_sequential = isinstance(image, JpegImageFile) and _is_sequential(image, header)
    if is_sequential:
        _check_pixels(image.size, len(data), max_pixels)
    else:
        _check_pixels(image.size, len(data), max_pixels_whole, what)
        _check_passes(image, data)
    # libjpeg reduces with a box filter. Twice the target leaves enough for the bicubic one.
    stored = image.size
    reduced = image.draft(None, (2 * side, 2 * side))
    if kind == "JPEG":
        image.decodermaxblock = len(data)  # a file that is read at once is not copied
    image.load()
    may_be_cut = kind == "JPEG" and (
        _ends_in_grey(image) or not (is_sequential or jpeg_has_all_scans(data))
    )
    picture, factor = eight_bit(image, data, 3 * side)
    # Pillow rotates a TIFF when it loads it, and leaves no EXIF in `info`.
    orientation = _orientation(image.info["exif"]) if "exif" in image.info else 1
    # The size of an image that was reduced is rounded up.
    width, height = reduced[1][2:] if reduced else image.size
    size = stored if reduced else image.size
    return _Loaded(picture, size, (width / factor, height / factor), orientation, may_be_cut)


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


def _load_jpeg(data: bytes, load: Callable[[bytes], _Loaded]) -> _Loaded:
    """Decode a JPEG that lacks none of its pixels, though perhaps its end marker.

    libjpeg fills up what is missing without a word. So a file that lacks its end, or whose end may
    have been put behind too few pixels, is decoded twice, with other bytes in place of what may be
    missing: pixels that depend on them are not in the file. After those bytes comes the restart
    marker that is due, because libjpeg looks for it where it lacks one. If what is there ends in
    zeros, it takes up to two more times to tell whether they are codes of samples.
    """
    if jpeg_lacks_end(data):
        begun = data.rstrip(b"\xff")
        loaded = load(begun + JPEG_END)
        if not jpeg_has_all_scans(data):
            raise DamagedImage(_CUT)
    else:
        loaded = load(data)
        if not loaded.may_be_cut:
            return loaded
        begun = data[: max(data.rfind(JPEG_END), 0)].rstrip(b"\xff")
    scan = begun.rfind(b"\xff\xda")
    if scan < 0:
        return loaded
    expected = _checksum(loaded.image)
    del loaded  # one image at a time is held
    restarts = [begun.rfind(bytes([0xFF, 0xD0 + each]), scan) for each in range(8)]
    due = (restarts.index(max(restarts)) + 1) % 8 if max(restarts) > 0 else 0
    filling = bytes(_LEFT_OUT_ZEROS) if jpeg_is_arithmetic(data) else b""
    filling += _FILLING + bytes([0xFF, 0xD0 + due]) + _FILLING + JPEG_END

    def is_enough(scans: bytes) -> bool:
        return _checksum(load(scans + filling).image) == expected

    # Zeros that fill up a file are codes of samples too: the first count, but not the last. Zeros
    # that end a scan all count.
    without_zeros = begun[: len(begun.rstrip(b"\0")) + _LAST_BYTES]
    ends_in_zeros = len(without_zeros) < len(begun)
    if ends_in_zeros and not is_enough(without_zeros) and is_enough(begun[:-_LAST_BYTES]):
        raise DamagedImage(_CUT)
    filled = load(begun + filling)
    if _checksum(filled.image) != expected:
        raise DamagedImage(_CUT)
    return filled


def _ends_in_grey(image: Image.Image) -> bool:
    """Whether the last pixel is as light as a block without data, which libjpeg makes grey.

    Its colour may be mixed with that of the blocks beside and above.
    """
    match image.getpixel((image.width - 1, image.height - 1)):
        case (red, green, blue):
            lightness = 0.299 * red + 0.587 * green + 0.114 * blue
        case (_, _, _, lightness) | lightness:  # the black of CMYK, or grey
            pass
    return 126 <= lightness <= 130


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


def _fit(loaded: _Loaded, size: tuple[int, int], resize: Resize) -> RgbImage:
    """Resample, composite over white and rotate: uint8 `[H,W,3]`."""
    image, orientation = loaded.image, loaded.orientation
    height, width = content = size
    corner = 0, 0
    if resize.policy == "letterbox":
        fitting, corner = letterboxed(loaded.upright, (width, height))
        content = fitting[::-1]
    stored = content if orientation >= 5 else content[::-1]
    if image.size != stored:
        crop = resize.policy == "crop"
        box = central_box(loaded.extent, stored) if crop else (0.0, 0.0, *loaded.extent)
        resample = _FILTERS[resize.interpolation]
        image = image.resize(stored, resample, box=box, reducing_gap=3.0)
    if image.mode in {"LA", "RGBA"}:
        white = Image.new("RGB", stored, "white")
        white.paste(image.convert("RGB"), mask=image.getchannel("A"))
        image = white
    if orientation in _TRANSPOSES:
        image = image.transpose(_TRANSPOSES[orientation])
    if image.mode != "RGB":
        image = image.convert("RGB")
    if content != size:
        filled = Image.new("RGB", (width, height), resize.fill)
        filled.paste(image, corner)
        image = filled
    return np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, 3)
