"""Base64 as people write it."""

import base64
import string

from app.errors import MalformedUpload

_WHITESPACE = string.whitespace.encode()
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def decode_base64(text: bytes, where: str) -> bytes:
    """Decode base64, also in the URL-safe alphabet, in lines, and without padding (RFC 4648).

    Args:
        text: to decode.
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
        raise MalformedUpload(f"{where} is not base64: {exc}") from exc
