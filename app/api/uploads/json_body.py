"""JSON bodies: `{"images": [...]}` of base64 or of data URLs that hold it."""

import codecs
import json
from functools import lru_cache
from typing import Any

import orjson

from app.api.uploads.base64_text import decode_base64, unescape
from app.api.uploads.upload import Upload, UploadLimits, quoted, too_many
from app.errors import EmptyUpload, MalformedUpload, UnsupportedMediaType

MAX_JSON_VALUES = 10_000
"""Limits the Python objects that a body of small values turns into; checked before parsing."""

MAX_DATA_URL_HEAD = 1024
"""Characters of a data URL before its data."""

_BYTE_ORDER_MARK = "\ufeff"


def read_json(body: bytes, limits: UploadLimits) -> list[Upload]:
    """Return the files in a body of JSON.

    Raises:
        UploadError: as `app.api.uploads.body.read_files` does.
    """
    images = _parse_json(body)
    if len(images) > limits.max_images:
        raise too_many(str(len(images)), limits)
    files = [Upload(_decode_image(item, f"images[{index}]")) for index, item in enumerate(images)]
    if body.count(b'"') != 2 * (1 + len(images)) and _keys_in(body) > 1:
        raise MalformedUpload("JSON key 'images' stands more than once")
    return files


def _parse_json(body: bytes) -> list[Any]:
    """Return the list of a body `{"images": [...]}`; its items are still of any type."""
    marks = body.count(b",") + body.count(b"[") + body.count(b"{")  # roughly one for each value
    if marks > MAX_JSON_VALUES:
        raise MalformedUpload(
            f"JSON body has {marks} commas and opening brackets; the limit is {MAX_JSON_VALUES}"
        )
    encoding = json.detect_encoding(body)
    if encoding == "utf-8-sig":
        body = body[len(codecs.BOM_UTF8) :]
    elif encoding != "utf-8":
        raise MalformedUpload(f"JSON body is in {encoding.upper()}; send it in UTF-8")
    document = _load_json(body)
    if not isinstance(document, dict) or not document:
        raise MalformedUpload('JSON body is not an object {"images": ["<base64>", ...]}')
    for key in document.keys() - {"images"}:
        raise MalformedUpload(f"JSON key {quoted(key)} is unknown; only 'images' is allowed")
    images = document["images"]
    if not isinstance(images, list) or not images:
        raise MalformedUpload("JSON value of 'images' is not a list of at least one image")
    return images


def _keys_in(body: bytes) -> int:
    """Return how many keys a body has; of equal ones, the faster parser keeps the last."""
    keys = 0

    def count(pairs: list[tuple[str, Any]]) -> None:
        nonlocal keys
        keys += len(pairs)

    json.JSONDecoder(object_pairs_hook=count, strict=False).decode(body.decode("utf-8-sig"))
    return keys


def _load_json(body: bytes) -> Any:
    """Parse JSON whose strings may be broken into lines, as pasted base64 is."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        try:
            return orjson.loads(body.translate(None, b"\r\n\t"))
        except orjson.JSONDecodeError:
            raise MalformedUpload(f"body is not JSON: {exc}") from exc


def _decode_image(item: object, where: str) -> bytes:
    """Decode base64, or a data URL (RFC 2397) that holds it."""
    if not isinstance(item, str):
        raise MalformedUpload(f"{where} is not a string")
    text = item.lstrip(_BYTE_ORDER_MARK).strip()
    is_url = text[:5].lower() == "data:"
    written = _data_of_url(text, where) if is_url else text
    data = decode_base64(unescape(written.encode()), where)
    if not data:
        raise EmptyUpload(f"{where} is empty")
    return data


def _data_of_url(url: str, where: str) -> str:
    """Return the base64 of a data URL."""
    comma = url.find(",", 0, MAX_DATA_URL_HEAD)
    if comma < 0:
        raise MalformedUpload(
            f"{where} is a data URL without a comma in its first {MAX_DATA_URL_HEAD} characters"
        )
    media_type, in_base64 = _data_url_head(url[5:comma])
    if not in_base64:
        raise MalformedUpload(f"{where} is a data URL without ';base64' before its comma")
    if media_type not in {"", "application/octet-stream"} and not media_type.startswith("image/"):
        raise UnsupportedMediaType(
            f"{where} is a data URL of type {quoted(media_type)}; "
            "send image/*, application/octet-stream or no type"
        )
    return url[comma + 1 :]


@lru_cache(16)
def _data_url_head(head: str) -> tuple[str, bool]:
    """Return the media type of a data URL, and whether its data is base64."""
    media_type, *parameters = (part.strip() for part in head.lower().split(";"))
    return media_type, "base64" in parameters
