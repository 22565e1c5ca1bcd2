import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from app.api.schemas import Activations
from app.artifact.directory import Artifact
from app.artifact.files import PIXELS
from app.explore.feature_maps import map_tiles
from app.explore.filters import filter_tiles
from app.explore.heat_maps import signed_colours
from app.explore.layers import Insides
from app.explore.pictures import tile_grid
from tests.conftest import Connect, Picture
from tests.support import sample
from tests.support.applications import application_of
from tests.support.inside_artifacts import averaging_network
from tests.support.pictures import as_png, shown
from tests.support.problems import check
from tests.support.tiny_networks import DEVIATION, MEAN
from training.data import dataset
from training.evaluate import load_network
from training.export.layer_outputs import outputs_of
from training.run.checkpoint import Checkpoint

pytestmark = pytest.mark.anyio

NAMES = ["conv1", "relu1", "pool1", "conv2", "bn2", "relu2", "average", "fc"]
IMAGE = sample.read("test")[0][7]


@pytest.fixture
async def inside(connect: Connect, inside_store: Path) -> Any:
    async with connect(store=inside_store, default_model="averaging") as client:
        yield client


@torch.inference_mode()
def _torch_gives(
    network: nn.Module, layers: Sequence[str], mean: list[float], deviation: list[float]
) -> dict[str, NDArray[np.float32]]:
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # or it would change what the layer before it gave
    batch = torch.from_numpy(IMAGE[np.newaxis])
    with outputs_of(network, layers, 1) as found:
        network(dataset.normalize(batch, mean, deviation))
    return {name: values[0].numpy() for name, values in found.items()}


async def _check_layers(
    client: httpx.AsyncClient, expected: dict[str, NDArray[np.float32]]
) -> None:
    for layer, values in expected.items():
        response = await client.post(
            f"/activations?format=json&layer={layer}", content=as_png(IMAGE)
        )
        answer = Activations.model_validate_json(response.content)
        assert answer.layer == layer
        assert answer.shape == list(values.shape)
        np.testing.assert_allclose(np.array(answer.values), values, rtol=1e-4, atol=1e-4)


async def test_layers_give_what_the_network_gives(inside: httpx.AsyncClient) -> None:
    layers = [PIXELS, *NAMES]
    await _check_layers(inside, _torch_gives(averaging_network(), layers, MEAN, DEVIATION))


async def test_layers_of_an_exported_run_give_what_its_network_gives(
    connect: Connect, exported: Artifact, trained: Checkpoint
) -> None:
    names = [layer.name for layer in exported.manifest.layers]
    state = trained.state
    parts = [PIXELS, *(name for name in names if name != "conv1")]  # too many values for JSON
    assert {"pool1", "conv2", "bn2", "relu2", "fc1", "fc2"} <= set(parts)
    expected = _torch_gives(load_network(trained), parts, state.mean, state.deviation)
    async with connect(store=exported.path.parent.parent, default_model="tiny") as client:
        await _check_layers(client, expected)
        answer = (await client.get("/models/tiny/versions/1")).json()
    assert [layer["name"] for layer in answer["layers"]] == names
    assert answer["layers"][0]["shape"] == [32, 32, 32]
    confidence = answer["confidence"]["float32"]
    assert confidence["heldout_images"] == exported.manifest.data.heldout
    assert len(confidence["conformal"]["lac"]) == len(confidence["conformal"]["aps"]) == 99


async def test_answer_is_the_documented_one(inside: httpx.AsyncClient) -> None:
    response = await inside.post("/activations?format=json", content=as_png(IMAGE))
    assert response.headers["content-type"] == "application/json"
    assert response.headers["vary"] == "Accept"
    answer = response.json()
    assert Activations.model_validate_json(response.content, strict=True).model_dump() == answer
    values = answer.pop("values")
    assert np.array(values).shape == (8, 32, 32)
    assert answer == {
        "model": "averaging",
        "version": "1",
        "layer": "conv1",
        "layers": [PIXELS, *NAMES],
        "channel": None,
        "shape": [8, 32, 32],
    }


