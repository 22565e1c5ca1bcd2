"""OpenAPI's description of what FastAPI does not see: errors, and bodies with images."""

from http import HTTPStatus
from typing import Any

from app.problems import PROBLEM_JSON

_BINARY = {"type": "string", "format": "binary", "minLength": 1}

# An image of CIFAR-10's test set (a cat), as a WebP of 32x32 pixels.
EXAMPLE_BASE64 = (
    "UklGRjQBAABXRUJQVlA4ICgBAABQBwCdASogACAAPo04mEelIyKhMBgMAKARiUATpmFPoJsCxJsUiPiKw08jAaxP"
    "QWWIk/DWKXU7gNYLV9vG+vSuoqUAAP79HnoDARjX9tx2Uy+EG0zKNh+j2b5xcFtPUd5Iqb3o0EacHHrce3h74r6K"
    "5NNgZH8tjqhMkrWnN/O18h4WMB1tiKVNg+0chkNIdS6xSGW0LWdIAtm0lco8A9OCtzbAmhspYwP2zCnomdDZPQS0"
    "haH64YD3R/8rXt2+RunBrgVIxY0vq3CoaPoBGBovXb6enNEPlzI4aXe5EeZtPSiXfXDzFlNNQiNXEOTE+XcwqcrD"
    "fFR3JM65Hu0Wg6aQoFfdRLowwFZsrtkzxcbNGAFroM4/7fU3mR26FvAGou55ADsDoicAAA=="
)

TIMEOUT_HEADER = "X-Request-Timeout-Ms"

_TIMEOUT_PARAMETER = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 1, "maximum": 9_999_999_999},
    "description": "The time for the answer in milliseconds, from the body's last byte; after it, "
    "the answer is 504. A value above the service's limit counts as that limit.",
}


def document_body(*, several: bool) -> dict[str, Any]:
    """Return OpenAPI's description of a body with images, and of the header that goes with it.

    Args:
        several: whether the body may hold more than one image.
    """
    images: dict[str, Any] = {
        "type": "array",
        "items": {"type": "string", "contentEncoding": "base64"},
        "minItems": 1,
    }
    files: dict[str, Any] = {"type": "array", "items": _BINARY, "minItems": 1}
    if not several:
        images["maxItems"] = files["maxItems"] = 1
    form, document = _only("file", files), _only("images", images)
    return {
        "parameters": [_TIMEOUT_PARAMETER],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": form,
                    "encoding": {"file": {"contentType": "image/*"}},
                },
                "image/*": {"schema": _BINARY},
                "application/octet-stream": {"schema": _BINARY},
                "application/json": {
                    "schema": document,
                    "example": {"images": [EXAMPLE_BASE64]},
                },
            },
        },
    }


def _only(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [name],
        "properties": {name: schema},
        "additionalProperties": False,
    }


def document_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of these error statuses."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM_JSON: {"schema": schema}},
        }
        for status in statuses
    }
