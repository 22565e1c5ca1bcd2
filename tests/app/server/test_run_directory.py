"""The directory of a running service: who removes it, and who finds the service by it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from bench import ROOT
from bench.harness.processes import free_port
from tests.conftest import Picture
from tests.support.servers import CONVSCOPE, environment, get, post, runs, started, wait_until

SERVE = [*CONVSCOPE, "serve", "--workers", "1"]
PREFIX = "convscope-metrics-"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    path.mkdir()
    return path


def probe(scratch: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the health check of the container."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    (command,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", dockerfile, re.MULTILINE)
    program, *arguments = json.loads(command)
    assert program == "python"
    return subprocess.run(
        [sys.executable, *arguments],
        env={"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch), **changes},
        capture_output=True,
        text=True,
        timeout=60,
    )


def leave_behind(store: Path, log: Path, scratch: Path) -> Path:
    """Kill a supervisor; return its directory."""
    with started(SERVE, store, log, TMPDIR=str(scratch)) as server:
        workers = server.workers
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        wait_until(lambda: not any(runs(worker) for worker in workers))
    (directory,) = scratch.glob(f"{PREFIX}*")
    return directory


def test_directory_of_a_killed_supervisor_is_removed_at_the_next_start(
    store_path: Path, tmp_path: Path, scratch: Path
) -> None:
    dead = leave_behind(store_path, tmp_path / "log", scratch)
    with started(SERVE, store_path, tmp_path / "log", TMPDIR=str(scratch)) as server:
        assert not dead.exists()
        assert server.stop() == 0
    assert list(scratch.iterdir()) == []


OWNER = """
import os, sys
from pathlib import Path
from app.server.run_directory import run_directory

with run_directory(("127.0.0.1", 80)):
    print(os.environ["PROMETHEUS_MULTIPROC_DIR"], flush=True)
    sys.stdin.read()
"""


def owners(scratch: Path, count: int) -> dict[Path, subprocess.Popen[str]]:
    """Start processes at once that have a directory each, as supervisors have."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OWNER],
            env={"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    found = {}
    for process in processes:
        assert process.stdout
        found[Path(process.stdout.readline().strip())] = process
    return found


def test_many_that_start_at_once_remove_what_is_dead_and_nothing_else(scratch: Path) -> None:
    first = owners(scratch, 6)
    dead = list(first)[:3]
    for directory in dead:
        first[directory].kill()
        first[directory].wait()
    living = {path: owner for path, owner in first.items() if path not in dead}
    living |= owners(scratch, 6)
    assert set(scratch.iterdir()) == set(living)
    assert all((directory / "address").exists() for directory in living)
    for owner in {*first.values(), *living.values()}:
        owner.communicate()
    assert list(scratch.iterdir()) == []


def test_directory_of_a_living_service_stays(
    store_path: Path, tmp_path: Path, scratch: Path, picture: Picture
) -> None:
    with started(SERVE, store_path, tmp_path / "log", TMPDIR=str(scratch)) as first:
        (living,) = scratch.iterdir()
        with started(SERVE, store_path, tmp_path / "other log", TMPDIR=str(scratch)) as second:
            assert living.exists()
            assert second.stop() == 0
        headers = {"Content-Type": "image/png"}
        assert post(f"{first.url}/predict", content=picture("red"), headers=headers).is_success
        assert "convscope_predictions_total" in get(f"{first.url}/metrics").text
        assert first.stop() == 0


def test_directory_of_a_service_that_is_just_starting_stays(
    store_path: Path, tmp_path: Path, scratch: Path
) -> None:
    starting = scratch / f"{PREFIX}starting"
    starting.mkdir()
    with started(SERVE, store_path, tmp_path / "log", TMPDIR=str(scratch)) as server:
        assert server.stop() == 0
    assert starting.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_directories_of_others_and_links_stay(
    store_path: Path, tmp_path: Path, scratch: Path
) -> None:
    dead = leave_behind(store_path, tmp_path / "log", scratch)
    os.chown(dead, 12345, 12345)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "address").touch()
    (scratch / f"{PREFIX}link").symlink_to(precious)
    with started(SERVE, store_path, tmp_path / "log", TMPDIR=str(scratch)) as server:
        assert server.stop() == 0
    assert (dead / "address").exists()
    assert (precious / "address").exists()


def test_directory_that_cannot_be_made_ends_serve_with_one_line(store_path: Path) -> None:
    missing = {"PROMETHEUS_MULTIPROC_DIR": "/nowhere"}
    done = subprocess.run(
        [*SERVE, "--port", str(free_port())],
        env=environment(store_path, **missing),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: no directory for the workers' metrics: ")
    assert "/nowhere" in line


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that refuses everything; and what it was asked for."""
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(403)

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_health_check_finds_the_service_at_any_address_and_asks_no_proxy(
    store_path: Path, tmp_path: Path, scratch: Path, proxy: tuple[str, list[str]], host: str
) -> None:
    address, asked = proxy
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), address)
    command = [*SERVE, "--host", host]
    with started(command, store_path, tmp_path / "log", TMPDIR=str(scratch)) as server:
        done = probe(scratch, **proxies)
        assert (done.returncode, done.stderr) == (0, "")
        assert server.stop() == 0
    assert asked == []
    done = probe(scratch, **proxies)
    assert (done.returncode, done.stderr) == (1, "no service of this user runs\n")


def test_health_check_finds_a_service_whose_directory_is_named(
    store_path: Path, tmp_path: Path, scratch: Path
) -> None:
    named = {"PROMETHEUS_MULTIPROC_DIR": str(scratch)}
    with started(SERVE, store_path, tmp_path / "log", **named) as server:
        assert probe(tmp_path, **named).returncode == 0
        assert server.stop() == 0
    assert not (scratch / "address").exists()
    assert probe(tmp_path, **named).returncode == 1


def test_health_check_passes_over_what_is_no_address(
    store_path: Path, tmp_path: Path, scratch: Path
) -> None:
    with started(SERVE, store_path, tmp_path / "log", TMPDIR=str(scratch)) as server:
        (directory,) = scratch.iterdir()
        (directory / "address").write_text("nonsense")
        done = probe(scratch)
        assert (done.returncode, done.stderr) == (1, "no service of this user runs\n")
        assert server.stop() == 0


def test_health_check_of_a_service_that_does_not_answer_fails(
    store_path: Path, tmp_path: Path, scratch: Path
) -> None:
    with started(SERVE, store_path, tmp_path / "log", TMPDIR=str(scratch)) as server:
        (worker,) = server.workers
        os.kill(worker, signal.SIGSTOP)
        done = probe(scratch)
        assert done.returncode == 1
        assert f"127.0.0.1 port {server.port}: timed out" in done.stderr
        os.kill(worker, signal.SIGCONT)
        assert server.stop() == 0
