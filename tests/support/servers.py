"""Applications on real sockets: `convscope serve` and the like as processes, or a test's own."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from app.server.connections import Connections, Share, Shares
from app.server.protocol import HttpProtocol
from bench import ROOT
from bench.harness.processes import ServerProcess, free_port
from bench.harness.requests import Request, ask
from tests.support.applications import application_of

HOST = "127.0.0.1"
START_SECONDS = 150  # on a busy machine imports alone take a minute
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
    process: ServerProcess
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def workers(self) -> list[int]:
        """Process ids of the supervisor's children."""
        return self.process.children()

    def connect(self) -> socket.socket:
        return socket.create_connection((HOST, self.port), timeout=60)

    def stop(self) -> int:
        """Send SIGTERM and return the status."""
        return self.process.stop()


def environment(store: Path, **changes: str) -> dict[str, str]:
    """Return the variables of a service on a store whose default model is `colour`."""
    kept = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    settings = {"CONVSCOPE_STORE": str(store), "CONVSCOPE_DEFAULT_MODEL": "colour"}
    return {**kept, **settings, "PYTHONPATH": str(ROOT), **changes}


def is_ready(port: int) -> bool:
    """Whether a service answers on this port and is ready."""
    try:
        return ask((HOST, port), Request("/health/ready"))[0] == 200
    except OSError:
        return False


@contextmanager
def started(
    command: list[str], store: Path, log: Path, port: int | None = None, /, **changes: str
) -> Iterator[Server]:
    """Run a service during the block; it is ready when the block begins.

    Args:
        command: program and arguments; `--port` is added.
        store: store of models.
        log: file for its output; its folder is the working directory.
        port: a free port, unless given.
        changes: environment variables.
    """
    port = port or free_port()
    with ServerProcess(
        [*command, "--port", str(port)],
        directory=log.parent,
        environment=environment(store, **changes),
        log=log,
    ) as process:
        process.wait_until(lambda: is_ready(port), START_SECONDS)
        yield Server(process, port, log)


def failed(
    command: list[str], store: Path, port: int | None = None, /, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run a service that cannot start until it ends; return its status and output."""
    return subprocess.run(
        [*command, "--port", str(port or free_port())],
        env=environment(store, **changes),
        cwd=store,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )


def runs(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@asynccontextmanager
async def sockets(client: httpx.AsyncClient) -> AsyncIterator[tuple[int, Connections]]:
    """Serve the client's application with the service's own protocol too; yield the port."""
    app = application_of(client)
    service, share = app.service, Share(Shares(1), 0)
    connections = Connections(service.settings, service.metrics, 100, share, app.fast_paths)

    def protocol() -> asyncio.Protocol:
        return HttpProtocol(app, connections, {})

    server = await asyncio.get_running_loop().create_server(protocol, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1], connections
