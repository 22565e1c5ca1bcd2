"""Base64 as people write it."""

import base64
import binascii
import re
import string

from app.errors import MalformedUpload

_SHOWN_BYTES = 32  # of a text that is no base64

_WHITESPACE = string.whitespace.encode()
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_FOREIGN = re.compile(rb"[^A-Za-z0-9+/=_\s-]")
_NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})|%25")  # an escaped % is no base64
_SWAPPED = bytes.maketrans(b"%=", b"=%")


def decode_base64(text: bytes, where: str) -> bytes:
    """Decode base64, also in the URL-safe alphabet, in lines, and without padding (RFC 4648).

    Args:
        text: to decode, in UTF-8.
        where: names the file in an error.

    Raises:
        MalformedUpload: it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        pass
    digits = text.translate(_FROM_URL_SAFE, _WHITESPACE).rstrip(b"=")
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except ValueError as exc:
        raise MalformedUpload(f"{where} is not base64: {_fault(text) or exc}") from exc


def _fault(text: bytes) -> str | None:
    """Name the first character that is not base64's, and how the text begins."""
    found = _FOREIGN.search(text)
    if found is None:
        return None
    character = text[found.start() : found.start() + 4].decode(errors="replace")[0]
    start = text[:_SHOWN_BYTES].decode(errors="replace")
    return f"it begins with {start!r} and has the character {character!r}"


def unescape(text: bytes) -> bytes:
    """Decode the escapes of a URL, such as `%2B` for a plus, if each `%` begins one."""
    if b"%" not in text or _NO_ESCAPE.search(text):
        return text
    # Quoted-printable has the same escapes behind another character, which is base64's padding. The
    # library for URLs would make an object of each escape.
    return binascii.a2b_qp(text.translate(_SWAPPED)).replace(b"%", b"=")
