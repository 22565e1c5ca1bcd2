import httpx
import pytest

from tests.conftest import Connect, Picture
from tests.fakes import DyingBackend, FailingBackend
from tests.problems import check

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


async def test_probes_answer_head(client: httpx.AsyncClient) -> None:
    assert (await client.head("/health/ready")).status_code == 200
