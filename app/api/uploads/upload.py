"""The files in a body, and a request's limits."""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import TooManyImages

INLINE_TEXT_BYTES = 256 << 10
"""JSON or base64 up to this size is read in the event loop, in about a millisecond; more in a
thread."""

_quoting = reprlib.Repr()
_quoting.maxstring = 100
quoted: Callable[[str], str] = _quoting.repr
"""Returns a client's text in quotes, shortened."""


@dataclass(frozen=True)
class Upload:
    """One file as it was sent. `filename` comes from the client: show it, never open it."""

    data: bytes
    filename: str | None = None


@dataclass(frozen=True)
class UploadLimits:
    """Limits of one request. The server limits the time that a body may take.

    Attributes:
        max_body_bytes: of all files together, as they are sent.
        max_images: number of files.
        reason: says in an error why there may not be more files, after "because".
    """

    max_body_bytes: int
    max_images: int
    reason: str = ""


def too_many(found: str, limits: UploadLimits) -> TooManyImages:
    """Return the error of a request that holds more files than it may."""
    reason = limits.reason and f", because {limits.reason}"
    return TooManyImages(f"request has {found} images; the limit is {limits.max_images}{reason}")
