"""The samples of a decoded image, converted to 8 bits of grey or RGB with transparency.

Pillow keeps the samples of the file: 1, 8, 12 or 16 bits, palettes, CMYK. Size and orientation stay
as they are, except that a large image is reduced if it has to be copied.
"""

import numpy as np
from PIL import Image
from PIL.ExifTags import Base as ExifTag
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from app.errors import UnsupportedImage

_STRIP_PIXELS = 1 << 18

_CONVERSIONS = {
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}
# Other modes ("F", "I", "LAB") have no meaning in 8 bits that all writers agree on.
_SIXTEEN = {"I;16", "I;16B", "I;16L", "I;16N"}
_READ_MODES = {"L", "LA", "RGB", "RGBA", *_SIXTEEN, *_CONVERSIONS}


def eight_bit(image: ImageFile, data: bytes, enough: int) -> tuple[Image.Image, int]:
    """Return the image in mode "L", "LA", "RGB" or "RGBA", and the factor that reduced it.

    An image that needs conversion is reduced at the same time, strip by strip, because a second
    copy of all pixels would need as much memory as the first.

    Args:
        image: the opened and loaded file.
        data: the file's bytes.
        enough: pixels that the shorter side keeps at least, if it has them.

    Raises:
        UnsupportedImage: the samples have no meaning in 8 bits.
    """
    if image.mode not in _READ_MODES:
        raise UnsupportedImage(f"{image.format} image of mode {image.mode} is not read")
    if image.mode in {"L", "RGB"} and "transparency" not in image.info:
        return image, 1
    if isinstance(image, PngImageFile) and image.mode in {"L", "RGB"}:
        _scale_png_transparency(image, depth=data[24])
    # Pillow leaves 12-bit samples in the lower bits.
    bits = image.tag_v2.get(ExifTag.BitsPerSample) if isinstance(image, TiffImageFile) else None
    shift = 4 if bits in {12, (12,)} else 8
    factor = min(image.size) // enough
    if factor < 2:
        return _convert(image, shift), 1
    width, height = image.size
    rows = max(_STRIP_PIXELS // (width * factor), 1) * factor
    boxes = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    reduced = [np.asarray(_convert(image.crop(box), shift).reduce(factor)) for box in boxes]
    return Image.fromarray(np.concatenate(reduced)), factor


def _convert(image: Image.Image, shift: int) -> Image.Image:
    if image.mode in _SIXTEEN:
        samples = np.asarray(image)
        grey = Image.fromarray((samples >> shift).astype(np.uint8))
        if "transparency" in image.info:
            opaque = samples != image.info["transparency"]
            grey.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
        return grey
    if "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert(_CONVERSIONS[image.mode]) if image.mode in _CONVERSIONS else image


def _scale_png_transparency(image: PngImageFile, depth: int) -> None:
    """Scale the transparent colour of a tRNS chunk to 8 bits, as Pillow scales the samples."""
    colour = image.info.get("transparency")
    if isinstance(colour, int):
        image.info["transparency"] = {2: colour * 85, 4: colour * 17}.get(depth, colour) & 255
    elif isinstance(colour, tuple):
        shift = 8 if depth == 16 else 0
        image.info["transparency"] = tuple(sample >> shift & 255 for sample in colour)
