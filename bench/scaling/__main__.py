"""Compare the simulation with one worker, then ask it about many: `python -m bench.scaling`.

The service has one worker on one processor, the load generators are on the other. Prints tables
and writes `bench/results/scaling.json`.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import click

from bench import BUILD, RESULTS, ROOT
from bench.harness.load import Latency, build_open_loop, closed_loop, open_loop
from bench.harness.payloads import payloads
from bench.harness.processes import ServerProcess, free_port
from bench.harness.report import table
from bench.harness.requests import Address, Request, ask
from bench.harness.results import commit, machine, now, write
from bench.scaling.simulation import (
    Balancer,
    ServiceTimes,
    at_random,
    better_of_two,
    in_turn,
    percentile,
    simulate,
)
from bench.serving.servers import SERVERS

MODELS = ("simple-cnn/3", "fast/4", "resnet18/2")
BATCHES = (1, 2, 4, 8, 16, 32)
SHARES = (0.25, 0.5, 0.75)
"""Rates, as parts of a worker's highest."""

SECONDS = 6.0
_SERVICE, _CLIENT = 0, 1
_PARTS = (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)

CREWS = (1, 10, 100, 1000)
"""Numbers of workers that are asked about."""

BALANCERS: Mapping[str, Callable[[], Balancer]] = {
    "at random": lambda: at_random,
    "in turn": in_turn,
    "better of two": lambda: better_of_two,
}
ASKED_SHARE = 0.7
"""Of a worker's highest rate, in a service that has room for a busy minute."""

ASKED_RATES = (1_000, 100_000, 1_000_000)
CORE_HOUR = 0.04
"""US dollars, assumed."""

ASKED_REQUESTS = 200_000


def main() -> None:
    """Measure, compare, ask, write."""
    os.sched_setaffinity(0, {_CLIENT})
    build_open_loop()
    compared, asked, sizes = [], [], []
    for model in MODELS:
        with _served(model) as address:
            service = _service_times(address)
            compared += [_compare(model, address, service, share) for share in SHARES]
            sizes.append(_size(model, address, service))
        asked += [_ask(model, service, crew, balancer) for crew in CREWS for balancer in BALANCERS]
    content = "\n\n".join(
        [
            f"One core of {machine()['processor']}; PNG of 32×32 pixels.",
            _compared_table(compared),
            _asked_table(asked),
            _sizes_table(sizes),
        ]
    )
    figures = {"compared": compared, "asked": asked, "sizes": sizes}
    about = {"machine": machine(), "commit": commit(), "date": now()}
    write(RESULTS / "scaling.json", about | figures)
    click.echo(content)


@contextmanager
def _served(model: str) -> Iterator[Address]:
    address = ("127.0.0.1", free_port())
    command = [shutil.which("taskset") or "taskset", "-c", str(_SERVICE)]
    command += SERVERS["ours-1"].command(address[1])
    environment = os.environ | {
        "CONVSCOPE_MODELS": model,
        "CONVSCOPE_DEFAULT_MODEL": model,
        "CONVSCOPE_LOG_LEVEL": "warning",
    }
    log = BUILD / "logs" / "scaling.log"
    with ServerProcess(command, directory=ROOT, environment=environment, log=log) as process:
        process.wait_until(lambda: ask(address, Request("/health/ready"))[0] == 200, 150)
        yield address


def _requests(address: Address) -> list[bytes]:
    files = (files[0] for files in payloads()["png"].requests)
    return [Request("/predict", file, "image/png").raw(address) for file in files]


def _service_times(address: Address) -> ServiceTimes:
    """Measure a worker by closed loops of ever more connections, until it refuses some."""
    requests, batches, seconds = _requests(address), [], []
    closed_loop(address, requests, BATCHES[0], 2)  # warm
    for size in BATCHES:
        found = closed_loop(address, requests, size, SECONDS)
        if found.errors:
            break
        batches.append(size)
        seconds.append(size / found.requests_per_second)
    alone = open_loop(address, requests, 0.1 / seconds[0], 2 * SECONDS, connections=1).latency[200]
    factors = _factors(alone)
    return ServiceTimes(tuple(batches), tuple(seconds), _PARTS, factors)


