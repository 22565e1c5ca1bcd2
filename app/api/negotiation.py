"""Which form of a resource a client gets, and whether it has it already.

Accept (RFC 9110, 12.5.1), ETag and If-None-Match (RFC 9110, 8.8.3 and 13.1.2).
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import Request, Response

from app.errors import NotAcceptable

PNG = "image/png"
JSON = "application/json"
CSV = "text/csv"

_ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')


def choose(request: Request, offers: Mapping[str, str], wanted: str | None) -> str:
    """Return the media type to answer with.

    Args:
        request: its Accept headers decide unless `wanted` is given.
        offers: media types by the name they have in the `format` parameter, the default first.
        wanted: the `format` parameter.

    Raises:
        NotAcceptable: the client accepts none of the offers.
    """
    if wanted is not None:
        return offers[wanted]
    accept = ",".join(request.headers.getlist("accept"))
    if not accept.strip():
        return next(iter(offers.values()))
    ranges = _parse_accept(accept)
    # max() keeps the first of equals, which is the default.
    best = max(offers.values(), key=lambda offer: _preference(offer, ranges))
    quality, _ = _preference(best, ranges)
    if quality <= 0:
        there = ", ".join(dict.fromkeys(offers.values()))
        raise NotAcceptable(f"Accept is {accept[:200]!r}; there is: {there}")
    return best


def _parse_accept(accept: str) -> dict[str, float]:
    ranges: dict[str, float] = {}
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                quality = _parse_quality(value.strip())
        if media_range:
            ranges[media_range] = max(quality, ranges.get(media_range, 0.0))
    return ranges


def _parse_quality(value: str) -> float:
    # Without its 0, as Java's own client sends it, is no number of RFC 9110's, and meant as one.
    return float(value) if re.fullmatch(r"0?\.\d{1,3}|0\.?|1(\.0{0,3})?", value) else 0.0


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return JSON; an array's numbers have the digits that a float32 is sure of, and no more."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def _preference(offer: str, ranges: Mapping[str, float]) -> tuple[float, int]:
    """The quality of the most specific range that covers the offer, and how specific that is.

    Who names a type beside `*/*`, as axios does with JSON, wants that one.
    """
    covering = ("*/*", f"{offer.partition('/')[0]}/*", offer)
    for specificity in (2, 1, 0):
        if covering[specificity] in ranges:
            return ranges[covering[specificity]], specificity
    return 0.0, 0


class Representation:
    """One form of a resource that follows from a file of known hash and from parameters alone."""

    def __init__(self, request: Request, media_type: str, sha256: str, *parameters: object) -> None:
        """Name it before it is made.

        Args:
            request: to see what the client has.
            media_type: the form that was chosen.
            sha256: of the file that everything shown comes from.
            parameters: everything else that it depends on.
        """
        parts = (_release(), media_type, sha256, *parameters)
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        self._known = request.headers.getlist("if-none-match")
        self._media_type = media_type
        self._headers = {
            "ETag": f'"{digest[:32]}"',
            # Always asked for again, which the ETag makes cheap: a model may change its version.
            "Cache-Control": "public, no-cache",
            "Vary": "Accept",
        }

    def not_modified(self) -> Response | None:
        """Return the 304 if the client has this already."""
        known = ",".join(self._known)
        if known.strip() == "*" or self._headers["ETag"] in _ENTITY_TAG.findall(known):
            return Response(status_code=304, headers=self._headers)
        return None

    def respond(self, content: bytes | str) -> Response:
        """Return the 200."""
        return Response(content, media_type=self._media_type, headers=self._headers)


@cache
def _release() -> str:
    """Another release may draw the same data differently."""
    return version("convscope")
