import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from app.api.routes.explain import TURN_MACS
from app.api.schemas import Explanation
from app.api.state import MAX_WAITING_EXPLANATIONS
from app.artifact.files import LAYERS
from bench.harness.requests import message
from tests.conftest import Connect, Picture
from tests.support.applications import application_of
from tests.support.artifacts import CLASSES, amend, copy_store, numpy_predict, solid
from tests.support.fakes import (
    HeldBackend,
    LaterHeldBackend,
    PatchBackend,
    RecordingBackend,
    SlowBackend,
)
from tests.support.inside_artifacts import averaging_network
from tests.support.pictures import as_png
from tests.support.problems import check
from tests.support.servers import sockets
from tests.support.tiny_networks import DEVIATION, MEAN
from training.data import dataset

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}
BATCHES = 1 + 2  # the image as it is, and 25 copies in batches of 16


def _with_patch(top: int, left: int) -> NDArray[np.uint8]:
    """An image that is black but for the patch that the backend sees."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[top : top + 4, left : left + 4, 0] = 255
    return image


async def _heat(client: httpx.AsyncClient, image: NDArray[np.uint8], query: str = "") -> Any:
    response = await client.post(f"/explain?{query}", content=as_png(image))
    assert response.status_code == 200
    return np.array(response.json()["heat"])


async def test_answer_is_the_documented_one(client: httpx.AsyncClient, picture: Picture) -> None:
    response = await client.post("/explain", content=picture("cyan"), headers=PNG)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["vary"] == "Accept"
    answer = Explanation.model_validate_json(response.content, strict=True)
    assert answer.model_dump() == response.json()
    assert (answer.model, answer.version, answer.method) == ("colour", "2", "regions")
    assert (answer.label, answer.class_id) == ("cyan", CLASSES.index("cyan"))
    expected = numpy_predict(solid("cyan"))[0, CLASSES.index("cyan")]
    assert answer.probability == pytest.approx(expected, rel=1e-5)
    assert np.array(answer.heat).shape == (32, 32)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (28, 28), (13, 9), (4, 27)])
async def test_occlusion_points_at_what_the_answer_depends_on(
    connect: Connect, top: int, left: int
) -> None:
    async with connect(PatchBackend(top, left)) as client:
        heat = await _heat(client, _with_patch(top, left), "method=occlusion")
        against = await _heat(client, _with_patch(top, left), "method=occlusion&class=red")
    rows, columns = np.nonzero(heat > heat.max() / 2)
    assert abs(rows.mean() - (top + 1.5)) < 3
    assert abs(columns.mean() - (left + 1.5)) < 3
    distance = np.hypot(*(np.indices((32, 32)) - np.array([[[top]], [[left]]])))
    assert np.abs(heat[distance > 16]).max() == 0
    assert heat[top + 1, left + 1] > 0 > against[top + 1, left + 1]


async def test_class_is_the_predicted_one_unless_it_is_named(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    for query, label in (("", "red"), ("?class=blue", "blue"), ("?class=red", "red")):
        answer = (await client.post(f"/explain{query}", content=picture("red"))).json()
        assert (answer["label"], answer["class_id"]) == (label, CLASSES.index(label))
        expected = numpy_predict(solid("red"))[0, CLASSES.index(label)]
        assert answer["probability"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("class=violet", f"no class 'violet'; there are: {', '.join(CLASSES)}"),
        ("method=gradcam", "method=gradcam: Input should be 'regions', 'occlusion' or 'cam'"),
        ("format=csv", "format=csv: Input should be 'json', 'png' or 'overlay'"),
        (
            "clas=red",
            "unknown query parameter 'clas'; there are: model, version, class, method, format",
        ),
    ],
)
async def test_wrong_parameter_is_named_with_what_there_is(
    client: httpx.AsyncClient, picture: Picture, query: str, detail: str
) -> None:
    response = await client.post(f"/explain?{query}", content=picture("red"), headers=PNG)
    assert check(response, 422).detail == detail


@pytest.mark.parametrize("name", ["red", "yellow"])
async def test_cam_is_what_the_last_layer_makes_of_the_features(
    connect: Connect, inside_store: Path, name: str
) -> None:
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    network, class_id = averaging_network(), CLASSES.index(name)
    with torch.no_grad():
        values = dataset.normalize(torch.from_numpy(image[np.newaxis]), MEAN, DEVIATION)
        logit = float(network(values)[0, class_id])
        for layer in list(network)[:-3]:  # averaging, flattening, the last layer
            values = layer(values)
        weights = network.get_parameter("fc.weight")[class_id]
        activation = torch.einsum("c,nchw->nhw", weights, values)
        expected = F.interpolate(activation[np.newaxis], (32, 32), mode="bilinear")[0, 0]
        bias = float(network.get_parameter("fc.bias")[class_id])
    assert float(activation.mean()) + bias == pytest.approx(logit, rel=1e-4)
    async with connect(store=inside_store, default_model="averaging") as client:
        heat = await _heat(client, image, f"method=cam&class={name}")
    np.testing.assert_allclose(heat, expected, atol=1e-4)


async def test_cam_is_refused_where_the_network_does_not_average(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    problem = check(await client.post("/explain?method=cam", content=picture("red")), 404)
    assert problem.type == "urn:convscope:problem:nothing-to-see"
    assert problem.detail == (
        "method=cam: colour/2 (mean-colour) does not end in global average pooling; "
        "method=regions and method=occlusion work for every model"
    )


async def test_cam_of_a_model_without_its_layers_says_so_and_the_others_work(
    connect: Connect, inside_store: Path, tmp_path: Path, picture: Picture
) -> None:
    store = copy_store(inside_store, tmp_path / "store")
    path = store / "averaging" / "1"
    (path / LAYERS).unlink()
    amend(path)
    async with connect(store=store, default_model="averaging") as client:
        response = await client.post("/explain?method=cam", content=picture("red"))
        assert check(response, 404).detail.startswith("averaging/1 was exported without its layers")
        assert (await client.post("/explain", content=picture("red"))).status_code == 200


@pytest.mark.parametrize("path", ["/explain", "/activations?layer=pixels&format=png"])
async def test_more_than_one_image_is_refused(
    client: httpx.AsyncClient, picture: Picture, path: str
) -> None:
    parts = [("file", ("a.png", picture("red"), "image/png"))] * 2
    assert "limit is 1" in check(await client.post(path, files=parts), 413).detail
    images = [base64.b64encode(picture("red")).decode()] * 2
    assert "limit is 1" in check(await client.post(path, json={"images": images}), 413).detail
    assert (await client.post(path, files=parts[:1])).status_code == 200
    assert (await client.post(path, json={"images": images[:1]})).status_code == 200


@pytest.mark.parametrize("path", ["/explain", "/activations?layer=pixels&format=png"])
async def test_what_is_no_picture_is_refused(
    client: httpx.AsyncClient, picture: Picture, path: str
) -> None:
    cut = picture("red", "JPEG")[:300]
    for content, media_type, status in (
        (b"", "image/png", 400),
        (b"hello", "image/png", 415),
        (b"hello", "text/plain", 415),
        (cut, "image/jpeg", 422),
    ):
        headers = {"Content-Type": media_type}
        check(await client.post(path, content=content, headers=headers), status)
    assert application_of(client).service.bodies.held == 0


async def test_client_says_how_long_it_waits(connect: Connect, picture: Picture) -> None:
    backend = HeldBackend()
    async with connect(backend) as client:
        headers = PNG | {"X-Request-Timeout-Ms": "100"}
        response = await client.post("/explain", content=picture("red"), headers=headers)
        backend.release.set()
    assert check(response, 504).detail == "no answer within 0.1 s"


async def test_all_batches_together_have_that_long_and_none_is_computed_after(
    connect: Connect, picture: Picture
) -> None:
    backend = SlowBackend(0.1)
    async with connect(backend, max_batch=5, max_images=5) as client:
        headers = PNG | {"X-Request-Timeout-Ms": "250"}
        response = await client.post("/explain", content=picture("red"), headers=headers)
        assert check(response, 504).detail == "no answer within 0.25 s"
        assert application_of(client).service.bodies.held == 0
        await asyncio.sleep(0.3)
    assert 1 <= len(backend.batches) <= 3  # of 6


@pytest.mark.parametrize("wanted", ["0", "soon"])
async def test_wrong_time_to_wait_is_refused(
    client: httpx.AsyncClient, picture: Picture, wanted: str
) -> None:
    headers = PNG | {"X-Request-Timeout-Ms": wanted}
    response = await client.post("/explain", content=picture("red"), headers=headers)
    assert "must be a whole number of milliseconds" in check(response, 422).detail


async def test_others_have_their_turn_between_two_batches(
    connect: Connect, picture: Picture
) -> None:
    backend = LaterHeldBackend()
    async with connect(backend) as client:
        long = asyncio.create_task(client.post("/explain", content=picture("red")))
        assert await asyncio.to_thread(backend.entered.wait, 5)
        short = asyncio.create_task(client.post("/predict", content=picture("blue")))
        async with asyncio.timeout(10):
            while (
                "convscope_http_requests_in_flight 3.0" not in (await client.get("/metrics")).text
            ):
                await asyncio.sleep(0.005)
        backend.release.set()
        assert (await short).json()["predictions"][0]["label"] == "blue"
        assert (await long).status_code == 200
    with_blue = [(batch == solid("blue")).all(axis=(1, 2, 3)).any() for batch in backend.batches]
    assert with_blue.index(True) == 2
    assert len(with_blue) >= BATCHES


async def test_explanations_take_turns_and_too_many_are_refused_at_once(
    connect: Connect, picture: Picture
) -> None:
    backend, body = LaterHeldBackend(), picture("red")
    async with connect(backend, max_batch=25) as client:
        first, *waiting = (
            asyncio.create_task(client.post("/explain", content=body))
            for _ in range(1 + MAX_WAITING_EXPLANATIONS)
        )
        gates = application_of(client).service.explain_gates.values()
        async with asyncio.timeout(10):
            while sum(gate.waiting for gate in gates) < MAX_WAITING_EXPLANATIONS:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(backend.entered.wait, 10)
        refused = await client.post("/explain", content=body)
        assert "explanations wait; that is the limit" in check(refused, 503).detail
        assert len(backend.batches) == 1  # nobody who waits has asked the model yet
        backend.release.set()
        answers = await asyncio.gather(first, *waiting)
    assert [answer.status_code for answer in answers] == [200] * (1 + MAX_WAITING_EXPLANATIONS)
    sizes = [len(batch) for batch in backend.batches]
    assert sizes == [1, 25] * (1 + MAX_WAITING_EXPLANATIONS)  # one after the other


async def test_heavy_model_is_asked_for_less_at_a_time(
    connect: Connect, picture: Picture, store_path: Path, tmp_path: Path
) -> None:
    store = copy_store(store_path, tmp_path / "store")
    amend(store / "colour" / "2", macs=TURN_MACS // 3)
    backend = RecordingBackend()
    async with connect(backend, store=store) as client:
        assert (await client.post("/explain", content=picture("red"))).status_code == 200
    assert [len(batch) for batch in backend.batches] == [1] + [3] * 8 + [1]


async def test_client_that_has_gone_has_no_further_batch_computed(
    connect: Connect, picture: Picture
) -> None:
    backend = LaterHeldBackend()
    body = picture("red")
    async with connect(backend) as client, sockets(client) as (port, _):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(message("POST /explain", body, "Content-Type: image/png"))
        assert await asyncio.to_thread(backend.entered.wait, 5)
        writer.close()
        gone = 'convscope_http_requests_total{method="POST",route="/explain",status="499"} 1.0'
        async with asyncio.timeout(10):
            while gone not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.005)
        backend.release.set()
        assert (await client.post("/predict", content=body)).status_code == 200
    assert sum(map(len, backend.batches)) == 1 + 16 + 1


async def test_queue_that_is_shorter_than_a_batch_is_long_enough(
    connect: Connect, picture: Picture
) -> None:
    backend = RecordingBackend()
    async with connect(backend, queue_capacity=4, max_images=4) as client:
        assert (await client.post("/explain", content=picture("red"))).status_code == 200
    assert sum(map(len, backend.batches)) == 1 + 25


@pytest.mark.parametrize("path", ["/explain", "/activations"])
async def test_documentation_says_what_is_taken_and_given(
    client: httpx.AsyncClient, path: str
) -> None:
    schema = (await client.get("/openapi.json")).json()
    operation = schema["paths"][path]["post"]
    body = operation["requestBody"]["content"]
    assert body["application/json"]["schema"]["properties"]["images"]["maxItems"] == 1
    assert body["multipart/form-data"]["schema"]["properties"]["file"]["maxItems"] == 1
    names = {parameter["name"] for parameter in operation["parameters"]}
    own = {"class", "method"} if path == "/explain" else {"layer", "channel", "scale", "columns"}
    assert names == {"model", "version", "format", "X-Request-Timeout-Ms"} | own
    assert set(operation["responses"]["200"]["content"]) == {"image/png", "application/json"}
    assert {"404", "406", "413", "415", "422", "504"} <= set(operation["responses"])
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert answer.rpartition("/")[2] in schema["components"]["schemas"]