async def test_one_channel_is_the_layers_own(inside: httpx.AsyncClient) -> None:
    for layer, channel, shape in (("conv2", 11, [16, 16]), ("fc", 2, []), (PIXELS, 1, [32, 32])):
        query = f"/activations?format=json&layer={layer}"
        all_of_it = (await inside.post(query, content=as_png(IMAGE))).json()
        one = (await inside.post(f"{query}&channel={channel}", content=as_png(IMAGE))).json()
        assert (one["channel"], one["shape"]) == (channel, shape)
        assert one["values"] == all_of_it["values"][channel]


async def test_all_channels_are_drawn_unless_json_is_asked_for(inside: httpx.AsyncClient) -> None:
    network = averaging_network()
    maps = _torch_gives(network, ["conv2"], MEAN, DEVIATION)["conv2"]
    content = as_png(IMAGE)
    pixels = shown(await inside.post("/activations?layer=conv2&scale=1", content=content))
    assert pixels.shape == (3 * 17 + 1, 4 * 17 + 1, 3)
    top = np.percentile(np.abs(maps), 99.5)
    expected = signed_colours(np.clip(maps[5] / top, -1, 1)).astype(int)
    assert np.abs(pixels[18:34, 18:34] - expected).max() <= 2
    wide = shown(await inside.post("/activations?layer=conv2&scale=2&columns=12", content=content))
    assert wide.shape == (18 * 2, (12 * 17 + 1) * 2, 3)
    one = shown(await inside.post("/activations?layer=conv2&scale=4&channel=5", content=content))
    assert one.shape == (18 * 4, 18 * 4, 3)
    units = shown(await inside.post("/activations?layer=fc&scale=8", content=content))
    assert units.shape == ((2 * 2 + 1) * 8, (4 * 2 + 1) * 8, 3)


async def test_first_convolution_is_drawn_with_the_filters_beside_its_maps(
    inside: httpx.AsyncClient,
) -> None:
    network, content = averaging_network(), as_png(IMAGE)
    pixels = shown(await inside.post("/activations?layer=conv1&scale=1", content=content))
    assert pixels.shape == (2 * 33 + 1, 4 * (30 + 1 + 33) + 1, 3)
    one = shown(await inside.post("/activations?layer=conv1&scale=1&channel=3", content=content))
    kernels = network.get_parameter("conv1.weight").detach().numpy()
    expected = filter_tiles(kernels[3:4])[0].repeat(10, axis=0).repeat(10, axis=1)
    assert (one[1:31, 1:31] == expected).all()


async def test_what_the_model_sees_is_drawn_in_its_own_colours(
    inside: httpx.AsyncClient, picture: Picture
) -> None:
    query = "/activations?layer=pixels&scale=2&format=png"
    for model in ("averaging", "colour"):  # which was exported without its layers
        pixels = shown(await inside.post(f"{query}&model={model}", content=as_png(IMAGE)))
        assert (pixels == IMAGE.repeat(2, axis=0).repeat(2, axis=1)).all()
    response = await inside.post(query, content=picture("red", size=(300, 100)))
    assert response.headers["vary"] == "Accept"
    assert shown(response).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("query", "status", "detail"),
    [
        ("layer=conv9", 404, f"no layer 'conv9'; there are: pixels, {', '.join(NAMES)}"),
        ("layer=conv2&channel=12", 404, "no channel 12; the layer has 12, from 0 to 11"),
        ("channel=8&format=json", 404, "no channel 8; the layer has 8, from 0 to 7"),
        ("layer=fc&channel=6", 404, "no channel 6; the layer has 6, from 0 to 5"),
        (
            "model=colour",
            404,
            "colour/1 was exported without its layers; `convscope-train export` adds them today",
        ),
        ("channel=-1", 422, "channel=-1: Input should be greater than or equal to 0"),
        ("scale=65", 422, "scale=65: Input should be less than or equal to 64"),
        (
            "layer=conv2&scale=64",
            422,
            "at scale 64 the picture would be 4416x3328 pixels; the limit is 10 megapixels",
        ),
        (
            "filter=3",
            422,
            "unknown query parameter 'filter'; "
            "there are: model, version, layer, channel, scale, columns, format",
        ),
    ],
)
async def test_what_does_not_exist_is_named_beside_what_there_is(
    inside: httpx.AsyncClient, query: str, status: int, detail: str
) -> None:
    response = await inside.post(f"/activations?{query}", content=as_png(IMAGE))
    assert check(response, status).detail == detail


