import asyncio
import io
import json
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from app.api.state import MAX_WAITING_DRAWINGS
from app.explore.filters import filter_grid, filter_tiles
from app.explore.pictures import enlarged
from tests.conftest import Connect, Picture
from tests.support.applications import application_of
from tests.support.artifacts import (
    copy_store,
    weights,
    write_artifact,
    write_graph,
    write_older_artifact,
)
from tests.support.problems import check

pytestmark = pytest.mark.anyio


def _size(response: httpx.Response) -> tuple[int, int]:
    assert response.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(response.content)) as image:
        image.load()
        return image.size


async def test_first_layer_is_drawn_as_a_png_unless_asked_otherwise(
    client: httpx.AsyncClient,
) -> None:
    response = await client.get("/filters")
    assert response.content == filter_grid(weights()["conv1"], 16, 4)
    assert _size(response) == (16 * (4 * 4 + 1), 16 * (2 * 4 + 1))


@pytest.mark.parametrize(
    ("query", "size"),
    [
        ("scale=1", (17, 9)),
        ("scale=2&columns=8", (66, 10)),
        ("scale=1&columns=1000", (33, 5)),
        ("scale=1&layer=conv2", (17, 17)),
    ],
)
async def test_scale_columns_and_layer_make_the_picture(
    client: httpx.AsyncClient, query: str, size: tuple[int, int]
) -> None:
    assert _size(await client.get(f"/filters?{query}")) == size


async def test_json_holds_the_weights_with_their_shape(
    client: httpx.AsyncClient,
) -> None:
    answer = (await client.get("/filters?format=json&layer=conv2")).json()
    assert answer["layer"] == "conv2"
    assert answer["layers"] == ["conv1", "conv2"]
    assert answer["shape"] == [16, 8, 3, 3]
    np.testing.assert_array_equal(np.array(answer["weights"], np.float32), weights()["conv2"])


async def test_one_filter_is_drawn_and_given_as_json(
    client: httpx.AsyncClient,
) -> None:
    response = await client.get("/filters/3?scale=10")
    assert response.content == enlarged(filter_tiles(weights()["conv1"])[3], 10)
    answer = (await client.get("/filters/3", headers={"Accept": "application/json"})).json()
    assert (answer["index"], answer["shape"]) == (3, [3, 3, 3])
    np.testing.assert_array_equal(np.array(answer["weights"], np.float32), weights()["conv1"][3])


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/json", "application/json"),
        ("application/json;q=0.5, image/png;q=0.4", "application/json"),
        ("image/*, application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("application/json;q=0.9, */*", "image/png"),
        ("*/*, image/*", "image/png"),
        ("image/png;q=0, */*", "application/json"),
        ("text/html,image/avif,image/apng,*/*;q=0.8", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("application/*;q=0.2, image/png;q=0.1", "application/json"),
        ("", "image/png"),
    ],
)
async def test_accept_chooses_the_form(
    client: httpx.AsyncClient, accept: str, expected: str
) -> None:
    response = await client.get("/filters", headers={"Accept": accept})
    assert response.headers["content-type"] == expected
    assert response.headers["vary"] == "Accept"


@pytest.mark.parametrize("accept", ["text/html", "image/jpeg", "*/*;q=0", "image/png;q=2"])
async def test_form_that_does_not_exist_is_not_acceptable(
    client: httpx.AsyncClient, accept: str
) -> None:
    response = await client.get("/filters", headers={"Accept": accept})
    assert "image/png, application/json" in check(response, 406).detail
    assert response.headers["vary"] == "Accept"


async def test_format_wins_over_accept(client: httpx.AsyncClient) -> None:
    response = await client.get("/filters?format=png", headers={"Accept": "application/json"})
    assert response.headers["content-type"] == "image/png"


@pytest.mark.parametrize("path", ["/filters", "/filters/7?format=json&layer=conv2"])
async def test_client_that_has_it_gets_304(client: httpx.AsyncClient, path: str) -> None:
    tag = (await client.get(path)).headers["etag"]
    for known in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        response = await client.get(path, headers={"If-None-Match": known})
        assert response.status_code == 304
        assert response.content == b""
        assert response.headers["etag"] == tag
        assert response.headers["vary"] == "Accept"
    assert (await client.get(path, headers={"If-None-Match": '"x"'})).status_code == 200


@pytest.mark.parametrize("form", ["png", "json"])
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/filters?model=flat&", 404),
        ("/filters?layer=conv9&", 404),
        ("/filters/8?", 404),
        ("/filters?model=vgg&", 404),
    ],
)
async def test_what_does_not_exist_is_no_304(
    client: httpx.AsyncClient, path: str, status: int, form: str
) -> None:
    response = await client.get(f"{path}format={form}", headers={"If-None-Match": "*"})
    check(response, status)


async def test_tag_is_strong_and_differs_with_everything_that_is_seen(
    client: httpx.AsyncClient,
) -> None:
    paths = ["", "?scale=3", "?columns=2", "?layer=conv2", "?format=json", "?version=1", "/0", "/1"]
    tags = [(await client.get(f"/filters{path}")).headers["etag"] for path in paths]
    assert len(set(tags)) == len(paths)
    assert all(tag.startswith('"') for tag in tags)
    assert (await client.get("/filters")).headers["etag"] == tags[0]


