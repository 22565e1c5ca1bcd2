from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from app.artifact.files import RESPONSES
from app.artifact.sheets import pack_sheet
from app.artifact.strongest import PATCHES
from app.explore.filters import filter_grid, filter_tiles
from app.explore.pictures import enlarged
from tests.conftest import Connect
from tests.support.artifacts import amend, copy_store
from tests.support.inside_artifacts import (
    averaging_network,
    measured_images,
)
from tests.support.pictures import shown
from tests.support.problems import check
from tests.support.tiny_networks import DEVIATION, MEAN
from training.data import dataset

pytestmark = pytest.mark.anyio


@pytest.fixture
async def inside(connect: Connect, inside_store: Path) -> Any:
    async with connect(store=inside_store, default_model="averaging") as client:
        yield client


def _weights(layer: str) -> Any:
    return averaging_network().get_parameter(f"{layer}.weight").detach().numpy()


async def test_json_has_the_nine_strongest_patches_of_a_filter(
    inside: httpx.AsyncClient,
) -> None:
    images, _, _ = measured_images()
    network = averaging_network()
    with torch.no_grad():
        maps = network[0](dataset.normalize(torch.from_numpy(images), MEAN, DEVIATION))[:, 5]
    order = maps.amax((1, 2)).argsort(descending=True)[:PATCHES]
    answer = (await inside.get("/filters/5?format=json")).json()
    found = answer["responses"]
    assert [item["image"] for item in found] == order.tolist()
    values = [item["value"] for item in found]
    assert values == pytest.approx(maps[order].amax((1, 2)).tolist(), rel=1e-4)
    for item in found:
        row, column = divmod(int(maps[item["image"]].argmax()), 32)
        assert (item["row"], item["column"]) == (row - 1, column - 1)


async def test_json_has_the_bias_of_a_filter_that_has_one(inside: httpx.AsyncClient) -> None:
    biases = averaging_network().get_parameter("conv1.bias").tolist()
    for index in (0, 7):
        answer = (await inside.get(f"/filters/{index}?format=json")).json()
        assert answer["bias"] == pytest.approx(biases[index], rel=1e-5)
    assert "bias" not in (await inside.get("/filters/0?format=json&layer=conv2")).json()


async def test_json_of_a_layer_and_of_an_older_model_has_neither(
    inside: httpx.AsyncClient,
) -> None:
    for path in ("/filters?", "/filters/0?model=colour&"):
        answer = (await inside.get(f"{path}format=json")).json()
        assert not {"bias", "responses"} & answer.keys()


async def test_responses_are_drawn_three_by_three(inside: httpx.AsyncClient) -> None:
    images, _, _ = measured_images()
    found = (await inside.get("/filters/2?format=json&layer=conv2")).json()["responses"]
    pixels = shown(await inside.get("/filters/2?layer=conv2&scale=1&show=responses"))
    side = 8  # what a value of conv2 sees: 3, 4 after the pooling, and two more of its pixels
    assert pixels.shape == (3 * (side + 1) + 1, 3 * (side + 1) + 1, 3)
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (frame == 255).all()  # around what belongs to one filter
    for place, item in enumerate(found):
        padded = np.pad(images[item["image"]], ((8, 8), (8, 8), (0, 0)), constant_values=128)
        row, column = item["row"] + 8, item["column"] + 8
        expected = padded[row : row + side, column : column + side].mean(axis=2)
        top, left = (number * (side + 1) + 1 for number in divmod(place, 3))
        part = pixels[top : top + side, left : left + side].mean(axis=2)
        assert np.abs(part - expected).mean() < 8  # WebP is not exact


