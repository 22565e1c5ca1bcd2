"""Servers as processes: start one, wait until it answers, measure its process tree, stop it.

Benchmarks and tests start every server here. A server ends with the process that started it, even
when that process is killed. Linux only.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from bench import ROOT

_LAUNCH = Path(__file__).with_name("launch.py")
_SAMPLE_SECONDS = 0.1
_STOP_SECONDS = 30
_PORTS = 20_000, 30_000  # below the range from which Linux takes ports for clients
_QUIET_SECONDS, _QUIET_TIMES, _QUIET_SHARE = 0.15, 2, 0.15

Process = Any
"""A `psutil.Process`; psutil has no annotations."""


class ServerFailed(Exception):
    """A server did not start, ended by itself, or gave a wrong answer."""


@dataclass(frozen=True)
class Usage:
    """The cost of a process tree since the measurement began.

    Attributes:
        seconds: length of the measurement.
        cpu_seconds: user and system time of all processes.
        peak_rss_mb: largest sum of the resident memory of all processes, in MB (10^6 bytes); pages
            that processes share count once for each of them.
        peak_process_mb: largest resident memory of one process.
        rss_mb: sum of the resident memory at the end.
        pss_mb: memory at the end, shared pages divided among the processes that share them.
        processes: number of processes at the end.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_mb: float
    peak_process_mb: float
    rss_mb: float
    pss_mb: float
    processes: int


@dataclass(frozen=True)
class Sample:
    """One process at one moment: `cpu_seconds` is user and system time, `rss` is in bytes."""

    pid: int
    parent: int
    cpu_seconds: float
    rss: int


def busy_seconds() -> float:
    """Return the processor time used by all programs of this machine and by others on its host."""
    times = psutil.cpu_times()
    busy: float = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    return busy


class ProcessTree:
    """All processes of a server.

    The tree holds the root's descendants and the processes in sessions that members lead, so
    daemons belong to it. A process that was seen in the tree stays in it when its parent ends.
    """

    def __init__(self, root: int) -> None:
        self._lock = threading.Lock()
        self._cpu_seconds: dict[Process, float] = {psutil.Process(root): 0.0}
        self._begin: dict[Process, float] = {}
        self._began = time.monotonic()
        self._peak_rss = self._peak_process = 0
        self._watcher: threading.Thread | None = None
        self._closed = threading.Event()

    def sample(self) -> list[Sample]:
        """Find the members that live now and record their use."""
        with self._lock:
            return list(self._sample().values())

    def _sample(self) -> dict[Process, Sample]:
        living = {}
        for process in self._find():
            with suppress(psutil.Error), process.oneshot():
                if process.status() != psutil.STATUS_ZOMBIE:
                    cpu, rss = process.cpu_times(), process.memory_info().rss
                    living[process] = Sample(
                        process.pid, process.ppid(), cpu.user + cpu.system, rss
                    )
        self._cpu_seconds |= {process: one.cpu_seconds for process, one in living.items()}
        sizes = [one.rss for one in living.values()]
        self._peak_rss = max(self._peak_rss, sum(sizes))
        self._peak_process = max([self._peak_process, *sizes])
        return living

    def _find(self) -> list[Process]:
        known = {process.pid: process for process in self._cpu_seconds if process.is_running()}
        for process in list(known.values()):
            with suppress(psutil.Error):
                if process.ppid() not in known:  # the root, or a daemon
                    known |= {child.pid: child for child in process.children(recursive=True)}
        for pid in psutil.pids():
            with suppress(psutil.Error, ProcessLookupError):
                if pid not in known and os.getsid(pid) in known:
                    known[pid] = psutil.Process(pid)
        return list(known.values())

    def begin(self) -> None:
        """Start a measurement; a thread samples the tree from now on."""
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        with self._lock:
            self._peak_rss = self._peak_process = 0
            self._sample()
            self._begin = dict(self._cpu_seconds)
            self._began = time.monotonic()

    def _watch(self) -> None:
        while not self._closed.wait(_SAMPLE_SECONDS):
            self.sample()

    def settle(self, seconds: float = 5) -> None:
        """Wait until the tree is idle, at most `seconds`, so that old work is not measured."""
        until = time.monotonic() + seconds
        quiet = 0
        while quiet < _QUIET_TIMES and time.monotonic() < until:
            self.begin()
            time.sleep(_QUIET_SECONDS)
            usage = self.usage()
            quiet = quiet + 1 if usage.cpu_seconds <= _QUIET_SHARE * usage.seconds else 0

    def usage(self) -> Usage:
        """Return the use since `begin`."""
        with self._lock:
            living = self._sample()
            used = self._cpu_seconds.items()
            return Usage(
                seconds=round(time.monotonic() - self._began, 3),
                cpu_seconds=round(sum(cpu - self._begin.get(one, 0.0) for one, cpu in used), 3),
                peak_rss_mb=round(self._peak_rss / 1e6, 1),
                peak_process_mb=round(self._peak_process / 1e6, 1),
                rss_mb=round(sum(one.rss for one in living.values()) / 1e6, 1),
                pss_mb=round(sum(map(_pss, living)) / 1e6, 1),
                processes=len(living),
            )

    def close(self) -> None:
        """Stop the thread that samples."""
        self._closed.set()
        if self._watcher is not None:
            self._watcher.join()

    def kill(self) -> None:
        """Kill all members that still live."""
        for _ in range(50):
            living = self.sample()
            if not living:
                return
            for one in living:
                with suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
            time.sleep(0.02)


