"""EXIF in a text chunk of a PNG, where ImageMagick and others put it before PNG had `eXIf`.

The chunk's keyword is `Raw profile type exif`; its text is a name, a length and the bytes in
hexadecimal digits, on lines of their own.
"""

import binascii
import re
import zlib

KEYWORD = b"Raw profile type exif\0"

MAX_TEXT_BYTES = 140_000
"""The most bytes of a chunk and of its text: 64 KiB of EXIF have 131,072 digits."""

_TEXT = re.compile(rb"\s*\w+\s+\d+\s([\s0-9A-Fa-f]*)")


def exif_of(kind: bytes, body: bytes) -> bytes:
    """Return the EXIF, without the six bytes that come before it in a JPEG, as `eXIf` wants it.

    Args:
        kind: of the chunk: `tEXt`, `zTXt` or `iTXt`.
        body: the chunk's content, which begins with the keyword.

    Returns:
        As much as can be read; empty if the chunk is broken.
    """
    text = body[len(KEYWORD) : MAX_TEXT_BYTES]
    is_compressed = kind == b"zTXt"
    if is_compressed:
        text = text[1:]  # without the method
    elif kind == b"iTXt":  # whether it is compressed, the method, a language, a translated keyword
        is_compressed, text = text[:1] == b"\1", b"".join(text[2:].split(b"\0", 2)[2:])
    if is_compressed:
        try:
            text = zlib.decompressobj().decompress(text, MAX_TEXT_BYTES)
        except zlib.error:
            return b""
    match = _TEXT.match(text)
    digits = b"".join(match[1].split()) if match else b""
    return binascii.unhexlify(digits[: len(digits) // 2 * 2]).removeprefix(b"Exif\0\0")
