"""The service overrides or reads names that other libraries do not promise to keep.

Each test fails when such a name is gone or no longer used. `pyproject.toml` bounds the versions of
these libraries to the tested ones; `make test-lowest` runs the tests with the lowest.
"""

import inspect
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.artifact.directory import read_artifact
from app.inference.backends import open_backend
from app.telemetry.metrics import _Observed
from tests.support.artifacts import solid

pytestmark = pytest.mark.anyio


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(scope["path"])(scope, receive, send)


async def _get(app: ASGIApp, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://convscope") as client:
        return await client.get(path)


async def test_uvicorn_starts_ticks_and_stops_by_the_methods_that_are_overridden() -> None:
    called = []

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            called.append("startup")
            await super().startup(sockets)
            assert self.started
            assert not self.force_exit

        async def on_tick(self, counter: int) -> bool:
            called.append(f"tick {counter}")
            await super().on_tick(counter)
            return counter == 1

        async def shutdown(self, sockets: Any = None) -> None:
            called.append("shutdown")
            await super().shutdown(sockets)

    config = uvicorn.Config(_answer, lifespan="off", log_config=None)
    await Server(config).serve(sockets=[])
    assert called == ["startup", "tick 0", "tick 1", "shutdown"]


async def test_fastapi_documents_by_the_method_that_is_replaced() -> None:
    app = FastAPI()
    app.openapi = lambda: {"made": "here"}  # type: ignore[method-assign]
    assert (await _get(app, "/openapi.json")).json() == {"made": "here"}


def test_fastapi_has_a_telemetry_to_turn_off() -> None:
    # An argument that it does not know would be taken as one more, without a word.
    assert "telemetry" in inspect.signature(FastAPI).parameters


def test_pillow_reads_a_jpegs_resolution_by_the_method_that_is_overridden() -> None:
    called = []

    class Reader(JpegImageFile):
        def _read_dpi_from_exif(self) -> None:
            called.append(self.size)

    data = io.BytesIO()
    Image.new("RGB", (8, 4)).save(data, "JPEG", exif=Image.Exif())
    data.seek(0)
    Reader(data)
    assert called == [(8, 4)]


def test_pillow_reads_a_jpeg_at_once_if_its_block_is_as_long() -> None:
    data = io.BytesIO()
    Image.effect_noise((500, 500), 90).save(data, "JPEG")
    length = data.tell()
    read = []

    class Source(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            read.append(super().read(size))
            return read[-1]

    image = JpegImageFile(Source(data.getvalue()))
    image.decodermaxblock = length
    read.clear()
    image.load()
    assert [len(block) for block in read] == [length]
    assert length > ImageFile.MAXBLOCK


def test_onnxruntime_keeps_a_graphs_bytes_where_they_are_dropped(store_path: Path) -> None:
    path = store_path / "colour" / "1"
    graph = (path / "model.onnx").read_bytes()
    open_backend(read_artifact(path), "onnx-cpu")  # imports onnxruntime without its telemetry
    onnxruntime = sys.modules["onnxruntime"]
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert session._model_bytes == graph
    session._model_bytes = None
    assert len(session.run(["probabilities"], {"image": solid("red")})[0]) == 1


def test_prometheus_names_the_files_of_a_processs_gauges_as_they_are_looked_for(
    tmp_path: Path,
) -> None:
    program = (
        "import os\n"
        "from prometheus_client import Gauge\n"
        "from prometheus_client.multiprocess import mark_process_dead\n"
        "folder = os.environ['PROMETHEUS_MULTIPROC_DIR']\n"
        "for mode in ('livesum', 'livemax'):\n"
        "    Gauge(mode, mode, multiprocess_mode=mode).set(1)\n"
        "print(os.getpid(), *sorted(os.listdir(folder)))\n"
        "mark_process_dead(os.getpid(), folder)\n"
        "print(os.listdir(folder))"
    )
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    pid, *files = done.stdout.partition("\n")[0].split()
    assert files == [f"gauge_live{how}_{pid}.db" for how in ("max", "sum")], done.stderr
    assert done.stdout.endswith("\n[]\n")


def test_prometheus_keeps_a_histogram_as_sums_of_its_buckets() -> None:
    """`telemetry.metrics` adds to these at each flush; `observe` must do the same."""
    histograms = []
    for _ in range(2):
        registry = CollectorRegistry()
        histograms.append((registry, Histogram("h", "h", buckets=(0.1, 1), registry=registry)))
    (one_by_one, observing), (at_once, flushing) = histograms
    observed = _Observed(flushing)
    for value in (0.05, 0.1, 0.5, 1, 7):
        observing.observe(value)
        observed.observe(value)
    observed.flush()
    observed.flush()
    expected, found = (
        [line for line in generate_latest(registry).splitlines() if b"_created" not in line]
        for registry in (one_by_one, at_once)
    )
    assert found == expected
