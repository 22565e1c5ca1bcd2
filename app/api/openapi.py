"""How OpenAPI describes errors, and the routes that take images.

FastAPI does not read the body and the parameters of those routes, so it cannot describe them.
"""

from http import HTTPStatus
from typing import Any

from app.api.queries import Query
from app.problems import PROBLEM_JSON

_BINARY = {"type": "string", "format": "binary"}

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
    "schema": {"type": "integer", "minimum": 1},
    "description": "The milliseconds from the body's last byte in which the answer is wanted; "
    "after them: 504. Above the service's limit it counts as that limit.",
}


def document(query: type[Query], *, several: bool) -> dict[str, Any]:
    """Return what OpenAPI says of a route's parameters and body.

    Args:
        query: the query parameters.
        several: whether the body may hold more than one image.
    """
    images: dict[str, Any] = {
        "type": "array",
        "items": {"type": "string", "contentEncoding": "base64"},
    }
    files: dict[str, Any] = {"type": "array", "items": _BINARY}
    if not several:
        images["maxItems"] = files["maxItems"] = 1
    return {
        "parameters": [*_parameters(query), _TIMEOUT_PARAMETER],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "properties": {"file": files},
                    }
                },
                "image/*": {"schema": _BINARY},
                "application/octet-stream": {"schema": _BINARY},
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["images"],
                        "properties": {"images": images},
                    },
                    "example": {"images": [EXAMPLE_BASE64]},
                },
            },
        },
    }


def document_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these error statuses."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM_JSON: {"schema": schema}},
        }
        for status in statuses
    }


def _parameters(query: type[Query]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        | ({"description": schema["description"]} if "description" in schema else {})
        for name, schema in query.model_json_schema()["properties"].items()
    ]
