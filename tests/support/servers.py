"""Applications on real sockets: `convscope serve` and its like as processes, or a test's own."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from app.api.state import Service
from app.server.connections import Connections, Share, Shares
from app.server.protocol import HttpProtocol

ROOT = Path(__file__).parents[2]
START_SECONDS = 150  # imports alone take a minute where others compute
CONVSCOPE = [sys.executable, "-c", "from app.cli import main; main()"]
UVICORN = [sys.executable, "-m", "uvicorn", "--factory"]


def client() -> httpx.Client:
    return httpx.Client(timeout=60, trust_env=False)  # loopback needs no proxy


def get(url: str, **options: Any) -> httpx.Response:
    with client() as session:
        return session.get(url, **options)


def post(url: str, **options: Any) -> httpx.Response:
    with client() as session:
        return session.post(url, **options)


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def workers(self) -> list[int]:
        """The process ids of the supervisor's children."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in path.read_text().split()]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if get(f"{self.url}/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise TimeoutError(self.log.read_text())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(store: Path, **changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    settings = {"CONVSCOPE_STORE": str(store), "CONVSCOPE_DEFAULT_MODEL": "colour"}
    return {**kept, **settings, "PYTHONPATH": str(ROOT), **changes}


@contextmanager
def started(
    command: list[str], store: Path, log: Path, port: int | None = None, /, **changes: str
) -> Iterator[Server]:
    port = port or free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=output,
            stderr=output,
            env=environment(store, **changes),
            cwd=log.parent,
        )
    server = Server(process, port, log)
    try:
        server.wait()
        yield server
    finally:
        if process.poll() is None:
            server.stop()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@asynccontextmanager
async def sockets(client: httpx.AsyncClient) -> AsyncIterator[tuple[int, Connections]]:
    """Serve the client's application with the service's own protocol too; give the port."""
    app = cast(FastAPI, cast(httpx.ASGITransport, client._transport).app)
    service: Service = app.state.service
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    share = Share(Shares(1), 0)
    connections = Connections(service.settings, service.metrics, limit=100, share=share)
    state = ServerState()

    def protocol() -> asyncio.Protocol:
        return HttpProtocol(connections, config=config, server_state=state, app_state={})

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], connections
