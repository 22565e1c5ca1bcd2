import asyncio
import base64
import io
import re
import struct
import threading
import time
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from app.api import pictures
from app.api.openapi import EXAMPLE_BASE64
from app.api.schemas import Predictions
from app.errors import QueueFull
from app.images import RgbImage
from app.images.decode import decode_placed
from app.images.placement import Placement
from bench.harness.requests import message
from tests.conftest import Connect, MakeSettings, Picture
from tests.support.applications import application_of
from tests.support.artifacts import CLASSES, numpy_predict, solid
from tests.support.fakes import FailingBackend, HeldBackend, RecordingBackend
from tests.support.problems import check
from tests.support.servers import sockets

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}


async def _until(client: httpx.AsyncClient, line: str) -> None:
    """Wait for a line of the metrics."""
    async with asyncio.timeout(10):
        while line not in (await client.get("/metrics")).text.splitlines():
            await asyncio.sleep(0.005)


async def _until_waiting(client: httpx.AsyncClient, images: int) -> None:
    """Wait until so many images are in the queue of the default model."""
    labels = '{model="colour",version="2"}'
    await _until(client, f"convscope_queue_images{labels} {images:.1f}")


async def _until_in_flight(client: httpx.AsyncClient, requests: int) -> None:
    """Wait until so many requests are being answered; the one that asks counts itself."""
    await _until(client, f"convscope_http_requests_in_flight {requests + 1:.1f}")


def _post(body: bytes) -> bytes:
    return message("POST /predict", body, "Content-Type: image/png")


def _files(*parts: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("file", (name, data, "image/png")) for name, data in parts]


async def test_answer_is_the_documented_one(client: httpx.AsyncClient, picture: Picture) -> None:
    response = await client.post("/predict?top_k=2", files=_files(("a.png", picture("red"))))
    expected = numpy_predict(solid("red"))[0]
    (prediction,) = response.json().pop("predictions")
    assert response.json() | {"predictions": None} == {
        "model": "colour",
        "version": "2",
        "predictions": None,
    }
    assert list(prediction) == ["label", "class_id", "confidence", "probabilities", "filename"]
    assert (prediction["label"], prediction["class_id"]) == ("red", 0)
    assert prediction["confidence"] == pytest.approx(expected[0], rel=1e-5)
    # Magenta and yellow are equally likely: the first of them in the model's order stands.
    assert list(prediction["probabilities"]) == ["red", "magenta"]
    assert prediction["probabilities"]["red"] == prediction["confidence"]
    assert prediction["filename"] == "a.png"


