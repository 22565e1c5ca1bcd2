"""The service on platforms that lack a part of Linux: `serve` runs with its names taken away."""

import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import Picture
from tests.support.servers import Server, failed, get, post, started, wait_until

PNG = {"Content-Type": "image/png"}
SERVE = "\nfrom app.cli import main; main()"

WITHOUT_AFFINITY = "import os; del os.sched_getaffinity"
WITHOUT_FORK = "import os; del os.fork"
WITHOUT_RESOURCE = "import sys; sys.modules['resource'] = None"
WITHOUT_FCNTL = "import sys; sys.modules['fcntl'] = None"
ON_TERMINAL = "\nimport sys; sys.stdout.isatty = lambda: True"
# There, signal 0 of `os.kill` is Ctrl+C.
DEADLY_KILL = "import os; os.kill = lambda pid, number: os._exit(99)"
WITHOUT_PROC = """
import io
given = io.open
def opened(file, *args, **options):
    if str(file).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return given(file, *args, **options)
io.open = opened
"""
# macOS: the limit is called infinite, and what is over 10240 is refused.
INFINITE_FILES = """
import resource
soft = [256]
def getrlimit(which):
    return soft[0], resource.RLIM_INFINITY
def setrlimit(which, limits):
    if limits[0] > 10240:
        raise ValueError("current limit exceeds maximum limit")
    soft[0] = limits[0]
resource.getrlimit, resource.setrlimit = getrlimit, setrlimit
"""
MACOS = "\n".join((WITHOUT_AFFINITY, INFINITE_FILES, WITHOUT_PROC))
WINDOWS = "\n".join(
    (
        WITHOUT_AFFINITY,
        WITHOUT_FORK,
        WITHOUT_RESOURCE,
        WITHOUT_FCNTL,
        WITHOUT_PROC,
        DEADLY_KILL,
    )
)


def command(taken: str, *options: str) -> list[str]:
    return [sys.executable, "-c", taken + SERVE, "serve", *options]


def label(server: Server, picture: Picture) -> str:
    answer = post(f"{server.url}/predict", content=picture("red"), headers=PNG)
    return str(answer.json()["predictions"][0]["label"])


@pytest.mark.parametrize(
    "taken",
    [WITHOUT_AFFINITY, WITHOUT_RESOURCE, WITHOUT_FCNTL, WITHOUT_PROC, INFINITE_FILES, MACOS],
    ids=["affinity", "resource", "fcntl", "proc", "limit of files", "macOS"],
)
def test_service_runs_without_what_other_platforms_lack(
    store_path: Path, tmp_path: Path, picture: Picture, taken: str
) -> None:
    # Without locks it would be taken for dead by the services of other tests that start meanwhile.
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with started(command(taken), store_path, tmp_path / "log", TMPDIR=str(scratch)) as server:
        assert label(server, picture) == "red"
        wait_until(lambda: len(server.workers) >= 1)
        assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


def test_without_affinity_there_is_a_worker_for_each_processor_of_the_machine(
    store_path: Path, tmp_path: Path
) -> None:
    counted = WITHOUT_AFFINITY + "; os.cpu_count = lambda: 3\n" + WITHOUT_PROC
    with started(command(counted), store_path, tmp_path / "log") as server:
        wait_until(lambda: len(server.workers) == 3)
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("taken", [WITHOUT_FORK, WINDOWS], ids=["fork", "Windows"])
def test_where_nothing_can_fork_one_process_serves(
    store_path: Path, tmp_path: Path, picture: Picture, taken: str, number: int
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    taken += ON_TERMINAL
    with started(command(taken), store_path, tmp_path / "log", TMPDIR=str(scratch)) as server:
        assert label(server, picture) == "red"
        assert server.workers == []
        assert "convscope_predictions_total" in get(f"{server.url}/metrics").text
        assert "this platform cannot fork: one process serves" in server.log.read_text()
        assert "Serving colour/1, colour/2, flat/1. Open " in server.log.read_text()
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
    assert "Traceback" not in server.log.read_text()
    assert list(scratch.iterdir()) == []


def test_where_nothing_can_fork_more_workers_are_refused(store_path: Path) -> None:
    done = failed(command(WITHOUT_FORK, "--workers", "2"), store_path)
    assert done.returncode == 2
    assert "--workers 2: this platform cannot fork; it has one worker" in done.stderr
