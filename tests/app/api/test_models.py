import json
from pathlib import Path

import httpx
import pytest

from tests.support.problems import check

pytestmark = pytest.mark.anyio


async def test_every_served_version_is_listed_with_the_default_marked(
    client: httpx.AsyncClient,
) -> None:
    models = (await client.get("/models")).json()["models"]
    found = [(model["name"], model["version"], model["default"]) for model in models]
    assert found == [("colour", "1", False), ("colour", "2", True), ("flat", "1", False)]
    assert models[0]["architecture"] == "mean-colour"


async def test_versions_of_one_model_are_listed(client: httpx.AsyncClient) -> None:
    models = (await client.get("/models/colour")).json()["models"]
    assert [model["version"] for model in models] == ["1", "2"]


async def test_manifest_is_the_one_on_disk(client: httpx.AsyncClient, store_path: Path) -> None:
    response = await client.get("/models/colour/versions/1")
    manifest = json.loads((store_path / "colour" / "1" / "manifest.json").read_text())
    assert response.json() == manifest


@pytest.mark.parametrize(
    "path", ["/models/vgg", "/models/vgg/versions/1", "/models/colour/versions/3"]
)
async def test_unknown_model_is_named_beside_what_there_is(
    client: httpx.AsyncClient, path: str
) -> None:
    assert "there are: " in check(await client.get(path), 404).detail


@pytest.mark.parametrize("path", ["/models/..%2fcolour", "/models/colour/versions/..%2f1"])
async def test_paths_lead_nowhere(client: httpx.AsyncClient, path: str) -> None:
    check(await client.get(path), 404)