async def test_answer_follows_the_schema_whatever_the_file_is_called(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    names = ['a"b\\c.png', "\u732b.png", "x\u2028.png", "' OR 1=1.png"]
    response = await client.post(
        "/predict", files=_files(*[(name, picture("red")) for name in names])
    )
    answer = Predictions.model_validate_json(response.content, strict=True)
    assert len(answer.predictions) == len(names)
    assert answer.model_dump(exclude_none=True) == response.json()
    assert {"\u732b.png", "' OR 1=1.png"} <= {item.filename for item in answer.predictions}


@pytest.mark.parametrize(
    "media_type", ["image/png", "image/x-whatever", "application/octet-stream"]
)
async def test_raw_body_is_classified_and_has_no_filename(
    client: httpx.AsyncClient, picture: Picture, media_type: str
) -> None:
    body = picture("green")
    response = await client.post("/predict", content=body, headers={"Content-Type": media_type})
    (prediction,) = response.json()["predictions"]
    assert prediction["label"] == "green"
    assert "filename" not in prediction


async def test_many_parts_are_answered_in_their_order(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    parts = [(f"{label}.png", picture(label)) for label in CLASSES]
    answer = (await client.post("/predict", files=_files(*parts))).json()
    assert [item["label"] for item in answer["predictions"]] == list(CLASSES)
    assert [item["filename"] for item in answer["predictions"]] == [name for name, _ in parts]


async def test_base64_in_json_is_classified(client: httpx.AsyncClient, picture: Picture) -> None:
    images = [base64.b64encode(picture(label)).decode() for label in ("blue", "yellow")]
    answer = (await client.post("/predict", json={"images": images})).json()
    assert [item["label"] for item in answer["predictions"]] == ["blue", "yellow"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
async def test_formats_are_read(client: httpx.AsyncClient, picture: Picture, kind: str) -> None:
    response = await client.post("/predict", content=picture("blue", kind), headers=PNG)
    assert response.json()["predictions"][0]["label"] == "blue"


async def test_file_with_a_fault_that_was_read_has_a_warning(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    jpeg = picture("blue", "JPEG")
    parts = _files(("sound.jpg", jpeg), ("cut.jpg", jpeg[:-2]))
    answer = (await client.post("/predict", files=parts)).json()
    sound, cut = answer["predictions"]
    assert "warning" not in sound
    assert cut.pop("warning") == "the JPEG has no end marker; its pixels are all there"
    assert cut == sound | {"filename": "cut.jpg"}


async def test_large_image_is_decoded_in_a_thread_and_answered_the_same(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    # Few bytes and many pixels: the header and not the length must decide.
    body = picture("cyan", size=(2000, 2000))
    assert len(body) < 64 << 10
    response = await client.post("/predict", content=body, headers=PNG)
    assert response.json()["predictions"][0]["label"] == "cyan"


@pytest.mark.parametrize(("top_k", "count"), [(None, 6), (1, 1), (6, 6)])
async def test_top_k_probabilities_are_given_highest_first(
    client: httpx.AsyncClient, picture: Picture, top_k: int | None, count: int
) -> None:
    params = {} if top_k is None else {"top_k": top_k}
    response = await client.post("/predict", params=params, content=picture("red"), headers=PNG)
    values = list(response.json()["predictions"][0]["probabilities"].values())
    assert len(values) == count
    assert values == sorted(values, reverse=True)


async def test_probabilities_of_all_classes_sum_to_one(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    response = await client.post("/predict?top_k=6", content=picture("red"), headers=PNG)
    values = response.json()["predictions"][0]["probabilities"].values()
    assert sum(values) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("top_k=7", "top_k=7: the limit is the model's 6 classes"),
        ("top_k=0", "top_k=0: Input should be greater than or equal to 1"),
        ("top_k=all", "top_k=all: Input should be a valid integer"),
        ("topk=3", "unknown query parameter 'topk'; there are: model, version, top_k"),
    ],
)
async def test_wrong_parameter_is_named_with_its_limit(
    client: httpx.AsyncClient, picture: Picture, query: str, detail: str
) -> None:
    response = await client.post(f"/predict?{query}", content=picture("red"), headers=PNG)
    assert check(response, 422).detail.startswith(detail)


async def test_model_and_version_choose(client: httpx.AsyncClient, picture: Picture) -> None:
    for query, expected in (
        ("model=colour&version=1", ("colour", "1")),
        ("version=1", ("colour", "1")),
        ("model=flat", ("flat", "1")),
    ):
        answer = (
            await client.post(f"/predict?{query}", content=picture("red"), headers=PNG)
        ).json()
        assert (answer["model"], answer["version"]) == expected
    response = await client.post("/predict?model=vgg", content=picture("red"), headers=PNG)
    assert "there are: colour, flat" in check(response, 404).detail


async def test_server_timing_says_where_the_time_went(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    response = await client.post("/predict", content=picture("red"), headers=PNG)
    timing = response.headers["server-timing"]
    assert re.fullmatch(
        r"read;dur=[\d.]+, decode;dur=[\d.]+, queue;dur=[\d.]+, inference;dur=[\d.]+", timing
    )


@pytest.mark.parametrize(
    ("content", "media_type", "status", "title"),
    [
        (b"", "image/png", 400, "Empty upload"),
        (b"hello", "image/png", 415, "Not an image"),
        (b"hello", "text/plain", 415, "Unsupported media type"),
        (b"{}", "application/json", 400, "Malformed upload"),
        (b"--x", "multipart/form-data; boundary=x", 400, "Malformed upload"),
    ],
)
async def test_body_that_is_no_image_is_refused_with_its_own_problem(
    client: httpx.AsyncClient, content: bytes, media_type: str, status: int, title: str
) -> None:
    response = await client.post("/predict", content=content, headers={"Content-Type": media_type})
    assert check(response, status).title == title


@pytest.mark.parametrize(
    "content", [b"data:image/png;base64,iVBORw0K", b"<!doctype html>\n<p>", b"a"]
)
async def test_refusal_of_other_bytes_shows_how_they_begin(
    client: httpx.AsyncClient, content: bytes
) -> None:
    as_body = await client.post("/predict", content=content, headers=PNG)
    as_part = await client.post("/predict", files=_files(("a.png", content)))
    for response in (as_body, as_part):
        assert check(response, 415).detail.endswith(f"it begins with {content[:16]!r}")


async def test_truncated_image_is_refused(client: httpx.AsyncClient, picture: Picture) -> None:
    response = await client.post("/predict", content=picture("red", "JPEG")[:300], headers=PNG)
    assert check(response, 422).title == "Damaged image"


async def test_limits_are_the_settings(connect: Connect, picture: Picture) -> None:
    limits = {
        "max_body_bytes": 2000,
        "max_images": 2,
        "max_pixels": 9000,
        "max_pixels_whole": 5000,
    }
    red = ("red.png", picture("red"))
    async with connect(**limits) as client:
        response = await client.post("/predict", content=bytes(2001), headers=PNG)
        assert "limit is 2000 bytes" in check(response, 413).detail
        response = await client.post("/predict", files=_files(red, red, red))
        assert "limit is 2" in check(response, 413).detail
        large = picture("red", size=(80, 80))
        response = await client.post("/predict", content=large, headers=PNG)
        assert "80x80 pixels; the limit is 0.005 megapixels" in check(response, 413).detail
        response = await client.post(
            "/predict", content=picture("red", "JPEG", (80, 80)), headers=PNG
        )
        assert response.status_code == 200


async def test_bad_image_among_many_is_named_and_nothing_is_half_answered(
    connect: Connect, picture: Picture
) -> None:
    backend = RecordingBackend()
    async with connect(backend) as client:
        parts = _files(("a.png", picture("red")), ("b.png", b"hello"), ("c.png", picture("red")))
        problem = check(await client.post("/predict", files=parts), 415)
        assert problem.detail.startswith("image 1 (b.png) of 3: not an image")
        images = [base64.b64encode(data).decode() for data in (picture("red"), b"hello")]
        problem = check(await client.post("/predict", json={"images": images}), 415)
        assert problem.detail.startswith("image 1 of 2: not an image")
    assert not backend.batches


async def test_decompression_bomb_is_refused_quickly(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    body = picture("red", size=(6000, 6000))
    spent = []
    for _ in range(5):
        started = time.process_time()
        problem = check(await client.post("/predict", content=body, headers=PNG), 413)
        spent.append(time.process_time() - started)
    assert min(spent) < 0.05
    assert problem.detail.startswith("image is 6000x6000 pixels; the limit is 12.5 megapixels")


async def test_busy_service_refuses_at_once_with_retry_after(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    async with connect(backend, max_images=1, queue_capacity=1) as client:
        first = asyncio.create_task(client.post("/predict", content=picture("red"), headers=PNG))
        assert await asyncio.to_thread(backend.entered.wait, 5)
        second = asyncio.create_task(client.post("/predict", content=picture("red"), headers=PNG))
        await _until_waiting(client, 1)
        refused = await client.post("/predict", content=picture("red"), headers=PNG)
        backend.release.set()
        assert [(await task).status_code for task in (first, second)] == [200, 200]
    assert check(refused, 503).title == "Too busy"
    assert refused.headers["retry-after"] == "1"


async def test_request_that_takes_too_long_is_told_so(connect: Connect, picture: Picture) -> None:
    backend = HeldBackend()
    async with connect(backend, request_timeout_seconds=0.1) as client:
        response = await client.post("/predict", content=picture("red"), headers=PNG)
        backend.release.set()
    assert check(response, 504).title == "Took too long"
    assert "0.1 s" in response.json()["detail"]


async def test_client_says_how_long_it_waits(connect: Connect, picture: Picture) -> None:
    backend = HeldBackend()
    async with connect(backend, max_request_timeout_seconds=0.3) as client:
        started = time.perf_counter()
        for wanted, limit in (("100", "0.1 s"), ("9999999999", "0.3 s")):
            headers = PNG | {"X-Request-Timeout-Ms": wanted}
            response = await client.post("/predict", content=picture("red"), headers=headers)
            assert check(response, 504).detail == f"no answer within {limit}"
        assert time.perf_counter() - started < 2
        backend.release.set()
    assert sum(map(len, backend.batches)) <= 1


@pytest.mark.parametrize("wanted", ["0", "-5", "1.5", "soon", "", "9" * 40, "\u0665"])
async def test_wrong_time_to_wait_is_refused(
    client: httpx.AsyncClient, picture: Picture, wanted: str
) -> None:
    headers = [(b"content-type", b"image/png"), (b"x-request-timeout-ms", wanted.encode())]
    response = await client.post("/predict", content=picture("red"), headers=headers)
    assert "must be a whole number of milliseconds from 1 to 30000" in check(response, 422).detail


async def test_parameter_that_stands_twice_is_refused(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    response = await client.post("/predict?top_k=1&top_k=2", content=picture("red"), headers=PNG)
    assert check(response, 422).detail == "query parameter 'top_k' stands more than once"


@pytest.mark.parametrize("path", ["/predict", "/explain", "/filters"])
async def test_query_of_very_many_parameters_is_refused_unparsed(
    client: httpx.AsyncClient, path: str
) -> None:
    """To look for a name that stands twice would take a time that grows with their square."""
    query = "&".join([*(f"{index:x}" for index in range(9000)), "0"])
    method = "GET" if path == "/filters" else "POST"
    response = await client.request(method, f"{path}?{query}")
    expected = "the query has 9001 parameters; the limit is 64"
    assert check(response, 422).detail == expected


async def test_image_of_a_client_that_has_gone_is_never_computed(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    async with connect(backend) as client, sockets(client) as (port, _):
        first = asyncio.create_task(client.post("/predict", content=picture("red"), headers=PNG))
        assert await asyncio.to_thread(backend.entered.wait, 5)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_post(picture("blue")))
        await _until_waiting(client, 1)
        writer.close()
        await _until_waiting(client, 0)
        await _until(
            client,
            'convscope_http_requests_total{method="POST",route="/predict",status="499"} 1.0',
        )
        backend.release.set()
        assert (await first).status_code == 200
    assert sum(map(len, backend.batches)) == 1


async def test_client_that_sends_its_next_request_early_has_not_gone(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    async with connect(backend) as client, sockets(client) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_post(picture("red")))
        assert await asyncio.to_thread(backend.entered.wait, 5)
        await client.get("/health/live")  # a few turns of the loop
        writer.write(_post(picture("blue")))
        await client.get("/health/live")
        backend.release.set()
        for label in (b"red", b"blue"):
            assert await reader.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
            assert b'"label":"' + label in await reader.readuntil(b"}]}")
        writer.close()
    assert sum(map(len, backend.batches)) == 2


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that were decoded in a thread."""
    found: list[bytes] = []

    def spy(data: bytes, *args: Any, **kwargs: Any) -> tuple[RgbImage, Placement]:
        if threading.current_thread() is not threading.main_thread():
            found.append(data)
        return decode_placed(data, *args, **kwargs)

    monkeypatch.setattr(pictures, "decode_placed", spy)
    return found


@pytest.mark.parametrize("leaves", [True, False])
async def test_image_that_nobody_waits_for_is_never_decoded(
    connect: Connect, picture: Picture, decoded: list[bytes], leaves: bool
) -> None:
    backend, release = RecordingBackend(), threading.Event()
    large = picture("red").ljust(100_000, b"\0")
    patience = 10 if leaves else 0.1
    settings = {"decode_threads": 1, "request_timeout_seconds": patience}
    async with connect(backend, **settings) as client, sockets(client) as (port, _):
        held = asyncio.create_task(application_of(client).service.decode(release.wait, 10))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_post(large))
        if leaves:
            async with asyncio.timeout(10):
                while not application_of(client).service.bodies.held:
                    await asyncio.sleep(0.005)
        else:
            assert b" 504 " in await reader.readuntil(b"\r\n")
            assert b"no answer within 0.1 s" in await reader.readuntil(b"}")
        writer.close()
        async with asyncio.timeout(10):
            while application_of(client).service.bodies.held:
                await asyncio.sleep(0.005)
        release.set()
        assert await held
    assert not decoded
    assert not backend.batches


async def test_work_that_nobody_waits_for_still_takes_its_thread(connect: Connect) -> None:
    release = threading.Event()
    async with connect(decode_threads=1, max_wait_ms=1) as client:
        service = application_of(client).service
        await service.decode(time.sleep, 0.02)
        left = asyncio.create_task(service.decode(release.wait, 10))
        await asyncio.sleep(0.01)
        left.cancel()
        behind = [asyncio.create_task(service.decode(int)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull, match="longer than 1 ms"):
            service.decode_threads.check_wait()
        release.set()
        await asyncio.gather(*behind)
        service.decode_threads.check_wait()


async def test_others_have_their_turn_between_two_images_of_a_request(
    connect: Connect, picture: Picture, decoded: list[bytes]
) -> None:
    parts = _files(*[("a.png", picture("red", size=(1400, 1400)))] * 12)
    async with connect(decode_threads=1) as client:
        long = asyncio.create_task(client.post("/predict", files=parts))
        async with asyncio.timeout(10):
            while not application_of(client).service.bodies.held:
                await asyncio.sleep(0)
        await application_of(client).service.decode(int)
        assert len(decoded) < 12
        assert (await long).status_code == 200


async def test_bodies_that_do_not_fit_together_are_refused_at_once(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    body = picture("red").ljust(1500, b"\0")
    async with connect(backend, max_body_bytes=2000, max_held_bytes=2000) as client:
        for _ in range(3):  # what is refused is not held on to
            check(await client.post("/predict", content=bytes(1500), headers=PNG), 415)
        first = asyncio.create_task(client.post("/predict", content=body, headers=PNG))
        assert await asyncio.to_thread(backend.entered.wait, 5)
        refused = await client.post("/predict", content=body, headers=PNG)
        backend.release.set()
        assert (await first).status_code == 200
        assert (await client.post("/predict", content=body, headers=PNG)).status_code == 200
        assert application_of(client).service.bodies.held == 0
    assert check(refused, 503).detail == (
        "bodies of 1500 bytes are held and 1500 more do not fit; the limit is 2000 bytes"
    )
    assert refused.headers["retry-after"] == "1"


def test_a_full_body_always_fits_when_nothing_is_held(make_settings: MakeSettings) -> None:
    with pytest.raises(ValidationError, match="CONVSCOPE_MAX_HELD_BYTES=2000: must be at least"):
        make_settings(max_held_bytes=2000)


async def test_backend_that_fails_is_a_500_that_says_nothing_of_the_inside(
    connect: Connect, picture: Picture, capsys: pytest.CaptureFixture[str]
) -> None:
    black = io.BytesIO()
    Image.new("RGB", (32, 32)).save(black, "PNG")
    async with connect(FailingBackend()) as client:
        response = await client.post("/predict", content=black.getvalue(), headers=PNG)
        check(response, 500)
        assert "secret" not in response.text
        after = await client.post("/predict", content=picture("red"), headers=PNG)
        assert after.status_code == 200
    assert "secret of the inside" in capsys.readouterr().err


async def test_concurrent_requests_are_batched_and_answered_apart(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    async with connect(backend) as client:

        async def ask(label: str) -> str:
            response = await client.post("/predict", content=picture(label), headers=PNG)
            return str(response.json()["predictions"][0]["label"])

        tasks = [asyncio.create_task(ask(label)) for label in CLASSES * 3]
        assert await asyncio.to_thread(backend.entered.wait, 5)
        await _until_in_flight(client, len(tasks))
        backend.release.set()
        assert await asyncio.gather(*tasks) == list(CLASSES * 3)
    assert max(len(batch) for batch in backend.batches) > 1


async def test_pixels_reach_the_backend_unchanged(connect: Connect) -> None:
    backend = RecordingBackend()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "PNG")
    async with connect(backend) as client:
        await client.post("/predict", content=body.getvalue(), headers=PNG)
    np.testing.assert_array_equal(backend.batches[0][0], pixels)


async def test_documentation_has_examples_that_work(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    content = schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(content) == {
        "multipart/form-data",
        "image/*",
        "application/octet-stream",
        "application/json",
    }
    example = content["application/json"]["example"]
    assert (await client.post("/predict", json=example)).status_code == 200
    image = Image.open(io.BytesIO(base64.b64decode(EXAMPLE_BASE64)))
    assert image.size == (32, 32)


async def test_small_image_in_one_large_tile_is_read(client: httpx.AsyncClient) -> None:
    tile = zlib.compress(bytes(256 * 256))
    short, long = 3, 4
    tags = [
        (256, long, 100),  # width
        (257, long, 100),  # height
        (258, short, 8),  # bits a sample
        (259, short, 8),  # deflate
        (262, short, 1),  # zero is black
        (277, short, 1),  # samples a pixel
        (322, long, 256),  # tile width
        (323, long, 256),  # tile height
        (324, long, 134),  # where the tile begins
        (325, long, len(tile)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
    response = await client.post("/predict", content=head + entries + bytes(4) + tile)
    assert response.status_code == 200
