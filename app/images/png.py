"""The structure of PNG: chunks without pixels are removed, and Apple's own kind is named.

Pillow copies and inflates these chunks at once, which can cost far more than the pixels. EXIF
stays, because it holds the orientation. No pixels are decoded here.
"""

import struct
import zlib

from app.errors import DamagedImage
from app.images.limits import MAX_PIECES, unsupported
from app.images.raw_profile import KEYWORD, MAX_TEXT_BYTES, exif_of

_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"})
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_HEADER = 33
"""Bytes of the signature and the first chunk."""


def without_png_metadata(data: bytes) -> bytes:
    """Return a PNG with only the chunks that decoding needs, and EXIF.

    EXIF in a text chunk, where writers put it before there was a chunk for it, gets that chunk.
    Animation chunks are removed too, which leaves the default image. A PNG without anything to
    remove is not copied.

    Raises:
        DamagedImage: it has more than `MAX_PIECES` chunks, or a chunk of pixels that does not match
            its checksum.
        UnsupportedImage: its pixels are packed in Apple's own way.
    """
    view, kept, start = memoryview(data), [], _HEADER
    position, end = 8, len(data)
    exif: bytes | None = None
    for _ in range(MAX_PIECES):
        if position + 8 > end:
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"CgBI":
            raise unsupported("PNG", "Apple's own (CgBI)", "standard PNG")
        if kind == b"IDAT" and position + 12 + length <= end:
            _check_checksum(view[position + 4 : position + 12 + length])
        if kind not in _KEPT:
            kept.append(view[start:position])
            body = position + 8
            if exif is None and kind in _TEXTS and data.startswith(KEYWORD, body):
                exif = exif_of(kind, data[body : body + min(length, MAX_TEXT_BYTES)])
            start = position + 12 + length
        position += 12 + length
        if kind == b"IEND":
            break
    else:
        raise DamagedImage(f"PNG image is made of more than {MAX_PIECES} chunks")
    if not kept:
        return data[:position]
    # Of several, Pillow takes the last: a chunk of the file's own comes after this one.
    own = _chunk(b"eXIf", exif) if exif else b""
    return b"".join([view[:_HEADER], own, *kept, view[start:position]])


def _check_checksum(chunk: memoryview) -> None:
    """Compare pixels with the chunk's checksum, which Pillow skips.

    zlib has one too, but Pillow stops before it if it stands in a chunk of its own.
    """
    if zlib.crc32(chunk[:-4]) != int.from_bytes(chunk[-4:], "big"):
        raise DamagedImage("PNG image is damaged: a chunk of pixels does not match its checksum")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
