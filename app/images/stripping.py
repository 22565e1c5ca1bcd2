"""Removing the parts of PNG and JPEG files that hold no pixels, before Pillow reads the file.

Pillow copies, inflates and parses these parts at once, which can cost far more than the pixels.
EXIF stays, because it holds the orientation. Nothing is decoded here.
"""

import struct
from collections.abc import Iterator

from app.errors import DamagedImage

MAX_PIECES = 20_000
"""The most chunks, segments or other pieces of a file. Python visits them one by one."""

MAX_JPEG_TABLE_BYTES = 16_384
"""The most bytes of the tables before a JPEG's first scan; about a thousand are usual."""

_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"})

_SCAN, _FILL, _COMMENT = 0xDA, 0xFF, 0xFE
_APPLICATIONS = range(0xE0, 0xF0)
# JFIF and Adobe name the colour space of the samples.
_KEPT_APPLICATIONS = {0xE0: b"JFIF\0", 0xE1: b"Exif\0\0", 0xEE: b"Adobe"}
# Markers without a length, and bytes that are not markers.
_BARE = frozenset({*range(0xC0), 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})


def without_png_metadata(data: bytes) -> bytes:
    """Return a PNG with only the chunks that decoding needs, and EXIF.

    Animation chunks are removed too, which leaves the default image. A PNG without anything to
    remove is not copied.

    Raises:
        DamagedImage: it has more than `MAX_PIECES` chunks.
    """
    view, kept, start = memoryview(data), [], 0
    position, end = 8, len(data)
    for _ in range(MAX_PIECES):
        if position + 8 > end:
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind not in _PNG_CHUNKS:
            kept.append(view[start:position])
            start = position + 12 + length
        position += 12 + length
        if kind == b"IEND":
            break
    else:
        raise DamagedImage(f"PNG image is made of more than {MAX_PIECES} chunks")
    return b"".join([*kept, view[start:position]]) if kept else data[:position]


def without_jpeg_metadata(data: bytes) -> bytes:
    """Return a JPEG with only the segments that decoding needs, and the first EXIF.

    A JPEG without anything to remove is not copied.

    Raises:
        DamagedImage: it has no scan, more than `MAX_PIECES` segments, or more than
            `MAX_JPEG_TABLE_BYTES` of tables.
    """
    view, wanted = memoryview(data), dict(_KEPT_APPLICATIONS)
    kept, tables = [view[:2]], 0
    for marker, start, end in _jpeg_segments(data):
        if marker in _APPLICATIONS:
            if marker in wanted and data.startswith(wanted[marker], start + 4):
                del wanted[marker]
                kept.append(view[start:end])
        elif marker == _SCAN:
            kept.append(view[start:])
        elif marker not in {0x00, _FILL, _COMMENT}:
            kept.append(view[start:end])
            tables += end - start
            if tables > MAX_JPEG_TABLE_BYTES:
                raise DamagedImage(
                    f"JPEG image has {tables} bytes of tables or more; "
                    f"the limit is {MAX_JPEG_TABLE_BYTES} bytes"
                )
    return data if sum(map(len, kept)) == len(data) else b"".join(kept)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to the first scan; bytes between are junk."""
    position, last = 2, len(data) - 4
    for _ in range(MAX_PIECES):
        position = data.find(b"\xff", position)
        if not 0 <= position <= last:
            raise DamagedImage("JPEG image is damaged: it ends before its first scan")
        marker, length = struct.unpack_from(">xBH", data, position)
        bare = marker == _FILL or marker in _BARE
        if length < 2 and not bare:  # Pillow would find the next segment elsewhere
            raise DamagedImage(
                f"JPEG image is damaged: a segment's length is {length}, not 2 or more"
            )
        after = position + (1 if marker == _FILL else 2 if bare else 2 + length)
        yield marker, position, after
        if marker == _SCAN:
            return
        position = after
    raise DamagedImage(f"JPEG image is made of more than {MAX_PIECES} segments")
