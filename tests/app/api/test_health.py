import asyncio
from pathlib import Path

import httpx
import pytest

from app.inference.backends import BATCH_MACS
from tests.conftest import Connect, Picture
from tests.support.artifacts import amend, copy_store
from tests.support.fakes import DyingBackend, FailingBackend, HeldBackend, RecordingBackend
from tests.support.problems import check

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}


async def test_sound_service_is_live_and_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/live")).json() == {"status": "live"}
    assert (await client.get("/health/ready")).json() == {
        "status": "ready",
        "models": ["colour/1", "colour/2", "flat/1"],
    }


async def test_dead_worker_turns_readiness_off_and_not_liveness(
    connect: Connect, picture: Picture
) -> None:
    async with connect(DyingBackend()) as client:
        check(await client.post("/predict", content=picture("red"), headers=PNG), 500)
        response = await client.get("/health/ready")
        assert check(response, 503).detail == "not serving: colour/2"
        assert "retry-after" in response.headers
        assert (await client.get("/health/live")).status_code == 200


async def test_failed_batch_does_not_turn_readiness_off(connect: Connect, picture: Picture) -> None:
    async with connect(FailingBackend()) as client:
        await client.post("/predict", content=picture("red"), headers=PNG)
        assert (await client.get("/health/ready")).status_code == 200


async def test_batch_that_does_not_end_turns_readiness_off_until_it_does(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    limits = {"stall_seconds": 1, "request_timeout_seconds": 2}
    async with connect(backend, **limits) as client:
        asking = asyncio.create_task(client.post("/predict", content=picture("red"), headers=PNG))
        assert await asyncio.to_thread(backend.entered.wait, 60)
        assert (await client.get("/health/ready")).status_code == 200
        await asyncio.sleep(1.2)
        response = await client.get("/health/ready")
        assert check(response, 503).detail == "not serving: colour/2"
        check(await asking, 504)
        backend.release.set()
        async with asyncio.timeout(5):
            while (await client.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.01)
        response = await client.post("/predict", content=picture("red"), headers=PNG)
        assert response.status_code == 200


async def test_heavy_model_computes_a_large_request_in_batches_that_end_soon(
    connect: Connect, picture: Picture, store_path: Path, tmp_path: Path
) -> None:
    store = copy_store(store_path, tmp_path / "store")
    amend(store / "colour" / "2", macs=BATCH_MACS // 3)
    backend, labels = RecordingBackend(), ["red", "green", "blue", "cyan"] * 2
    files = [("file", (label, picture(label), "image/png")) for label in labels]
    async with connect(backend, store=store) as client:
        response = await client.post("/predict", files=files)
        assert (await client.post("/predict?model=flat", files=files)).status_code == 200
    assert [found["label"] for found in response.json()["predictions"]] == labels
    assert [len(batch) for batch in backend.batches] == [3, 3, 2, 8]


async def test_probes_answer_head(client: httpx.AsyncClient) -> None:
    assert (await client.head("/health/ready")).status_code == 200