async def test_what_cannot_be_shown_is_said_before_the_image_is_read(
    inside: httpx.AsyncClient,
) -> None:
    for query, status in (("layer=nope", 404), ("layer=conv1&channel=99", 404)):
        response = await inside.post(f"/activations?{query}", content=b"no picture")
        check(response, status)


async def test_json_is_bounded(inside: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.routes.activations.MAX_JSON_VALUES", 8 * 32 * 32 - 1)
    response = await inside.post("/activations?format=json", content=as_png(IMAGE))
    assert check(response, 422).detail == (
        "conv1 has 8192 values; the limit for JSON is 8191: ask for one channel, or for a picture"
    )
    one = await inside.post("/activations?format=json&channel=0", content=as_png(IMAGE))
    assert one.status_code == 200


async def test_accept_chooses_the_form(inside: httpx.AsyncClient) -> None:
    for accept, expected in (("application/json", "application/json"), ("*/*", "image/png")):
        response = await inside.post(
            "/activations", content=as_png(IMAGE), headers={"Accept": accept}
        )
        assert response.headers["content-type"] == expected
    response = await inside.post(
        "/activations", content=as_png(IMAGE), headers={"Accept": "text/html"}
    )
    assert "image/png, application/json" in check(response, 406).detail


async def test_model_is_opened_once_for_all_who_look(
    inside: httpx.AsyncClient,
) -> None:
    insides = application_of(inside).service.insides
    responses = await asyncio.gather(
        *(inside.post("/activations?format=json", content=as_png(IMAGE)) for _ in range(4))
    )
    assert len({response.content for response in responses}) == 1
    artifact = application_of(inside).service.store.default
    assert insides.open(artifact) is insides.open(artifact)
    assert Insides().open(artifact) is not insides.open(artifact)


@pytest.mark.parametrize("query", ["", "?layer=pixels"])
async def test_wait_for_a_thread_counts_as_part_of_the_time_that_is_given(
    connect: Connect, inside_store: Path, query: str
) -> None:
    settings = {"store": inside_store, "default_model": "averaging", "decode_threads": 1}
    async with connect(**settings) as client:
        release = threading.Event()
        held = asyncio.create_task(application_of(client).service.explore(release.wait, 10))
        await asyncio.sleep(0)
        headers = {"X-Request-Timeout-Ms": "100"}
        response = await client.post(f"/activations{query}", content=as_png(IMAGE), headers=headers)
        release.set()
        assert await held
    assert check(response, 504).detail == "no answer within 0.1 s"


def test_silent_channel_stays_white_and_all_have_one_scale() -> None:
    maps = np.stack([np.full((2, 2), 1), np.full((2, 2), 0), np.full((2, 2), -0.5)])
    pixels = _draw(maps.astype(np.float32), None)
    strong, silent, against = (pixels[1, 1 + 3 * place].astype(int) for place in range(3))
    assert silent.tolist() == [247, 247, 247]
    assert strong[0] > strong[2] + 50
    assert against[2] > against[1] + 20
    assert _draw(np.zeros((1, 2, 2), np.float32), None)[1, 1].tolist() == [247, 247, 247]


def test_few_outliers_do_not_take_the_colours_of_all_others() -> None:
    maps = np.ones((1, 32, 32), np.float32)
    maps[0, 0, 0] = 1000
    pixels = _draw(maps, None)
    assert pixels[20, 20].tolist() == pixels[1, 1].tolist() != [247, 247, 247]


def _draw(maps: NDArray[np.float32], filters: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    return tile_grid(map_tiles(maps, filters), len(maps))
