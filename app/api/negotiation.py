"""Content negotiation: the media type of an answer, and 304 for a client that has it already.

Accept (RFC 9110, 12.5.1), ETag and If-None-Match (RFC 9110, 8.8.3 and 13.1.2).
"""

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
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
        offers: media types by their name in the `format` parameter, the default first.
        wanted: the `format` parameter.

    Raises:
        NotAcceptable: the client accepts none of the offers.
    """
    if wanted is not None:
        return offers[wanted]
    accept = ",".join(request.headers.getlist("accept"))
    if not accept.strip():
        return next(iter(offers.values()))
    ranges = qualities(accept)
    # max() keeps the first of equals, which is the default.
    best = max(offers.values(), key=lambda offer: _preference(offer, ranges))
    quality, _ = _preference(best, ranges)
    if quality <= 0:
        available = ", ".join(dict.fromkeys(offers.values()))
        raise NotAcceptable(f"Accept is {accept[:200]!r}; there is: {available}")
    return best


def one_in_png(wanted: str | None) -> tuple[int, str]:
    """Return how many pictures a PNG shows, and the reason why the answer to a request is one.

    Args:
        wanted: the `format` parameter.
    """
    asking = "Accept" if wanted is None else f"format={wanted}"
    return 1, f"{asking} asks for {PNG}, which shows one"


def qualities(accept: str) -> dict[str, float]:
    """Return the quality, 0 to 1, of each value in an Accept or Accept-Encoding header."""
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
    # Java's own client sends `.2`, which RFC 9110 does not allow and which is clear all the same.
    return float(value) if re.fullmatch(r"0?\.\d{1,3}|0\.?|1(\.0{0,3})?", value) else 0.0


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return JSON; float32 arrays are written with as many digits as float32 needs."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def _preference(offer: str, ranges: Mapping[str, float]) -> tuple[float, int]:
    """Return the quality of the most specific range that covers the offer, and its specificity.

    A client that names a type beside `*/*`, as axios does with JSON, prefers that type.
    """
    covering = ("*/*", f"{offer.partition('/')[0]}/*", offer)
    for specificity in (2, 1, 0):
        if covering[specificity] in ranges:
            return ranges[covering[specificity]], specificity
    return 0.0, 0


async def respond_unless_known(
    request: Request,
    media_type: str,
    basis: tuple[object, ...],
    render: Callable[[], Awaitable[bytes | str]],
) -> Response:
    """Return a 304 if the client has this representation already, and a 200 otherwise.

    Args:
        request: its If-None-Match names the client's copies.
        media_type: of the representation.
        basis: everything that the content depends on, such as the hashes of files; it makes the
            ETag.
        render: makes the content.
    """
    digest = hashlib.sha256(repr((_release(), media_type, *basis)).encode()).hexdigest()
    headers = {
        "ETag": f'"{digest[:32]}"',
        # Checked again each time, which the ETag makes cheap: another version may become default.
        "Cache-Control": "public, no-cache",
        "Vary": "Accept",
    }
    known = ",".join(request.headers.getlist("if-none-match"))
    if known.strip() == "*" or headers["ETag"] in _ENTITY_TAG.findall(known):
        return Response(status_code=304, headers=headers)
    return Response(await render(), media_type=media_type, headers=headers)


@cache
def _release() -> str:
    """Return the release, since another one may draw the same data differently."""
    return version("convscope")
