"""Servers as processes: start one, wait until it answers, watch what its whole tree costs, stop it.

A server may fork workers, start daemons and put them into sessions of their own. Its tree is every
process that descends from the first one, or is in a session that one of them leads; what was seen
in the tree once stays in it, also when its parent has gone. Linux only: everything is read from
`/proc`.
"""

import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench import ROOT

_PROC = Path("/proc")
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SAMPLE_SECONDS = 0.1
_PORTS = 20_000, 30_000  # below those that Linux gives to connections
_QUIET_SECONDS, _QUIET_TIMES, _QUIET_SHARE = 0.15, 2, 0.15


class ServerFailed(Exception):
    """A server did not start, ended by itself, or answered wrongly."""


@dataclass(frozen=True)
class Usage:
    """What a process tree cost since the watch began.

    Attributes:
        seconds: how long it was watched.
        cpu_seconds: user and system time of all processes.
        peak_rss_mb: the largest sum of the resident memory of all processes, in MB (10^6 bytes);
            pages that they share are counted for each.
        peak_process_mb: the largest resident memory of one process.
        rss_mb: the sum at the end.
        pss_mb: at the end, with shared pages divided among those who share them.
        processes: how many there were at the end.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_mb: float
    peak_process_mb: float
    rss_mb: float
    pss_mb: float
    processes: int


@dataclass(frozen=True)
class _Stat:
    pid: int
    parent: int
    session: int
    cpu_seconds: float
    started: int
    rss: int


def _read_stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name stands in brackets and may hold anything.
    fields = text[text.rindex(")") + 2 :].split()
    if fields[0] == "Z":
        return None
    ticks = int(fields[11]) + int(fields[12])
    session, started, rss = int(fields[3]), int(fields[19]), int(fields[21])
    return _Stat(pid, int(fields[1]), session, ticks / _TICK, started, rss * _PAGE)


def _pss(pid: int) -> int:
    with suppress(OSError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def busy_seconds() -> float:
    """Return the processor time that all programs of the machine, and others on its host, used."""
    fields = [int(field) for field in (_PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = fields
    return (user + nice + system + interrupts + soft_interrupts + stolen) / _TICK


class ProcessTree:
    """All processes of a server, followed by a thread."""

    def __init__(self, root: int) -> None:
        self._members: dict[tuple[int, int], float] = {}  # (pid, started) -> CPU seconds
        self._root = root
        self._lock = threading.Lock()
        self._begin: dict[tuple[int, int], float] = {}
        self._began = time.monotonic()
        self._peak_rss = self._peak_process = 0
        self.sample()

    def sample(self) -> list[_Stat]:
        """Find the members that live now, and count what they use."""
        with self._lock:
            return self._sample()

    def _sample(self) -> list[_Stat]:
        pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()]
        stats = [stat for pid in pids if (stat := _read_stat(pid))]
        known = {stat.pid for stat in stats if (stat.pid, stat.started) in self._members}
        if not self._members:
            known.add(self._root)
        size = 0
        while size != len(known):
            size = len(known)
            known |= {s.pid for s in stats if s.parent in known or s.session in known}
        living = [stat for stat in stats if stat.pid in known]
        for stat in living:
            self._members[stat.pid, stat.started] = stat.cpu_seconds
        self._peak_rss = max(self._peak_rss, sum(stat.rss for stat in living))
        self._peak_process = max([self._peak_process, *(stat.rss for stat in living)])
        return living

    def begin(self) -> None:
        """Count from now on."""
        with self._lock:
            self._peak_rss = self._peak_process = 0
            self._sample()
            self._begin = dict(self._members)
            self._began = time.monotonic()

    def settle(self, seconds: float = 5) -> None:
        """Wait until it is idle, at most so long: what is still worked off would be measured."""
        until = time.monotonic() + seconds
        quiet = 0
        while quiet < _QUIET_TIMES and time.monotonic() < until:
            self.begin()
            time.sleep(_QUIET_SECONDS)
            usage = self.usage()
            quiet = quiet + 1 if usage.cpu_seconds <= _QUIET_SHARE * usage.seconds else 0

    def usage(self) -> Usage:
        """Return what was used since `begin`."""
        with self._lock:
            living = self._sample()
            spent = sum(cpu - self._begin.get(member, 0.0) for member, cpu in self._members.items())
            return Usage(
                seconds=round(time.monotonic() - self._began, 3),
                cpu_seconds=round(spent, 3),
                peak_rss_mb=round(self._peak_rss / 1e6, 1),
                peak_process_mb=round(self._peak_process / 1e6, 1),
                rss_mb=round(sum(stat.rss for stat in living) / 1e6, 1),
                pss_mb=round(sum(_pss(stat.pid) for stat in living) / 1e6, 1),
                processes=len(living),
            )

    def kill(self) -> None:
        """End what is left of it, for sure."""
        for _ in range(50):
            living = self.sample()
            if not living:
                return
            for stat in living:
                with suppress(ProcessLookupError):
                    os.kill(stat.pid, signal.SIGKILL)
            time.sleep(0.02)


class ServerProcess:
    """A server that runs while the `with` block does; nothing of it is left afterwards.

    Args:
        command: program and arguments; no shell.
        directory: where it runs.
        environment: added to this process's own.
        log: where its output goes.

    Attributes:
        tree: all its processes.
        started: `time.monotonic()` just before it was started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        self._command = list(command)
        self._directory = directory
        self._environment = {**os.environ, **environment}
        self._log = log
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 -- the benchmark's own table
                self._command,
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.tree = ProcessTree(self._process.pid)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._ended.set()
            self._watcher.join()
            self.tree.sample()
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
        finally:
            self.tree.kill()
            self._process.wait()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self.tree.sample()

    @property
    def alive(self) -> bool:
        """Whether the first process runs."""
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> float:
        """Return the seconds from the start of the process until `ready()` was true.

        `ready` may raise OSError while nothing listens.

        Raises:
            ServerFailed: the process ended, or the time is up; with the end of its output.
        """
        while time.monotonic() - self.started < seconds:
            if not self.alive:
                raise ServerFailed(f"ended with status {self._process.returncode}: {self.tail()}")
            with suppress(OSError):
                if ready():
                    return time.monotonic() - self.started
            time.sleep(0.005)
        raise ServerFailed(f"not ready after {seconds:g} s: {self.tail()}")

    def tail(self) -> str:
        """Return the end of what it printed, without the place of the checkout."""
        return self._log.read_text(errors="replace").strip()[-600:].replace(str(ROOT), ".")


def free_port() -> int:
    """Return a port that nothing listens on, and that no client's connection is given meanwhile."""
    while True:
        port = random.randrange(*_PORTS)  # noqa: S311 -- no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
