"""Minutes of mixed requests, with every answer checked: `make soak`.

The service runs with its defaults, one worker per core, on the models of this repository; but
images may wait for a second, because a machine that stands still for a moment would have a few
refused. Valid requests in every format and a share of hostile ones are sent in an open loop, at a
part of the rate that a closed loop of the same mixture reached just before. A failure is an
unexpected answer, an error in the log, growing memory, or a count in the metrics that differs from
the clients' own.

Memory is the resident memory of all processes of the service, sampled every second. Its median over
20 seconds from minute 2 (a fifth of a shorter run) is compared with that of the last 20 seconds.
"""

import os
import signal
import sys
import time
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

import click
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from bench import BUILD, RESULTS, ROOT
from bench.harness.clients import Count, Tally, send
from bench.harness.processes import ServerFailed, ServerProcess, free_port
from bench.harness.requests import Address, Request, ask
from bench.harness.results import now, write
from bench.serving.mixture import HOST, LEAVERS_MODEL, draw, hostile
from bench.serving.results import conditions
from bench.serving.servers import SERVERS

FULL = RESULTS / "soak.json"
SHORT = BUILD / "soak.json"
FULL_MINUTES = 10
LOG = BUILD / "logs" / "soak.log"

MAX_GROWTH = 0.05
MARK_SECONDS, MARK_SHARE, WINDOW_SECONDS = 120.0, 0.2, 20.0
CAPACITY_SECONDS = 6.0

_SCRAPE_SECONDS = 5.0
_SHOWN = 20


# The service's counts


@dataclass(frozen=True)
class Counted:
    """The counts in the service's metrics."""

    counts: Counter[Count]
    predictions: Counter[tuple[str, str, str]]
    rejections: Counter[str]

    @classmethod
    def scrape(cls, address: Address) -> Self:
        """Read `/metrics`."""
        status, body = ask(address, Request("/metrics"))
        if status != 200:
            raise ServerFailed(f"GET /metrics: status is {status}, not 200")
        found = cls(Counter(), Counter(), Counter())
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                found._take(sample.name, sample.labels, int(sample.value))
        return found

    def _take(self, name: str, labels: Mapping[str, str], value: int) -> None:
        if name == "convscope_http_requests_total":
            self.counts[labels["method"], labels["route"], int(labels["status"])] += value
        elif name == "convscope_predictions_total":
            self.predictions[labels["model"], labels["version"], labels["label"]] += value
        elif name == "convscope_rejections_total":
            self.rejections[labels["reason"]] += value

    def since(self, before: Self) -> Self:
        """Return the difference from earlier counts."""
        return type(self)(
            self.counts - before.counts,
            self.predictions - before.predictions,
            self.rejections - before.rejections,
        )


def differences(tally: Tally, counted: Counted) -> list[str]:
    """Return a line for each count of the service that differs from the clients'."""
    own = tally.counts.copy()
    # The service answered some clients that left; its metrics say how many.
    answered = ("POST", "/predict", 200)
    sent = min(max(counted.counts[answered] - own[answered], 0), tally.unsure)
    own[answered] += sent
    own["POST", "/predict", 499] -= sent
    found = _differ("request", own, counted.counts)
    leavers = sum(n for (name, *_), n in counted.predictions.items() if name == LEAVERS_MODEL)
    if leavers != sent:
        found.append(f"predictions of {LEAVERS_MODEL}: {leavers} counted, {sent} answered")
    named = {key: n for key, n in counted.predictions.items() if key[0] != LEAVERS_MODEL}
    found += _differ("prediction", tally.predictions, Counter(named))
    return found + _differ("rejection", tally.rejections, counted.rejections)


def _differ(what: str, own: Counter[Any], counted: Counter[Any]) -> list[str]:
    return [
        f"{what} {key}: {counted[key]} counted, {own[key]} seen"
        for key in sorted(own.keys() | counted.keys(), key=str)
        if own[key] != counted[key]
    ]


# The run


@dataclass
class Watch:
    """Samples memory, and sends the requests of a probe and a scraper."""

    process: ServerProcess
    address: Address
    tally: Tally = field(default_factory=Tally)
    memory: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin = time.monotonic()
        self._ask_at = self.begin

    def __call__(self) -> None:
        """Take the samples and send the requests that are due."""
        at = time.monotonic()
        if at - self.begin >= len(self.memory):
            rss = sum(stat.rss for stat in self.process.tree.sample())
            self.memory.append((round(at - self.begin, 1), round(rss / 1e6, 1)))
        if at >= self._ask_at:
            self._ask_at = at + _SCRAPE_SECONDS
            for page in ("/metrics", "/health/ready"):
                status, _ = ask(self.address, Request(page))
                self.tally.counts["GET", page, status] += 1
                if status != 200:
                    self.tally.fail(f"GET {page}: status is {status}, not 200")

    def window(self, begin: float, seconds: float) -> float:
        """Return the median memory of a window in MB."""
        rss = [mb for at, mb in self.memory if begin <= at <= begin + seconds]
        return median(rss or [self.memory[-1][1]])


