"""Processes of servers: measured as a tree, stopped as a tree, and never left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench import ROOT
from bench.harness.processes import ServerFailed, ServerProcess, free_port
from tests.support.servers import CONVSCOPE, environment, is_ready, runs, wait_until

# A child that goes into a session of its own, ignores SIGTERM and outlives its parent.
DAEMON = """
import os, signal, time
os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = bytearray(b"x" * 50_000_000)
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
open("pid", "w").write(str(os.getpid()))
time.sleep(60)
"""
BENCHMARK = """
import os, sys, time
from pathlib import Path
from bench.harness.processes import ServerProcess
log = Path(sys.argv[1])
with ServerProcess(sys.argv[2:], directory=log.parent, environment=os.environ, log=log) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


def _start(program: str, place: Path) -> ServerProcess:
    command = [sys.executable, "-c", program]
    return ServerProcess(command, directory=place, environment=os.environ, log=place / "log")


def test_a_stopped_server_leaves_no_daemon_and_all_of_it_is_measured(tmp_path: Path) -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {DAEMON!r}])"
    with _start(parent, tmp_path) as server:
        server.tree.begin()
        server.wait_until((tmp_path / "pid").exists, 60)
        server.tree.settle()
        usage = server.tree.usage()
        pid = int((tmp_path / "pid").read_text())
        assert runs(pid)
    assert usage.processes == 2
    assert usage.rss_mb > 50
    assert usage.peak_rss_mb >= usage.rss_mb > usage.pss_mb > 40
    assert not runs(pid)


def test_processor_time_of_a_child_that_has_ended_is_kept(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.7: pass"
    parent = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {burn!r}])\n"
    with _start(f"{parent}open('done', 'w')\ntime.sleep(60)", tmp_path) as server:
        server.tree.begin()
        server.wait_until((tmp_path / "done").exists, 60)
        usage = server.tree.usage()
    assert usage.processes == 1
    assert 0.4 < usage.cpu_seconds < 5


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    with (
        _start("raise SystemExit('no model')", tmp_path) as server,
        pytest.raises(ServerFailed, match="ended with status 1: no model"),
    ):
        server.wait_until(lambda: False, 60)


def test_a_server_that_is_never_ready_is_given_up_with_its_output(tmp_path: Path) -> None:
    with (
        _start("print('loading', flush=True)\nimport time; time.sleep(60)", tmp_path) as server,
        pytest.raises(ServerFailed, match="not ready after 3 s: loading"),
    ):
        server.wait_until(lambda: False, 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_with_the_benchmark_that_started_it(
    store_path: Path, tmp_path: Path, number: signal.Signals
) -> None:
    port = free_port()
    serve = [*CONVSCOPE, "serve", "--port", str(port), "--workers", "2"]
    benchmark = subprocess.Popen(
        [sys.executable, "-c", BENCHMARK, str(tmp_path / "log"), *serve],
        env=environment(store_path),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with benchmark:
        assert benchmark.stdout
        server = int(benchmark.stdout.readline())
        wait_until(lambda: is_ready(port) and len(psutil.Process(server).children()) == 2)
        processes = [server, *(child.pid for child in psutil.Process(server).children())]
        benchmark.send_signal(number)
    wait_until(lambda: not any(map(runs, processes)), 30)