async def test_head_is_get_without_the_body(client: httpx.AsyncClient) -> None:
    head, get = await client.head("/filters"), await client.get("/filters")
    assert head.status_code == 200
    assert head.content == b""
    for name in ("etag", "content-type", "content-length", "cache-control"):
        assert head.headers[name] == get.headers[name]


async def test_model_without_convolutions_has_no_filters_and_says_why(
    client: httpx.AsyncClient,
) -> None:
    problem = check(await client.get("/filters?model=flat"), 404)
    assert problem.detail == "flat/1 (mean-colour) has no layer with filters"


async def test_unknown_layer_and_filter_are_named_beside_what_there_is(
    client: httpx.AsyncClient,
) -> None:
    problem = check(await client.get("/filters?layer=conv9"), 404)
    assert problem.detail == "no layer 'conv9' with filters; there are: conv1, conv2"
    problem = check(await client.get("/filters/8"), 404)
    assert problem.detail == "no filter 8; the layer has 8, from 0 to 7"
    check(await client.get("/filters/8?format=json"), 404)


async def test_picture_and_json_are_bounded(connect: Connect, tmp_path: Path) -> None:
    store = tmp_path / "store"
    path = write_artifact(store, "colour", "1").path
    layers = {
        "conv1": np.zeros((1024, 3, 3, 3), np.float32),
        "conv2": np.zeros((512, 1024, 3, 3), np.float32),
    }
    write_graph(path, layers)
    async with connect(store=store) as client:
        problem = check(await client.get("/filters?scale=64", headers={"If-None-Match": "*"}), 422)
        assert problem.detail.endswith("8256x8256 pixels; the limit is 10 megapixels")
        problem = check(await client.get("/filters?format=json&layer=conv2"), 422)
        assert problem.detail == (
            "conv2 has 4718592 weights; the limit for JSON is 1048576: "
            "ask for one filter, or for a picture"
        )
        assert (await client.get("/filters/0?format=json&layer=conv2")).status_code == 200


async def test_fully_connected_layer_is_given_whole_as_json_and_as_a_handy_picture(
    connect: Connect, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    path = write_artifact(store, "colour", "1").path
    write_graph(path, {"fc1": np.arange(256 * 3072, dtype=np.float32).reshape(256, 3072)})
    async with connect(store=store) as client:
        answer = (await client.get("/filters", headers={"Accept": "application/json"})).json()
        assert answer["shape"] == [256, 3, 32, 32]
        assert np.array(answer["weights"]).shape == (256, 3, 32, 32)
        assert answer["weights"][1][0][0][:2] == [3072, 3073]
        assert _size(await client.get("/filters")) == (1058, 1058)
        assert _size(await client.get("/filters/0")) == (512, 512)


async def test_older_artifact_shows_the_same_from_its_file_of_weights(
    client: httpx.AsyncClient, connect: Connect, tmp_path: Path
) -> None:
    write_older_artifact(tmp_path, "colour", "2")
    async with connect(store=tmp_path) as older:
        for query in ("", "?layer=conv2", "/3", "?format=json&layer=conv2"):
            found, expected = (
                await older.get(f"/filters{query}"),
                await client.get(f"/filters{query}"),
            )
            assert found.status_code == 200
            assert found.content == expected.content


async def test_damaged_file_under_a_running_service_is_found(
    connect: Connect,
    store_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = copy_store(store_path, tmp_path / "store")
    async with connect(store=store) as client:
        path = store / "colour" / "2" / "model.onnx"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        check(await client.get("/filters"), 500)
    assert "model.onnx: sha256 is" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/filters", "/filters/0", "/confusion-matrix"])
async def test_parameter_that_stands_twice_is_refused(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(f"{path}?model=colour&model=colour")
    assert check(response, 422).detail == "query parameter 'model' stands more than once"


async def test_quality_without_its_zero_counts_as_meant(client: httpx.AsyncClient) -> None:
    accept = {"Accept": "text/html, image/gif, *; q=.2, */*; q=.2"}
    response = await client.get("/filters", headers=accept)
    assert response.headers["content-type"] == "image/png"


async def test_drawings_take_turns_and_too_many_are_refused_at_once(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    service, release = application_of(client).service, threading.Event()
    held = asyncio.create_task(service.explore(release.wait, 10))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(client.get("/filters")) for _ in range(MAX_WAITING_DRAWINGS)]
    async with asyncio.timeout(10):
        while service.explore_gate.waiting < MAX_WAITING_DRAWINGS:
            await asyncio.sleep(0.01)
    response = await client.get("/confusion-matrix")
    assert check(response, 503).detail == f"{MAX_WAITING_DRAWINGS} drawings wait; that is the limit"
    large = picture("red").ljust(100_000, b"\0")  # is decoded in a thread, which no drawing has
    assert (await client.post("/predict", content=large)).status_code == 200
    release.set()
    assert await held
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}


async def test_no_more_of_a_path_is_said_back_than_fits_a_line(client: httpx.AsyncClient) -> None:
    for path in ("/filters/" + "9" * 3000, "/filters/x" + "9" * 3000, "/" + "x" * 3000):
        response = await client.get(path)
        assert response.status_code in {404, 422}
        assert response.json()["instance"] == path[:256]
        assert len(response.content) < 1000


async def test_documentation_shows_both_forms(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    for path in ("/filters", "/filters/{index}"):
        operation = schema["paths"][path]["get"]
        assert set(operation["responses"]["200"]["content"]) == {"image/png", "application/json"}
    text = json.dumps(schema)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in schema["components"]["schemas"]