def soak(seconds: float, rate_share: float) -> dict[str, Any]:
    """Run the soak and return its figures; `failures` is empty if all went well."""
    about = conditions()
    address = HOST, free_port()
    command = SERVERS["ours"].command(address[1])
    environment = {"CONVSCOPE_MAX_WAIT_MS": "1000", **os.environ}
    with ServerProcess(command, directory=ROOT, environment=environment, log=LOG) as process:
        process.wait_until(lambda: ask(address, Request("/health/ready"))[0] == 200, 150)
        process.tree.settle()
        before = Counted.scrape(address)
        tally = Tally(counts=Counter({("GET", "/metrics", 200): 1}))
        best = send(address, draw, None, CAPACITY_SECONDS, lambda: None)
        capacity = sum(best.names.values()) / CAPACITY_SECONDS
        click.echo(f"closed loop: {capacity:,.0f} requests/s")
        process.tree.begin()
        watch = Watch(process, address)
        main = send(address, draw, capacity * rate_share, seconds, watch)
        usage = process.tree.usage()
        for part in (best, main, watch.tally):
            tally.add(part)
        time.sleep(1)  # the last requests are counted after their answers
        counted = Counted.scrape(address).since(before)
    failures = [f"{count} × {what}" for what, count in tally.failures.most_common(_SHOWN)]
    failures += differences(tally, counted) + _errors_in_log()
    memory = _memory(watch, seconds)
    if memory["growth"] > MAX_GROWTH:
        failures.append(f"memory grew by {memory['growth']:.1%}; the limit is {MAX_GROWTH:.0%}")
    return {
        **about,
        "finished": now(),
        "seconds": seconds,
        "capacity": round(capacity, 1),
        "rate": round(capacity * rate_share, 1),
        "rate_share": rate_share,
        "requests": sum(main.names.values()),
        "hostile": sum(n for name, n in main.names.items() if name in _hostile_names()),
        "kinds": dict(sorted(main.names.items())),
        "latency_ms": _percentiles(main.latencies),
        "server_cpu_share": round(usage.cpu_seconds / usage.seconds, 3),
        "client_cpu_share": round(main.cpu_seconds / seconds, 3),
        "memory": memory,
        "counts": {" ".join(map(str, key)): n for key, n in sorted(counted.counts.items())},
        "failures": failures,
    }


def _hostile_names() -> set[str]:
    return {shot.name for shot in hostile()}


def _memory(watch: Watch, seconds: float) -> dict[str, Any]:
    mark = min(MARK_SECONDS, seconds * MARK_SHARE)
    window = min(WINDOW_SECONDS, seconds * MARK_SHARE)
    first = watch.window(mark, window)
    last = watch.window(watch.memory[-1][0] - window, window)
    return {
        "mark_seconds": mark,
        "window_seconds": window,
        "mark_mb": first,
        "end_mb": last,
        "growth": round(last / first - 1, 4),
        "peak_mb": max(mb for _, mb in watch.memory),
        "samples": watch.memory,
    }


def _percentiles(latencies: "array[float]") -> dict[str, float]:
    values = np.asarray(latencies) * 1000
    parts = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100}
    return {name: round(float(np.percentile(values, part)), 2) for name, part in parts.items()}


def _errors_in_log() -> list[str]:
    found: Counter[str] = Counter()
    with LOG.open(errors="replace") as lines:
        for line in lines:
            if '"level": "error"' in line or '"level": "critical"' in line or "Traceback" in line:
                found[line.strip()[:300]] += 1
    return [f"{count} × in the log: {line}" for line, count in found.most_common(_SHOWN)]


def _report(found: Mapping[str, Any]) -> str:
    latency, memory = found["latency_ms"], found["memory"]
    lines = [
        f"{found['requests']:,} requests in {found['seconds']:g} s, {found['rate']:,.0f}/s of "
        f"{found['capacity']:,.0f}/s; {found['hostile']:,} of them hostile",
        f"valid: p50 {latency['p50']} ms, p99 {latency['p99']} ms, max {latency['max']} ms",
        f"memory: {memory['mark_mb']:.0f} MB from second {memory['mark_seconds']:g}, "
        f"{memory['end_mb']:.0f} MB at the end ({memory['growth']:+.1%}; medians over "
        f"{memory['window_seconds']:g} s), at most {memory['peak_mb']:.0f} MB",
        f"processors: service {found['server_cpu_share']:.2f}, client "
        f"{found['client_cpu_share']:.2f} of {found['machine']['cores']}",
        *(f"FAILED {line}" for line in found["failures"]),
        "failed" if found["failures"] else "passed",
    ]
    return "\n".join(lines)


@click.command()
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(0.2))
@click.option("--rate-share", default=0.7, show_default=True, type=click.FloatRange(0.01, 1))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help=f"Results; {FULL.relative_to(ROOT)}, or {SHORT.relative_to(ROOT)} of a shorter run.",
)
def main(minutes: float, rate_share: float, out: Path | None) -> None:
    """Soak the service; the status is 1 after a failure."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # to stop the service and the clients
    path = out or (FULL if minutes >= FULL_MINUTES else SHORT)
    try:
        found = soak(minutes * 60, rate_share)
    except (ServerFailed, OSError) as exc:
        raise click.ClickException(str(exc)) from exc
    write(path, found)
    click.echo(_report(found))
    sys.exit(1 if found["failures"] else 0)


if __name__ == "__main__":
    main()
