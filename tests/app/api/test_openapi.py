from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

IMAGE_PATHS = ("/predict", "/detect", "/segment", "/explain", "/activations")


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _references(child)


async def test_every_reference_resolves(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    references = set(_references(document))
    assert "#/components/schemas/StrongResponse" in references
    assert references <= schemas


@pytest.mark.parametrize("path", IMAGE_PATHS)
@pytest.mark.parametrize(
    ("media_type", "name"), [("multipart/form-data", "file"), ("application/json", "images")]
)
async def test_body_requires_an_image_and_nothing_else(
    client: httpx.AsyncClient, path: str, media_type: str, name: str
) -> None:
    document = (await client.get("/openapi.json")).json()
    body = document["paths"][path]["post"]["requestBody"]
    schema = body["content"][media_type]["schema"]
    assert body["required"] is True
    assert schema["required"] == [name]
    assert schema["properties"][name]["minItems"] == 1
    assert schema["additionalProperties"] is False
