"""Overload, killed workers, SIGTERM and attackers: `python -m bench.serving.overload`.

Each part starts `convscope serve` with one worker per core on simple-cnn/1 and prints each figure
beside its limit. Latencies come from the open-loop generator and start when a request is due. The
clients share the processors with the service, which makes the figures worse, most of all in the
part with three times the highest throughput.
"""

import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import click
import numpy as np
import psutil
from prometheus_client.mmap_dict import MmapedDict

from bench import BUILD, MODEL, RESULTS, ROOT
from bench.harness.load import (
    LoadFailed,
    OpenLoopResult,
    build_open_loop,
    closed_loop,
    open_loop,
)
from bench.harness.payloads import USUAL, payloads
from bench.harness.processes import ServerFailed, ServerProcess, free_port
from bench.harness.requests import Address, Request, ask
from bench.harness.results import now, write
from bench.serving.attacks import ATTACKS, HOST, Attack, attacking
from bench.serving.results import conditions
from bench.serving.servers import CORES, SERVERS

OUT = RESULTS / "overload.json"
LOG = BUILD / "logs" / "overload.log"
LEGITIMATE_RATE = 200.0
_METRICS = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(frozen=True)
class Check:
    """One line of the table; `limit` is the wanted bound as text."""

    title: str
    found: str
    limit: str = ""
    passed: bool | None = None


@dataclass
class Findings:
    """All figures of a run."""

    checks: list[Check] = field(default_factory=list)
    loads: dict[str, OpenLoopResult] = field(default_factory=dict)

    def at_most(self, title: str, found: float, limit: float, unit: str = "") -> None:
        """Record a figure that may not exceed its limit."""
        self._note(Check(title, f"{found:,.4g}{unit}", f"<= {limit:g}{unit}", found <= limit))

    def at_least(self, title: str, found: float, limit: float, unit: str = "") -> None:
        """Record a figure that must reach its limit."""
        self._note(Check(title, f"{found:,.4g}{unit}", f">= {limit:g}{unit}", found >= limit))

    def note(self, title: str, found: str) -> None:
        """Record a figure without a limit."""
        self._note(Check(title, found))

    def _note(self, check: Check) -> None:
        self.checks.append(check)
        click.echo(_line(check))


def _line(check: Check) -> str:
    verdict = {None: "", True: "pass", False: "FAIL"}[check.passed]
    return f"  {check.title:<58} {check.found:>18}  {check.limit:<12} {verdict}".rstrip()


# The service


@dataclass(frozen=True)
class _Service:
    process: ServerProcess
    address: Address
    metrics: Path

    @property
    def requests(self) -> list[bytes]:
        return self.requests_to("/predict")

    def requests_to(self, target: str) -> list[bytes]:
        files = (files[0] for files in payloads()["png"].requests)
        return [Request(target, file, "image/png").raw(self.address) for file in files]

    @property
    def workers(self) -> list[int]:
        return self.process.children()

    def serves(self, pid: int) -> bool:
        """Whether a worker has answered a request, according to its own file of counters."""
        path = self.metrics / f"counter_{pid}.db"
        if not path.exists():
            return False
        with suppress(OSError, ValueError, RuntimeError, UnicodeDecodeError):  # being written
            values = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
            return any("convscope_http_requests_total" in key and n for key, n, *_ in values)
        return False

    def wait_for_workers(self) -> None:
        """Send requests on new connections until every worker has answered one."""
        for _ in range(3000):
            workers = self.workers
            if len(workers) == CORES and all(map(self.serves, workers)):
                return
            _ping(self.address)
            time.sleep(0.01)
        raise ServerFailed(f"not all of {CORES} workers answered: {self.process.tail()}")

    def cost(self) -> str:
        """Return the memory and the number of open files of all processes."""
        stats = self.process.tree.sample()
        files = 0
        for stat in stats:
            with suppress(psutil.Error):
                files += psutil.Process(stat.pid).num_fds()
        return f"{sum(stat.rss for stat in stats) / 1e6:.0f} MB, {files} files"

    def load(self, rate: float, seconds: float, **options: float) -> OpenLoopResult:
        """Send PNGs in an open loop."""
        return open_loop(self.address, self.requests, rate, seconds, **options)  # type: ignore[arg-type]

    def unloaded(self) -> float:
        """Return the median latency in ms of requests that are sent one at a time."""
        return self.load(20, 2, connections=1, max_connections=4).latency[200].p50


def _ping(address: Address) -> None:
    with suppress(OSError):
        ask(address, Request("/health/live"))


@contextmanager
def _service(**changes: str) -> Iterator[_Service]:
    server, address = SERVERS["ours"], (HOST, free_port())
    with tempfile.TemporaryDirectory(prefix="convscope-overload-") as place:
        environment = {**os.environ, **server.environment, _METRICS: place, **changes}
        command = server.command(address[1])
        with ServerProcess(command, directory=ROOT, environment=environment, log=LOG) as process:
            process.wait_until(lambda: ask(address, Request("/health/ready"))[0] == 200, 150)
            service = _Service(process, address, Path(place))
            service.wait_for_workers()
            process.tree.settle()
            yield service