async def test_first_layer_is_drawn_as_weights_and_others_as_responses_unless_asked(
    inside: httpx.AsyncClient,
) -> None:
    for path in ("/filters?scale=2&", "/filters/3?scale=2&"):
        for layer, usual, other in (
            ("conv1", "weights", "responses"),
            ("conv2", "responses", "weights"),
        ):
            plain = await inside.get(f"{path}layer={layer}")
            same = await inside.get(f"{path}layer={layer}&show={usual}")
            differs = await inside.get(f"{path}layer={layer}&show={other}")
            assert (shown(plain) == shown(same)).all()
            assert shown(differs).shape != shown(plain).shape
            assert len({item.headers["etag"] for item in (same, differs)}) == 2
    weights = await inside.get("/filters?scale=2&layer=conv2&show=weights&columns=4")
    assert weights.content == filter_grid(_weights("conv2"), 2, 4)
    one = await inside.get("/filters/3?scale=2&layer=conv1")
    assert one.content == enlarged(filter_tiles(_weights("conv1"))[3], 2)


async def test_older_model_is_drawn_as_weights_and_has_no_responses(
    inside: httpx.AsyncClient,
) -> None:
    assert shown(await inside.get("/filters?model=colour&layer=conv2&scale=1")).shape[0] == 17
    response = await inside.get(
        "/filters?model=colour&layer=conv2&show=responses", headers={"If-None-Match": "*"}
    )
    problem = check(response, 404)
    assert problem.type == "urn:convscope:problem:nothing-to-see"
    assert problem.detail == "the model has no strongest patches of the layer conv2"


@pytest.mark.parametrize("query", ["", "&show=responses", "&show=weights", "&format=json"])
async def test_filter_that_does_not_exist_is_named_beside_what_there_is(
    inside: httpx.AsyncClient, query: str
) -> None:
    response = await inside.get(f"/filters/12?layer=conv2{query}")
    assert check(response, 404).detail == "no filter 12; the layer has 12, from 0 to 11"


@pytest.fixture
def few_kept(inside_store: Path, tmp_path: Path) -> Path:
    """A store where responses were kept of conv2's first four filters alone."""
    store = copy_store(inside_store, tmp_path / "store")
    path = store / "averaging" / "1"
    with np.load(path / RESPONSES) as archive:
        arrays = dict(archive)
    for name in ("images", "corners", "values"):
        arrays[f"conv2.{name}"] = arrays[f"conv2.{name}"][:4]
    arrays["conv2.sheet"] = pack_sheet(np.zeros((4, PATCHES, 8, 8, 3), np.uint8))
    np.savez(path / RESPONSES, **arrays)
    amend(path)
    return store


async def test_filter_whose_responses_were_not_kept_shows_its_weights(
    connect: Connect, few_kept: Path
) -> None:
    async with connect(store=few_kept, default_model="averaging") as client:
        problem = check(await client.get("/filters/4?layer=conv2&show=responses"), 404)
        assert problem.type == "urn:convscope:problem:nothing-to-see"
        assert problem.detail == (
            "only the responses of filters 0 to 3 of conv2 were kept; show=weights draws filter 4"
        )
        assert (await client.get("/filters/3?layer=conv2")).status_code == 200
        for query in ("", "&show=weights"):
            weights = await client.get(f"/filters/4?layer=conv2&scale=2{query}")
            assert weights.content == enlarged(filter_tiles(_weights("conv2"))[4], 2)
        answer = (await client.get("/filters/4?layer=conv2&format=json")).json()
        assert answer["index"] == 4
        assert "responses" not in answer
        assert shown(await client.get("/filters?layer=conv2&scale=1")).shape == (59, 59, 3)


async def test_documentation_has_what_may_be_shown(inside: httpx.AsyncClient) -> None:
    schema = (await inside.get("/openapi.json")).json()
    for path in ("/filters", "/filters/{index}"):
        parameters = schema["paths"][path]["get"]["parameters"]
        (show,) = [item["schema"] for item in parameters if item["name"] == "show"]
        assert {"weights", "responses"} <= {
            value for option in show["anyOf"] for value in option.get("enum", [])
        }
    fields = schema["components"]["schemas"]["Filters"]["properties"]
    assert {"bias", "responses"} <= fields.keys()
