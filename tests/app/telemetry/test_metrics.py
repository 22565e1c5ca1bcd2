import asyncio
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.main import create_app
from app.telemetry import exposition
from app.telemetry.exposition import Exposition
from app.telemetry.metrics import Metrics
from tests.conftest import Connect, MakeSettings, Picture
from tests.support.fakes import burn

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}


async def _samples(
    client: httpx.AsyncClient,
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def _key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return f"convscope_{name}", tuple(sorted(labels.items()))


async def test_requests_are_counted_by_method_route_and_status(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    await client.post("/predict", content=picture("red"), headers=PNG)
    await client.post("/predict", content=b"hello", headers=PNG)
    await client.get("/models/colour")
    await client.get("/models/flat")
    await client.head("/models/flat")
    samples = await _samples(client)
    requests = "http_requests_total"
    assert samples[_key(requests, method="POST", route="/predict", status="200")] == 1
    assert samples[_key(requests, method="POST", route="/predict", status="415")] == 1
    assert samples[_key(requests, method="GET", route="/models/{name}", status="200")] == 2
    assert samples[_key(requests, method="HEAD", route="/models/{name}", status="200")] == 1
    durations = "http_request_duration_seconds_count"
    assert samples[_key(durations, method="POST", route="/predict")] == 2


async def test_unknown_paths_and_methods_share_one_label(client: httpx.AsyncClient) -> None:
    for path in ("/a", "/b", "/c?d=e"):
        await client.get(path)
    for method in ("BREW", "WHEN"):
        await client.request(method, "/models")
    samples = await _samples(client)
    requests = "http_requests_total"
    assert samples[_key(requests, method="GET", route="other", status="404")] == 3
    assert samples[_key(requests, method="other", route="/models", status="405")] == 2


async def test_predictions_batches_and_times_are_counted_by_model(
    client: httpx.AsyncClient, picture: Picture
) -> None:
    files = [("file", ("a.png", picture(label), "image/png")) for label in ("red", "red", "blue")]
    await client.post("/predict?model=flat", files=files)
    samples = await _samples(client)
    model = {"model": "flat", "version": "1"}
    assert samples[_key("predictions_total", **model, label="red")] == 2
    assert samples[_key("predictions_total", **model, label="blue")] == 1
    assert samples[_key("batch_images_sum", **model)] == 3
    assert samples[_key("batch_images_count", **model)] == 1
    assert samples[_key("inference_seconds_count", **model)] == 1
    assert samples[_key("queue_seconds_count", **model)] == 1
    assert samples[_key("queue_images", **model)] == 0
    assert samples[_key("decode_seconds_count")] == 1
    assert samples[_key("http_requests_in_flight")] == 1  # the one that asks


async def test_openmetrics_is_given_to_who_asks(client: httpx.AsyncClient) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = await client.get("/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


async def test_applications_do_not_share_metrics(connect: Connect) -> None:
    async with connect() as first, connect() as second:
        await first.get("/models")
        key = _key("http_requests_total", method="GET", route="/models", status="200")
        assert key in await _samples(first)
        assert key not in await _samples(second)


def test_processes_are_added_up_and_gauges_of_dead_ones_are_dropped(tmp_path: Path) -> None:
    program = """
import os, sys
import asyncio
from app.telemetry.exposition import Exposition
from app.telemetry.metrics import Metrics, ModelMetrics
metrics = Metrics()
model = ModelMetrics(metrics, "m", "1", metrics.predictions)
model.answered(["cat"], 0.1)
model.waiting(5)
metrics.flush()
if sys.argv[1] == "render":
    print(asyncio.run(Exposition(metrics).text(""))[0].decode())
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for action in ("die", "die", "render"):
        done = subprocess.run(
            [sys.executable, "-c", program, action],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    lines = done.stdout.splitlines()
    assert 'convscope_predictions_total{label="cat",model="m",version="1"} 3.0' in lines
    assert 'convscope_queue_images{model="m",version="1"} 5.0' in lines
    assert len(list(tmp_path.glob("gauge_live*.db"))) == 1


def test_scrapes_at_the_same_time_drop_the_gauges_of_dead_processes_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    nobody = 1 << 23  # process ids end at 1 << 22
    for pid in range(nobody, nobody + 200):
        (tmp_path / f"gauge_livesum_{pid}.db").write_bytes(b"\x08" + bytes(7))

    def scrape() -> None:  # as another process does
        asyncio.run(Exposition(Metrics()).text(""))

    with ThreadPoolExecutor(8) as scrapers:
        for answer in [scrapers.submit(scrape) for _ in range(8)]:
            answer.result()
    assert not list(tmp_path.iterdir())


async def test_file_that_a_starting_process_has_just_made_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (tmp_path / f"counter_{os.getpid()}.db").touch()
    await Exposition(Metrics()).text("")


async def test_metrics_are_there_while_every_thread_decodes(make_settings: MakeSettings) -> None:
    app = create_app(make_settings(decode_threads=1))
    transport = httpx.ASGITransport(app=app)
    release = threading.Event()
    async with (
        app.framework.router.lifespan_context(app.framework),
        httpx.AsyncClient(transport=transport, base_url="http://convscope") as client,
    ):
        app.service.decode_threads.submit(release.wait, 60)
        try:
            async with asyncio.timeout(30):
                assert (await client.get("/metrics")).status_code == 200
        finally:
            release.set()


async def test_own_registry_is_rendered_without_a_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    content, _ = await Exposition(Metrics()).text("")
    assert b"convscope_http_requests_in_flight 0.0" in content


def slow_encoder(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> list[tuple[float, threading.Thread]]:
    """Make every rendering take so long; return the time at which each begins, and its thread."""
    begun = list[tuple[float, threading.Thread]]()

    def encode(registry: CollectorRegistry) -> bytes:
        begun.append((time.perf_counter(), threading.current_thread()))
        burn(seconds)
        return generate_latest(registry)

    monkeypatch.setattr(exposition, "choose_encoder", lambda _: (encode, "text/plain"))
    return begun


async def test_crowd_of_scrapers_shares_a_rendering_and_leaves_the_loop_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = slow_encoder(monkeypatch, 0.005)
    metrics = Metrics()
    shown = Exposition(metrics)
    await shown.text("")
    metrics.begin_request()
    scrapes = [asyncio.create_task(shown.text("")) for _ in range(100)]
    asked = time.perf_counter()
    await asyncio.sleep(0.01)
    assert time.perf_counter() - asked < 0.25  # a rendering for each would take half a second
    for scrape in scrapes:
        text, _ = await scrape
        assert b"convscope_http_requests_in_flight 1.0" in text
    # A machine that stands still before the crowd asks has the first of it rendered for alone.
    assert len(begun) in {2, 3}
    assert {thread for _, thread in begun} == {threading.main_thread()}
    # The pause counts from a moment before the rendering that is noted here.
    for (first, _), (second, _) in pairwise(begun):
        assert second - first >= 0.9 * 0.005 / exposition.MAX_SHARE


async def test_rendering_that_takes_long_has_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = slow_encoder(monkeypatch, 2 * exposition.LOOP_SECONDS)
    shown = Exposition(Metrics())
    for _ in range(2):  # the first says how long it takes
        await shown.text("")
    assert [thread is threading.main_thread() for _, thread in begun] == [True, False]


@pytest.mark.parametrize("version", ['"1.0.0"', "latest"])
async def test_version_that_is_no_number_gets_the_default_format(
    client: httpx.AsyncClient, version: str
) -> None:
    accept = f"application/openmetrics-text;version={version}"
    response = await client.get("/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
