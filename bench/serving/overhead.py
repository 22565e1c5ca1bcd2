"""Processor time beyond decoding and inference: `python -m bench.serving.overhead`.

Sixteen connections in one process each send a 32×32 PNG at once, again and again, to the service's
own protocol and application; only the sockets are missing. The same images decoded and computed
in a loop are subtracted. Each figure is the first decile of its rounds, because whatever else the
machine does only adds to it.
"""

import asyncio
import gc
import time

import numpy as np
import uvloop

from app.artifact.directory import read_artifact
from app.images.decode import decode
from app.inference.backends import open_backend
from app.main import create_app
from app.server.connections import Connections, Share, Shares
from app.server.protocol import HttpProtocol
from app.settings import Settings
from bench import ARTIFACT, MODEL, ROOT
from bench.harness.payloads import payloads
from bench.harness.report import table
from bench.harness.requests import Request

CONNECTIONS = 16
ROUNDS = 500
_PIXELS = 32 * 32


class _Transport(asyncio.Transport):
    """Keeps the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.answer += bytes(data)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...


def measure() -> dict[str, float]:
    """Return microseconds of an image: whole, and its decoding and inference alone."""
    files = [files[0] for files in payloads()["png"].requests[:CONNECTIONS]]
    return {"request": uvloop.run(_serve(files)), "decoding and inference": _compute(files)}


async def _serve(files: list[bytes]) -> float:
    settings = Settings(
        store=ROOT / "models_store", models=(MODEL,), default_model=MODEL, log_level="warning"
    )
    application = create_app(settings)
    async with application.framework.router.lifespan_context(application.framework):
        connections = Connections(
            settings, application.metrics, CONNECTIONS, Share(Shares(1), 0), application.fast_paths
        )
        clients = []
        for data in files:
            protocol, transport = HttpProtocol(application, connections, {}), _Transport()
            protocol.connection_made(transport)
            sent = Request("/predict", body=data, content_type="image/png").raw(("127.0.0.1", 80))
            clients.append((protocol, transport, sent))
        gc.collect()
        gc.freeze()  # as workers do
        seconds = []
        for _ in range(ROUNDS):
            started = time.process_time()
            for protocol, transport, sent in clients:
                transport.answer = b""
                protocol.data_received(sent)
            while not all(transport.answer for _, transport, _ in clients):
                await asyncio.sleep(0)
            seconds.append(time.process_time() - started)
            for _, transport, _ in clients:
                if not transport.answer.startswith(b"HTTP/1.1 200 "):
                    raise RuntimeError(transport.answer)
    return _first_decile(seconds)


def _compute(files: list[bytes]) -> float:
    backend = open_backend(read_artifact(ARTIFACT), "onnx-cpu")
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        backend.predict(np.stack([decode(data, (32, 32), _PIXELS) for data in files]))
        seconds.append(time.process_time() - started)
    return _first_decile(seconds)


def _first_decile(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 10] / CONNECTIONS * 1e6


def overhead_table(row: dict[str, float]) -> str:
    """Return the figures as a Markdown table."""
    rows = [[name, f"{us:.0f}"] for name, us in row.items()]
    rest = row["request"] - row["decoding and inference"]
    return table(["", "µs"], [*rows, ["all else", f"{rest:.0f}"]])


if __name__ == "__main__":
    print(overhead_table(measure()))
