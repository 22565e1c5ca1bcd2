"""The samples of a decoded image, converted to 8 bits of grey or RGB with transparency.

Pillow keeps the samples of the file: 1, 8, 12 or 16 bits, palettes, CMYK. Size and orientation stay
as they are, except that a large image is reduced if it has to be copied.
"""

import io

import numpy as np
from PIL import Image
from PIL.ExifTags import Base as ExifTag
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

_STRIP_PIXELS = 1 << 18

_Box = tuple[int, int, int, int]

_CONVERSIONS = {
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}
_SIXTEEN = {"I;16", "I;16B", "I;16L", "I;16N"}


def eight_bit(image: ImageFile, data: bytes, enough: int) -> tuple[Image.Image, int]:
    """Return the image in mode "L", "LA", "RGB" or "RGBA", and the factor that reduced it.

    An image that needs conversion is reduced at the same time, strip by strip, because a second
    copy of all pixels would need as much memory as the first.

    Args:
        image: the opened and loaded file.
        data: the file's bytes.
        enough: pixels that the shorter side keeps at least, if it has them.
    """
    frame = _smaller_frame(image)
    if image.mode in {"L", "RGB"} and "transparency" not in image.info and not frame:
        return image, 1
    transparency: _Transparency | None = None
    if isinstance(image, PngImageFile) and image.mode == "RGB" and data[24] == 16:
        transparency = _Transparency(image, data)
    elif isinstance(image, PngImageFile) and image.mode in {"L", "RGB"}:
        _scale_png_transparency(image, depth=data[24])
    shift, flip = _sixteen_bit_meaning(image)

    def convert(top: int, part: Image.Image) -> Image.Image:
        converted = _convert(part, shift, flip)
        if transparency:
            converted.putalpha(transparency.mask(top, part))
        if frame:
            _clear_outside(converted, frame, top)
        return converted

    factor = min(image.size) // enough
    if factor < 2:
        return convert(0, image), 1
    width, height = image.size
    rows = max(_STRIP_PIXELS // (width * factor), 1) * factor
    boxes = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    reduced = [np.asarray(convert(box[1], image.crop(box)).reduce(factor)) for box in boxes]
    return Image.fromarray(np.concatenate(reduced)), factor


def _sixteen_bit_meaning(image: ImageFile) -> tuple[int, int]:
    """Return by how many bits such samples are shifted, and which bits are turned before."""
    if not isinstance(image, TiffImageFile):
        return 8, 0
    # Pillow leaves 12-bit samples in the lower bits, and does not know that 0 may be white.
    shift = 4 if image.tag_v2.get(ExifTag.BitsPerSample) in {12, (12,)} else 8
    turned = image.tag_v2.get(ExifTag.PhotometricInterpretation) == 0
    return shift, 0xFFFF if turned else 0


def _convert(image: Image.Image, shift: int, flip: int) -> Image.Image:
    if image.mode in _SIXTEEN:
        samples = np.asarray(image)
        grey = Image.fromarray(((samples ^ flip) >> shift).astype(np.uint8))
        if "transparency" in image.info:
            opaque = samples != image.info["transparency"]
            grey.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
        return grey
    if "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert(_CONVERSIONS[image.mode]) if image.mode in _CONVERSIONS else image


def _smaller_frame(image: ImageFile) -> _Box | None:
    """Return the frame of a GIF that leaves some of its canvas free, where Pillow has colour 0."""
    if isinstance(image, GifImageFile) and image.dispose_extent != (0, 0, *image.size):
        return image.dispose_extent
    return None


def _clear_outside(picture: Image.Image, frame: _Box, top: int) -> None:
    """Paint white, as transparency looks, round a frame; the picture begins in row `top`."""
    (left, upper, right, lower), (width, height) = frame, picture.size
    for box in (
        (0, 0, width, upper - top),
        (0, lower - top, width, height),
        (0, 0, left, height),
        (right, 0, width, height),
    ):
        if box[0] < box[2] and box[1] < box[3]:
            picture.paste("white", box)


class _Transparency:
    """The one transparent colour of a PNG of 16-bit RGB.

    Pillow keeps the upper bytes of the samples, in which other colours can be the same. So the file
    is decoded once more, to the lower bytes: read as little-endian, they are the upper ones.
    """

    def __init__(self, image: PngImageFile, data: bytes) -> None:
        colour = np.array(image.info.pop("transparency"), np.uint16)
        self._colour = [(colour >> shift).astype(np.uint8) for shift in (8, 0)]
        self._lower = PngImageFile(io.BytesIO(data))
        self._lower.tile = [tile._replace(args="RGB;16L") for tile in self._lower.tile]
        self._lower.load()

    def mask(self, top: int, part: Image.Image) -> Image.Image:
        """Return the alpha of a part of the image, which begins in row `top`."""
        lower = self._lower.crop((0, top, part.width, top + part.height))
        pairs = zip((part, lower), self._colour, strict=True)
        differs = [(np.asarray(half) != colour).any(-1) for half, colour in pairs]
        return Image.fromarray((differs[0] | differs[1]).astype(np.uint8) * 255)


def _scale_png_transparency(image: PngImageFile, depth: int) -> None:
    """Scale the transparent colour of a tRNS chunk to 8 bits, as Pillow scales the samples."""
    colour = image.info.get("transparency")
    if isinstance(colour, int):
        image.info["transparency"] = {2: colour * 85, 4: colour * 17}.get(depth, colour) & 255
    elif isinstance(colour, tuple):
        image.info["transparency"] = tuple(sample & 255 for sample in colour)