def _factors(alone: Latency) -> tuple[float, ...]:
    """Return how latencies of requests one at a time vary about their mean."""
    values = (alone.p50, alone.p50, alone.p90, alone.p99, alone.p999, alone.max)
    widths = [after - before for before, after in pairwise(_PARTS)]
    middles = [(low + high) / 2 for low, high in pairwise(values)]
    mean = sum(width * middle for width, middle in zip(widths, middles, strict=True))
    return tuple(value / mean for value in values)


def _compare(model: str, address: Address, service: ServiceTimes, share: float) -> dict[str, Any]:
    """Measure one worker at a rate, and simulate it."""
    rate = share * service.highest_rate
    found = open_loop(address, _requests(address), rate, 2 * SECONDS)
    if found.errors:
        raise RuntimeError(f"{found.errors} requests of {model} have no answer at {rate:.0f}/s")
    simulated = simulate(service, 1, rate, 10 * SECONDS, balancer=at_random, regular=True)
    latency = found.latency[200]
    return {
        "model": model,
        "rate": round(rate, 1),
        "share": share,
        "p50_ms": latency.p50,
        "p99_ms": latency.p99,
        "simulated_p50_ms": round(1000 * percentile(simulated, 0.5), 3),
        "simulated_p99_ms": round(1000 * percentile(simulated, 0.99), 3),
    }


def _ask(model: str, service: ServiceTimes, workers: int, balancer: str) -> dict[str, Any]:
    rate = ASKED_SHARE * service.highest_rate * workers
    found = simulate(service, workers, rate, ASKED_REQUESTS / rate, balancer=BALANCERS[balancer]())
    return {
        "model": model,
        "workers": workers,
        "balancer": balancer,
        "rate": round(rate, 1),
        "p50_ms": round(1000 * percentile(found, 0.5), 2),
        "p99_ms": round(1000 * percentile(found, 0.99), 2),
    }


def _size(model: str, address: Address, service: ServiceTimes) -> dict[str, Any]:
    """Return what many requests take, by what one worker on one core answers."""
    requests = _requests(address)
    file = payloads()["png"].requests[0][0]
    _, answer = ask(address, Request("/predict", file, "image/png"))
    sent = sum(map(len, requests)) / len(requests)
    return {
        "model": model,
        "rate_of_a_core": round(service.highest_rate, 1),
        "bytes_of_a_request": round(sent),
        "bytes_of_an_answer": len(answer),
        "cores": [math.ceil(rate / (ASKED_SHARE * service.highest_rate)) for rate in ASKED_RATES],
    }


def _compared_table(rows: Sequence[dict[str, Any]]) -> str:
    columns = ["model", "requests/s", "p50, ms", "simulated", "p99, ms", "simulated", "ratio"]
    cells = [
        [
            row["model"],
            f"{row['rate']:,.0f}",
            f"{row['p50_ms']:.1f}",
            f"{row['simulated_p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['simulated_p99_ms']:.1f}",
            f"{row['simulated_p99_ms'] / row['p99_ms']:.2f}",
        ]
        for row in rows
    ]
    return table(columns, cells)


def _asked_table(rows: Sequence[dict[str, Any]]) -> str:
    columns = ["model", "workers", "requests/s", *(f"p99 {name}, ms" for name in BALANCERS)]
    found = {(row["model"], row["workers"]): row for row in rows}
    p99 = {(row["model"], row["workers"], row["balancer"]): row["p99_ms"] for row in rows}
    cells = [
        [
            model,
            f"{workers:,}",
            f"{row['rate']:,.0f}",
            *(f"{p99[model, workers, name]:.1f}" for name in BALANCERS),
        ]
        for (model, workers), row in found.items()
    ]
    return table(columns, cells)


def _sizes_table(rows: Sequence[dict[str, Any]]) -> str:
    columns = ["model", "requests/s of a core", "$ a million requests"]
    columns += [f"cores for {rate:,}/s" for rate in ASKED_RATES]
    cells = [
        [
            row["model"],
            f"{row['rate_of_a_core']:,.0f}",
            f"{CORE_HOUR / 3600 * 1e6 / (ASKED_SHARE * row['rate_of_a_core']):.3f}",
            *(f"{cores:,}" for cores in row["cores"]),
        ]
        for row in rows
    ]
    return table(columns, cells)


if __name__ == "__main__":
    main()
