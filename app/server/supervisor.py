"""The supervisor starts, watches and stops worker processes, and replaces those that die or hang.

It imports everything once and forks its workers from itself, so that a new one serves in a fraction
of a second and all share the memory of the imported modules. It opens no model and starts no
thread, because a process with threads cannot be forked safely.
"""

import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from types import FrameType

from app.errors import ArtifactError, ConvscopeError
from app.server.application import Application
from app.server.connections import Share, Shares
from app.server.worker import Server, end_quietly, open_in_process
from app.settings import Settings

_BEAT_SECONDS = 1.0
_START_SECONDS = 120.0
"""The time that a worker has to open its models."""

_STEADY_SECONDS = 5.0
"""A worker that dies sooner is replaced after a delay, because it may well die again."""
_LONGEST_BACKOFF_SECONDS = 30.0
_KILL_AFTER_SECONDS = 10.0
"""Added to the time for the requests in flight, for a worker whose model hangs."""

_log = logging.getLogger(__name__)


@dataclass
class _Worker:
    """A worker process, and the place among the workers that it takes."""

    place: int
    process: ForkProcess
    reader: Connection
    started: float
    heard: float
    stuck_seconds: float = 0.0
    ready: bool = False
    error: str = ""


@dataclass
class Supervisor:
    """Keeps `count` workers serving on `listener`.

    Attributes:
        settings: the limits of connections and of times.
        listener: a listening socket.
        count: how many workers there are.
        open_application: is called once in every worker, before its event loop starts.
        on_ready: is called once, when the first worker serves.
    """

    settings: Settings
    listener: socket.socket
    count: int
    open_application: Callable[[], Application]
    on_ready: Callable[[], None]
    _workers: list[_Worker] = field(default_factory=list)
    _start_at: float = 0.0
    _backoff: float = 0.0
    _shares: Shares = field(init=False)
    _served: bool = False
    _deaths: int = 0
    _stopping: bool = False

    def __post_init__(self) -> None:
        self._shares = Shares(self.count)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            ArtifactError: the first worker could not open the models.
        """
        gc.freeze()  # a collection in a worker would copy the shared memory
        wakeup, alarm = socket.socketpair()
        for end in (wakeup, alarm):
            end.setblocking(False)
        with closing(wakeup), closing(alarm):
            signal.set_wakeup_fd(alarm.fileno())
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)
            try:
                while not self._stopping:
                    self._start_missing()
                    self._listen(wakeup)
                    self._replace()
            finally:
                self._stop()
                signal.set_wakeup_fd(-1)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._stopping = True

    def _start_missing(self) -> None:
        now = time.monotonic()
        # The first worker shows whether the models are sound, so that only one reports an error.
        wanted = self.count if any(worker.ready for worker in self._workers) else 1
        while len(self._workers) < wanted and now >= self._start_at:
            reader, writer = multiprocessing.Pipe(duplex=False)
            place = min(set(range(self.count)) - {worker.place for worker in self._workers})
            share = Share(self._shares, place)
            share.set(0)
            process = multiprocessing.get_context("fork").Process(
                target=self._work,
                args=(reader, writer, share, self._deaths > 0),
                name="convscope-worker",
            )
            try:
                process.start()
            except OSError as exc:  # no memory, or too many processes
                reader.close()
                self._start_at = now + _STEADY_SECONDS
                _log.error("a worker could not be started: %s", exc)
                return
            finally:
                writer.close()
            self._workers.append(_Worker(place, process, reader, now, now))
            self._deaths = max(0, self._deaths - 1)

    def _listen(self, wakeup: socket.socket) -> None:
        """Wait up to a second for signals, deaths and messages from workers."""
        sources = [worker.reader for worker in self._workers]
        sentinels = [worker.process.sentinel for worker in self._workers]
        wait([wakeup, *sources, *sentinels], timeout=_BEAT_SECONDS)
        with suppress(BlockingIOError):
            wakeup.recv(4096)
        for worker in self._workers:
            self._hear(worker)

    def _hear(self, worker: _Worker) -> None:
        with suppress(EOFError, OSError):
            while worker.reader.poll():
                word, _, rest = worker.reader.recv_bytes().decode().partition(" ")
                worker.heard = time.monotonic()
                if word == "error":
                    worker.error = rest
                else:
                    worker.stuck_seconds = float(rest)
                    worker.ready = True
        if worker.ready and not self._served:
            self._served = True
            self.on_ready()

    def _replace(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            if self._hangs(worker, now):
                _log.error("worker %d hangs and is killed", worker.process.pid)
                worker.process.kill()
                worker.process.join()
            if not worker.process.is_alive():
                self._workers.remove(worker)
                self._bury(worker, now)

    def _hangs(self, worker: _Worker, now: float) -> bool:
        limit = self.settings.hang_seconds
        if not worker.ready:
            limit = max(limit, _START_SECONDS)
        return max(worker.stuck_seconds, now - worker.heard) > limit

    def _bury(self, worker: _Worker, now: float) -> None:
        worker.reader.close()
        self._deaths += 1
        if worker.error and not self._served:
            raise ArtifactError(worker.error)
        steady = worker.ready and now - worker.started > _STEADY_SECONDS
        longer = min(max(2 * self._backoff, 0.5), _LONGEST_BACKOFF_SECONDS)
        self._backoff = 0.0 if steady else longer
        self._start_at = now + self._backoff
        code = worker.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        _log.error(
            "worker %d ended with %s%s; another is started in %.1f s",
            worker.process.pid,
            how,
            f" ({worker.error})" if worker.error else "",
            self._backoff,
        )

    def _stop(self) -> None:
        """Let every worker finish; kill those that take too long."""
        self._stopping = True
        # First, so that the kernel refuses new clients once the workers have closed theirs too.
        self.listener.close()
        for worker in self._workers:
            worker.process.terminate()
        settings = self.settings
        longest = settings.drain_delay + settings.shutdown_seconds + _KILL_AFTER_SECONDS
        deadline = time.monotonic() + longest
        for worker in self._workers:
            while worker.process.is_alive() and time.monotonic() < deadline:
                worker.process.join(_BEAT_SECONDS)
                worker.process.terminate()  # again: it may not have had its handler yet
            if worker.process.is_alive():
                _log.error("worker %d did not stop and is killed", worker.process.pid)
                worker.process.kill()
                worker.process.join()

    # In the worker

    def _work(self, reader: Connection, writer: Connection, share: Share, replaces: bool) -> None:
        """Serve: the main function of a worker process.

        Args:
            reader: the supervisor's end of the pipe, closed here.
            writer: takes `beat` with the seconds for which the models are stuck, or `error`.
            share: this worker's part of all connections.
            replaces: whether the worker takes the place of one that died or hung.
        """
        signal.set_wakeup_fd(-1)
        end_quietly(signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for connection in (reader, *(worker.reader for worker in self._workers)):
            connection.close()
        try:
            application = open_in_process(self.open_application)
        except ConvscopeError as exc:
            writer.send_bytes(f"error {exc}".encode())
            sys.exit(1)
        os.set_blocking(writer.fileno(), False)
        application.metrics.worker_restarts.inc(replaces)

        def beat() -> None:
            try:
                writer.send_bytes(f"beat {application.stuck_seconds:.1f}".encode())
            except BlockingIOError:  # the supervisor is stopped
                pass
            except OSError:  # the supervisor was killed
                server.should_exit = True

        server = Server(application, self.listener, self.settings, share, beat)
        server.run()
