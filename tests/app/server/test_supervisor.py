"""Worker processes that die, freeze and are told to stop, under load."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.machine import usable_cpus
from tests.conftest import Picture
from tests.support.artifacts import solid
from tests.support.pictures import as_file
from tests.support.servers import (
    CONVSCOPE,
    Server,
    client,
    get,
    post,
    runs,
    started,
    wait_until,
)

PNG = {"Content-Type": "image/png"}
SERVE = [*CONVSCOPE, "serve"]


@dataclass
class Load:
    """The answered and the lost requests of some clients that ask without a pause."""

    url: str
    body: bytes
    answered: int = 0
    lost: list[str] = field(default_factory=list)
    refused: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        with client() as session:
            while not self.stopped.is_set():
                try:
                    answer = session.post(f"{self.url}/predict", content=self.body, headers=PNG)
                    self.answered += answer.status_code == 200
                    if answer.status_code != 200:
                        self.lost.append(str(answer.status_code))
                except httpx.ConnectError:
                    self.refused += 1
                    time.sleep(0.01)
                except httpx.TransportError as exc:
                    self.lost.append(repr(exc))


@contextmanager
def under_load(server: Server, body: bytes, clients: int = 8) -> Iterator[Load]:
    load = Load(server.url, body)
    threads = [threading.Thread(target=load.ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: load.answered > 100)
        yield load
    finally:
        load.stopped.set()
        for thread in threads:
            thread.join()


def test_there_is_a_worker_for_each_processor(store_path: Path, tmp_path: Path) -> None:
    with started(SERVE, store_path, tmp_path / "log") as server:
        wait_until(lambda: len(server.workers) == usable_cpus())
        assert server.stop() == 0


def test_killed_worker_is_replaced_while_the_others_go_on(
    store_path: Path, tmp_path: Path, picture: Picture
) -> None:
    with started([*SERVE, "--workers", "2"], store_path, tmp_path / "log") as server:
        wait_until(lambda: len(server.workers) == 2)
        before = set(server.workers)
        killed = min(before)
        with under_load(server, picture("red")) as load:
            os.kill(killed, signal.SIGKILL)
            died = time.monotonic()
            wait_until(lambda: len(set(server.workers) - before) == 1, 3)
            (new,) = set(server.workers) - before
            wait_until(lambda: f"Started server process [{new}]" in server.log.read_text(), 3)
            assert time.monotonic() - died < 3
            answered = load.answered
            wait_until(lambda: load.answered > answered + 100)
        # What was inside the killed worker is lost, at most one request of each client.
        assert len(load.lost) <= 8
        assert not load.refused
        assert f"worker {killed} ended with SIGKILL" in server.log.read_text()
        assert server.stop() == 0


def test_frozen_worker_is_killed_and_replaced(store_path: Path, tmp_path: Path) -> None:
    command = [*SERVE, "--workers", "2"]
    with started(command, store_path, tmp_path / "log", CONVSCOPE_HANG_SECONDS="4") as server:
        wait_until(lambda: len(server.workers) == 2)
        frozen, other = server.workers
        os.kill(frozen, signal.SIGSTOP)
        wait_until(lambda: frozen not in server.workers and len(server.workers) == 2)
        assert other in server.workers
        assert f"worker {frozen} hangs and is killed" in server.log.read_text()
        assert server.stop() == 0


HANGS_ON_WHITE = """
import time
from app.cli import main
from app.inference.backends.onnx_cpu import OnnxBackend
predict = OnnxBackend.predict

def predict_or_hang(backend, images):
    while (images == 255).all():
        time.sleep(1)
    return predict(backend, images)

OnnxBackend.predict = predict_or_hang
main()
"""


@pytest.mark.parametrize("inference", ["loop", "thread"])
def test_worker_whose_model_hangs_is_replaced(
    store_path: Path, tmp_path: Path, inference: str
) -> None:
    command = [sys.executable, "-c", HANGS_ON_WHITE, "serve", "--workers", "2"]
    changes = {"CONVSCOPE_HANG_SECONDS": "2", "CONVSCOPE_INFERENCE": inference}
    with started(command, store_path, tmp_path / "log", **changes) as server:
        wait_until(lambda: len(server.workers) == 2)
        before = set(server.workers)
        white = as_file(np.full((32, 32, 3), 255, np.uint8), "PNG")
        with pytest.raises(httpx.TransportError):  # lost with the worker
            post(f"{server.url}/predict", content=white, headers=PNG)
        wait_until(lambda: len(server.workers) == 2 and set(server.workers) != before)
        assert len(before & set(server.workers)) == 1
        assert "hangs and is killed" in server.log.read_text()
        red = as_file(solid("red")[0], "PNG")
        for _ in range(4):
            answer = post(f"{server.url}/predict", content=red, headers=PNG)
            assert answer.json()["predictions"][0]["label"] == "red"
        assert server.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_under_load_loses_no_request(
    store_path: Path, tmp_path: Path, picture: Picture, workers: str
) -> None:
    with (
        started([*SERVE, "--workers", workers], store_path, tmp_path / "log") as server,
        under_load(server, picture("red")) as load,
    ):
        assert server.stop() == 0
        wait_until(lambda: load.refused > 0)
    assert load.lost == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_stopping_service_is_not_ready_but_answers_during_the_delay(
    store_path: Path, tmp_path: Path, picture: Picture, workers: str
) -> None:
    command = [*SERVE, "--workers", workers]
    with started(command, store_path, tmp_path / "log", CONVSCOPE_DRAIN_DELAY="3") as server:
        wait_until(lambda: len(server.workers) == int(workers))
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        wait_until(lambda: get(f"{server.url}/health/ready").status_code == 503, 2)
        while time.monotonic() < told + 2:
            answer = post(f"{server.url}/predict", content=picture("red"), headers=PNG)
            assert answer.status_code == 200
            assert get(f"{server.url}/health/live").status_code == 200
            ready = get(f"{server.url}/health/ready")
            assert ready.status_code == 503
            assert ready.json()["detail"] == "the service is stopping"
        assert server.process.wait(30) == 0
        assert 3 <= time.monotonic() - told < 10
        with pytest.raises(httpx.ConnectError):
            get(server.url)


def test_a_worker_that_ends_alone_is_not_taken_for_a_hanging_one(
    store_path: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with started(
        [*SERVE, "--workers", "2"],
        store_path,
        log,
        CONVSCOPE_DRAIN_DELAY="7",
        CONVSCOPE_HANG_SECONDS="4",
    ) as server:
        wait_until(lambda: len(server.workers) == 2)
        ended = server.workers[0]
        os.kill(ended, signal.SIGTERM)
        wait_until(lambda: not runs(ended), 20)
        wait_until(lambda: f"worker {ended} ended with status 0" in log.read_text())
        assert "hangs" not in log.read_text()
        assert server.stop() == 0


def test_workers_end_when_the_supervisor_is_killed(store_path: Path, tmp_path: Path) -> None:
    with started([*SERVE, "--workers", "2"], store_path, tmp_path / "log") as server:
        wait_until(lambda: len(server.workers) == 2)
        workers = server.workers
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        wait_until(lambda: not any(runs(worker) for worker in workers))
        with pytest.raises(httpx.ConnectError):
            get(server.url)
