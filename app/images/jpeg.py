"""The structure of JPEG: segments without pixels are removed, kinds that are not read are named.

Pillow copies and parses the segments of metadata at once, which can cost far more than the pixels.
EXIF stays, because it holds the orientation. No pixels are decoded here.
"""

import contextlib
import itertools
import struct
from collections.abc import Iterator

from app.errors import DamagedImage
from app.images.limits import MAX_PIECES, unsupported

MAX_JPEG_TABLE_BYTES = 16_384
"""The most bytes of the tables before a JPEG's first scan; about a thousand are usual."""

MAX_SEGMENTS_WITHOUT_END = 1_000
"""The most segments of a JPEG that is read without its end; a hundred are many. It is asked for in
the event loop."""

MAX_JPEG_SCANS = 50
"""The most scans of a JPEG; about ten are usual. Even a short scan makes the decoder visit all
pixels."""

JPEG_END = b"\xff\xd9"

_SCAN, _FILL, _COMMENT = 0xDA, 0xFF, 0xFE
# Markers of frames (ITU-T T.81, table B.1): those that are read, and others by how they are coded.
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_UNSUPPORTED_FRAMES = {
    0xC3: "lossless",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE), "hierarchical"),
    0xCB: "lossless, arithmetic-coded",
    0xF7: "JPEG-LS",
}
_APPLICATIONS = range(0xE0, 0xF0)
# JFIF and Adobe name the colour space of the samples.
_KEPT_APPLICATIONS = {0xE0: b"JFIF\0", 0xE1: b"Exif\0\0", 0xEE: b"Adobe"}
# Markers without a length, and bytes that are not markers.
_BARE = frozenset({*range(0xC0), 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})


def without_jpeg_metadata(data: bytes) -> bytes:
    """Return a JPEG with only the segments that decoding needs, and the first EXIF.

    A JPEG without anything to remove is not copied.

    Raises:
        DamagedImage: it has no scan, more than `MAX_PIECES` segments, or more than
            `MAX_JPEG_TABLE_BYTES` of tables.
        UnsupportedImage: its samples or their coding are of another kind than is read.
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
            _check_frame(data, marker, start)
            kept.append(view[start:end])
            tables += end - start
            if tables > MAX_JPEG_TABLE_BYTES:
                raise DamagedImage(
                    f"JPEG image has {tables} bytes of tables or more; "
                    f"the limit is {MAX_JPEG_TABLE_BYTES} bytes"
                )
    return data if sum(map(len, kept)) == len(data) else b"".join(kept)


def jpeg_lacks_end(data: bytes) -> bool:
    """Whether a file is a JPEG that has a scan, and no end marker behind it.

    The scan is looked for in the first `MAX_SEGMENTS_WITHOUT_END` segments.
    """
    if not data.startswith(b"\xff\xd8\xff") or data.endswith(JPEG_END):
        return False
    with contextlib.suppress(DamagedImage):
        for marker, start, _ in itertools.islice(_jpeg_segments(data), MAX_SEGMENTS_WITHOUT_END):
            if marker == _SCAN:
                return data.find(JPEG_END, start) < 0
    return False


def jpeg_has_all_scans(data: bytes) -> bool:
    """Whether the scans give every coefficient of every component in full (ITU-T T.81, G.1.1.1).

    Args:
        data: a JPEG that was decoded.
    """
    missing: set[tuple[int, int]] = set()
    scan = 0
    for marker, start, _ in _jpeg_segments(data):
        if marker in _FRAMES:
            components = data[start + 10 : start + 10 + 3 * data[start + 9] : 3]
            missing = {(each, index) for each in components for index in range(64)}
        scan = start
    for _ in range(MAX_JPEG_SCANS):
        header = data[scan + 4 : scan + 16]  # of at most four components
        after = 1 + 2 * header[0] if header else 0
        if not missing or scan < 0 or not 3 <= after <= 9 or len(header) < after + 3:
            break  # complete, or no scan: bytes behind the end may look like one
        first, last, approximation = header[after : after + 3]
        if approximation & 15 == 0:
            indices = range(first, min(last, 63) + 1)
            missing -= {(each, index) for each in header[1:after:2] for index in indices}
        scan = data.find(b"\xff\xda", scan + 4 + after)
    return not missing


def jpeg_is_arithmetic(data: bytes) -> bool:
    """Whether a JPEG is arithmetic-coded. The end of such a scan lacks its zeros (T.81, D.1.8)."""
    return any(marker in {0xC9, 0xCA} for marker, _, _ in _jpeg_segments(data))


def _check_frame(data: bytes, marker: int, start: int) -> None:
    """Refuse a frame (ITU-T T.81, B.2.2) that Pillow calls damaged."""
    kind = _UNSUPPORTED_FRAMES.get(marker)
    if marker in _FRAMES:
        bits, height, _, components = struct.unpack_from(">4xBHHB", data, start)
        if bits != 8:
            kind = f"{bits}-bit"
        elif components not in {1, 3, 4}:
            kind = f"of {components} components"
        elif not height:
            kind = "of a height that stands behind its first scan"
    if kind:
        raise unsupported("JPEG", kind, "PNG or to baseline JPEG")


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