def _pss(process: Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0


class ServerProcess:
    """A server that runs during the `with` block and leaves no process behind.

    It runs in a session of its own. If this process ends inside the block, however it ends, the
    server gets SIGTERM. Enter the block in the main thread: the kernel watches the thread.

    Args:
        command: program and arguments; no shell.
        directory: working directory.
        environment: all environment variables.
        log: file that takes standard output and standard error.

    Attributes:
        pid: process id of the program.
        tree: the program's process tree.
        started: `time.monotonic()` just before the start.
    """

    pid: int
    tree: ProcessTree
    started: float

    def __init__(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        self._command = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), *command]
        self._directory = directory
        self._environment = environment
        self._log = log

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 -- commands of benchmarks and tests
                self._command,
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.tree = ProcessTree(self.pid)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.tree.close()
            self.tree.sample()
            with suppress(subprocess.TimeoutExpired):
                self.stop(_STOP_SECONDS)
        finally:
            self.tree.kill()
            self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether the program runs."""
        return self._process.poll() is None

    def children(self) -> list[int]:
        """Return the process ids of the program's own children."""
        return [child.pid for child in psutil.Process(self.pid).children()]

    def send_signal(self, number: int) -> None:
        """Send a signal to the program, unless it has ended."""
        self._process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """Wait until the program ends and return its status.

        Raises:
            subprocess.TimeoutExpired: the program still runs after `seconds`.
        """
        return self._process.wait(seconds)

    def stop(self, seconds: float = 60) -> int:
        """Send SIGTERM and return the program's status; errors as of `wait`."""
        self.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> float:
        """Return the seconds from the start of the program until `ready()` was true.

        Args:
            ready: may raise OSError while nothing listens.
            seconds: time limit, counted from the start of the program.

        Raises:
            ServerFailed: the program ended, or the time is up; with the end of its output.
        """
        sample_at = self.started
        while time.monotonic() - self.started < seconds:
            if not self.alive:
                raise ServerFailed(f"ended with status {self._process.returncode}: {self.tail()}")
            with suppress(OSError):
                if ready():
                    return time.monotonic() - self.started
            if time.monotonic() >= sample_at:  # to see daemons before their parents end
                self.tree.sample()
                sample_at = time.monotonic() + _SAMPLE_SECONDS
            time.sleep(0.005)
        raise ServerFailed(f"not ready after {seconds:g} s: {self.tail()}")

    def tail(self) -> str:
        """Return the end of the output, with paths relative to the checkout."""
        return self._log.read_text(errors="replace").strip()[-600:].replace(str(ROOT), ".")


def free_port() -> int:
    """Return a port that is free, and that the kernel gives to no client meanwhile."""
    while True:
        port = random.randrange(*_PORTS)  # noqa: S311 -- no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