# Overload

PROBED = ("/health/live", "/metrics")
_PROBES_A_SECOND = 20


class _Probes:
    """GET requests in a thread, each on a connection of its own as probes and scrapers send them.

    Attributes:
        milliseconds: of the answers, by path.
        failed: the number of those that were not 200.
    """

    def __init__(self, address: Address) -> None:
        self.milliseconds: dict[str, list[float]] = {path: [] for path in PROBED}
        self.failed = 0
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(1 / _PROBES_A_SECOND):
            for path, found in self.milliseconds.items():
                started = time.perf_counter()
                try:
                    status, _ = ask(self._address, Request(path))
                except OSError:
                    status = 0
                found.append(1000 * (time.perf_counter() - started))
                self.failed += status != 200


def _saturated(service: _Service, seconds: float) -> float:
    closed_loop(service.address, service.requests, USUAL, 2)  # warm
    return closed_loop(service.address, service.requests, USUAL, seconds).requests_per_second


def _children_seconds() -> float:
    """Return the processor time of children that have ended, which are the load generators."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _overload(found: Findings, seconds: float) -> None:
    with _service() as service:
        usual = service.unloaded()
        best = _saturated(service, min(seconds, 8))
        found.note("saturated, closed loop of 32 connections", f"{best:,.0f}/s")
        service.process.tree.begin()
        began = _children_seconds()
        with _Probes(service.address) as probes:
            load = service.load(3 * best, seconds, max_connections=2048)
        spent, usage = _children_seconds() - began, service.process.tree.usage()
        time.sleep(1)
        later = service.unloaded()
    found.loads["3 times"] = load
    good, refused = load.latency.get(200), load.latency.get(503)
    found.at_least(
        "rate that the generator reached, of what was due", load.sent / seconds / best, 2.7, "×"
    )
    found.at_most("accepted: p99", good.p99 if good else 1e9, 150, " ms")
    found.at_least("goodput, of the saturated throughput", load.goodput / best, 0.9)
    if refused:
        found.at_most("503: p99", refused.p99, 20, " ms")
    for path, found_ms in probes.milliseconds.items():
        median, p99 = np.percentile(found_ms, (50, 99)).tolist()
        found.note(f"{path}: p50", f"{median:.1f} ms")
        found.at_most(f"{path}: p99", p99, 20, " ms")
    found.at_most("probes that failed", probes.failed, 0)
    others = sum(n for status, n in load.statuses.items() if status not in {200, 503})
    found.at_most("answers that are neither 200 nor 503", others, 0)
    found.at_most("connections reset", load.resets, 0)
    found.at_most("connections refused", load.connect_errors, 0)
    found.at_most("requests without an answer", load.timeouts, 0)
    shares = f"{usage.cpu_seconds / usage.seconds:.2f} and {spent / usage.seconds:.2f}"
    found.note(f"processors of {CORES}, service and generator", shares)
    found.note("answers", str(dict(load.statuses)))
    found.note("unloaded before", f"{usual:.2f} ms")
    found.at_most("unloaded 1 s later, against before", later / usual, 1.5, "×")


# A dear model beside a cheap one

_DEAR = "speednet-96/3"
_CHEAP_RATE = 50.0


def _dear(found: Findings, seconds: float) -> None:
    with _service(CONVSCOPE_MODELS=f"{MODEL},{_DEAR}") as service:
        name, version = _DEAR.split("/")
        dear = service.requests_to(f"/predict?model={name}&version={version}")
        closed_loop(service.address, dear, USUAL, 2)  # warm
        alone = service.load(_CHEAP_RATE, min(seconds, 10))
        load = _Background(lambda: service.load(_CHEAP_RATE, min(seconds, 15)))
        answered = closed_loop(service.address, dear, USUAL, min(seconds, 15))
        beside = load.result
    found.loads["cheap model alone"], found.loads["cheap beside dear"] = alone, beside
    found.note(f"{_DEAR}, closed loop", f"{answered.requests_per_second:,.0f}/s")
    found.note(f"{MODEL} alone: p99", f"{alone.latency[200].p99} ms")
    good = beside.latency.get(200)
    found.at_most(f"{MODEL} beside it: p99", good.p99 if good else 1e9, 25, " ms")
    found.at_most(f"{MODEL} beside it: errors", beside.errors, 0)


# Signals


class _Background:
    """A load in a thread."""

    def __init__(self, run: Callable[[], OpenLoopResult]) -> None:
        self._result: OpenLoopResult | None = None
        self._error: LoadFailed | None = None
        self._thread = threading.Thread(target=self._work, args=(run,), daemon=True)
        self._thread.start()

    def _work(self, run: Callable[[], OpenLoopResult]) -> None:
        try:
            self._result = run()
        except LoadFailed as exc:
            self._error = exc

    @property
    def result(self) -> OpenLoopResult:
        """Wait for the load and return its result."""
        self._thread.join()
        if self._result is None:
            raise self._error or LoadFailed("no result")
        return self._result


def _kill(found: Findings, seconds: float) -> None:
    with _service() as service:
        rate = _saturated(service, 4) / 2
        time.sleep(6)  # a younger worker would be replaced after a pause
        load = _Background(lambda: service.load(rate, min(seconds, 12), connections=USUAL))
        time.sleep(3)
        before = service.workers
        os.kill(before[0], signal.SIGKILL)
        took = _until_replaced(service, set(before))
        result = load.result
    found.loads["SIGKILL"] = result
    found.note("rate, half of the saturated throughput", f"{rate:,.0f}/s")
    found.at_most("until another worker serves", took, 3, " s")
    inside = rate * (result.latency[200].p50 / 1000) + USUAL
    found.at_most("requests lost (limit: what the connections can hold)", result.resets, inside)
    rest = result.errors - result.resets
    found.at_most("other errors", rest, 0)
    found.note(
        "p99 and longest meanwhile", f"{result.latency[200].p99} {result.latency[200].max} ms"
    )


def _until_replaced(service: _Service, before: set[int]) -> float:
    begin = time.monotonic()
    while time.monotonic() - begin < 20:
        new = set(service.workers) - before
        if new and all(map(service.serves, new)):
            return time.monotonic() - begin
        _ping(service.address)
        time.sleep(0.005)
    return float("inf")


def _terminate(found: Findings, seconds: float) -> None:
    with _service() as service:
        rate = _saturated(service, 4) / 2
        load = _Background(lambda: service.load(rate, min(seconds, 6), connections=USUAL))
        time.sleep(2)
        begin = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        while service.process.alive and time.monotonic() - begin < 60:
            time.sleep(0.01)
        took = time.monotonic() - begin
        result = load.result
    found.loads["SIGTERM"] = result
    found.note("until the service has ended", f"{took:.2f} s")
    found.note("answered before and after the signal", f"{sum(result.statuses.values()):,}")
    found.note("connections refused afterwards", f"{result.connect_errors:,}")
    others = sum(n for status, n in result.statuses.items() if status != 200)
    found.at_most("sent but not answered with 200", result.resets + result.timeouts + others, 0)


# Attacks


def _attacks(found: Findings, seconds: float) -> None:
    with _service() as service:
        closed_loop(service.address, service.requests, USUAL, 2)  # warm
        alone = service.load(LEGITIMATE_RATE, 5)
        found.loads["no attack"] = alone
        found.note(f"{LEGITIMATE_RATE:g} requests/s alone: p99", f"{alone.latency[200].p99} ms")
        for attack in ATTACKS:
            service.process.tree.settle()
            _endure(found, service, attack, min(seconds, 15))


def _endure(found: Findings, service: _Service, attack: Attack, seconds: float) -> None:
    before = service.cost()
    with attacking(service.address, attack) as stop:
        time.sleep(1)
        load = _Background(lambda: service.load(LEGITIMATE_RATE, seconds))
        time.sleep(seconds * 0.8)
        peak = service.cost()
        result = load.result
        seen = stop()
    time.sleep(8)  # the memory of bodies is given back within 6
    found.loads[attack.title] = result
    good = result.latency.get(200)
    found.at_most(f"{attack.title}: the others' p99", good.p99 if good else 1e9, 50, " ms")
    found.at_most(f"{attack.title}: the others' errors", result.errors, 0)
    if result.errors:
        found.note(
            "  of them",
            f"{dict(result.statuses)}, {result.resets} resets, "
            f"{result.connect_errors} refused, {result.timeouts} late",
        )
    found.note("  before; at the peak; after", f"{before}; {peak}; {service.cost()}")
    found.note("  what the attackers saw", str(seen))


# The run

_RUN: dict[str, Callable[[Findings, float], None]] = {
    "overload": _overload,
    "dear": _dear,
    "kill": _kill,
    "terminate": _terminate,
    "attacks": _attacks,
}


@click.command()
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(3))
@click.option("--only", multiple=True, type=click.Choice(list(_RUN)), help="Again for more.")
@click.option("--out", default=OUT, type=click.Path(path_type=Path))
def main(seconds: float, only: Sequence[str], out: Path) -> None:
    """Measure, print the table and write the results; the status is 1 after a failed check."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # to stop the service and the attackers
    about, found = conditions(), Findings()
    try:
        build_open_loop()
        for name in only or _RUN:
            click.echo(name)
            _RUN[name](found, seconds)
    except (ServerFailed, LoadFailed, OSError) as exc:
        raise click.ClickException(str(exc)) from exc
    content = {
        **about,
        "finished": now(),
        "checks": [asdict(check) for check in found.checks],
        "loads": {name: asdict(load) for name, load in found.loads.items()},
    }
    write(out, content)
    sys.exit(any(check.passed is False for check in found.checks))


if __name__ == "__main__":
    main()
