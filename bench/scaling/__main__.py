"""Compare the simulation with one worker, then ask it about many: `python -m bench.scaling`.

The service has one worker on one processor, the load generators are on the other. Writes
`bench/results/scaling.json`, and the tables and the plot of `docs/scaling.md`.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from app.artifact.store import read_store
from bench import BUILD, ROOT
from bench.harness.load import Latency, build_open_loop, closed_loop, open_loop
from bench.harness.payloads import payloads
from bench.harness.processes import ServerProcess, free_port
from bench.harness.report import publish
from bench.harness.requests import Address, Request, ask
from bench.scaling.autoscaling import Policy, simulate_doubling
from bench.scaling.report import plot_scaling, scaling_tables
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
from training.run.hardware import name_processor

MODELS = ("simple-cnn/3", "fast/4", "resnet18/2")
BATCHES = (1, 2, 4, 8, 16)
SHARES = (0.25, 0.5, 0.75)
"""Rates, as parts of a worker's highest."""

SECONDS = 5.0
COMPARED_SECONDS = 60.0
"""Of a rate: a slow model's p99 is otherwise that of a handful of requests."""

_SERVICE, _CLIENT = 0, 1
_PARTS = (0.0, 0.5, 0.9, 0.99, 1.0)

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

CORES_OF_A_MACHINE = 32
ASKED_REQUESTS = 200_000

SCALED = "fast/4"
MINUTES = 4
START_SECONDS = 10
"""Of a replica, and the traffic that doubles each minute while it is started."""

DOCUMENT = ROOT / "docs" / "scaling.md"


def main() -> None:
    """Measure, compare, ask, write."""
    os.sched_setaffinity(0, {_CLIENT})
    build_open_loop()
    services, compared, asked, sizes = {}, [], [], []
    for model in MODELS:
        with _served(model) as address:
            services[model] = service = _service_times(address)
            compared += [_compare(model, address, service, share) for share in SHARES]
            sizes.append(_size(model, address, service.highest_rate))
        asked += [_ask(model, service, crew, balancer) for crew in CREWS for balancer in BALANCERS]
    for model in _other_classifiers():
        with _served(model) as address:
            sizes.append(_size(model, address, _highest_rate(address)))
    scaled = services[SCALED]
    courses = {
        title: simulate_doubling(scaled, policy, first=0.4 * scaled.highest_rate, minutes=MINUTES)
        for title, policy in _policies().items()
    }
    plot_scaling(courses, scaled.highest_rate, DOCUMENT.parent / "images" / "autoscaling.png")
    figures = {
        "service_times": {model: asdict(service) for model, service in services.items()},
        "compared": compared,
        "asked": asked,
        "sizes": sizes,
        "courses": {
            title: [asdict(second) for second in course] for title, course in courses.items()
        },
    }
    publish("scaling", figures, scaling_tables(figures, name_processor()), DOCUMENT)


def _policies() -> dict[str, Policy]:
    """Return the policy of `deploy/ray/serve.yaml`, and Ray's own."""
    import yaml

    config = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
    ours = config["applications"][0]["deployments"][0]["autoscaling_config"]
    names = ("target_ongoing_requests", "look_back_period_s", "upscale_delay_s")
    target, look_back, delay = (ours[name] for name in names)
    return {
        "deploy/ray/serve.yaml": Policy(target, look_back, delay, 1, START_SECONDS),
        "Ray's defaults": Policy(2, 30, 30, 10, START_SECONDS),
    }


def _other_classifiers() -> list[str]:
    models = read_store(ROOT / "models_store", [], MODELS[0])
    names = [model.ref for model in models if model.manifest.task == "classification"]
    return [name for name in names if name not in MODELS]


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
    """Measure a worker by closed loops and by requests one at a time.

    In a closed loop of 2n connections two batches of n take turns: the requests of one arrive while
    the other is computed. So the worker is never idle, and a batch of n takes n over the rate.
    """
    requests, seconds = _requests(address), []
    closed_loop(address, requests, 2, 2)  # warm
    for size in BATCHES:
        found = closed_loop(address, requests, 2 * size, SECONDS)
        if found.errors:  # so many may not wait for a slow model
            break
        seconds.append(size / found.requests_per_second)
    delays = _delays(closed_loop(address, requests, 1, 2 * SECONDS).latency)
    # A processor that has slept answers later, but is not busy for longer.
    seldom = open_loop(address, requests, 0.1 / seconds[0], 2 * SECONDS, seed=1).latency[200]
    outside = max(0.0, seldom.p50 / 1000 - seconds[0])
    return ServiceTimes(BATCHES[: len(seconds)], tuple(seconds), _PARTS, delays, outside)


def _highest_rate(address: Address) -> float:
    """Return the requests a second of closed loops, as long as none is refused."""
    requests, rates = _requests(address), [0.0]
    for size in (BATCHES[0], BATCHES[0], BATCHES[-2], BATCHES[-1]):  # the first one warms
        found = closed_loop(address, requests, 2 * size, SECONDS / 2)
        if found.errors:
            break
        rates.append(found.requests_per_second)
    return max(rates)


def _delays(alone: Latency) -> tuple[float, ...]:
    """Return the seconds by which latencies of requests one at a time differ from their mean.

    What exceeds their p99 is left out: it is the machine's, and another time elsewhere.
    """
    values = (alone.p50, alone.p50, alone.p90, alone.p99, alone.p99)
    widths = [after - before for before, after in pairwise(_PARTS)]
    middles = [(low + high) / 2 for low, high in pairwise(values)]
    mean = sum(width * middle for width, middle in zip(widths, middles, strict=True))
    return tuple((value - mean) / 1000 for value in values)


def _compare(model: str, address: Address, service: ServiceTimes, share: float) -> dict[str, Any]:
    """Measure one worker at a rate, and simulate it."""
    rate = share * service.highest_rate
    found = open_loop(address, _requests(address), rate, COMPARED_SECONDS, seed=1)
    simulated = simulate(service, 1, rate, 4 * COMPARED_SECONDS, balancer=at_random)
    latency = found.latency[200]
    return {
        "model": model,
        "rate": round(rate, 1),
        "share": share,
        "refused": found.errors,
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


def _size(model: str, address: Address, highest_rate: float) -> dict[str, Any]:
    """Return what many requests take, by what one worker on one core answers."""
    requests = _requests(address)
    file = payloads()["png"].requests[0][0]
    _, answer = ask(address, Request("/predict", file, "image/png"))
    sent = sum(map(len, requests)) / len(requests)
    _, metrics = ask(address, Request("/metrics"))
    cores = [math.ceil(rate / (ASKED_SHARE * highest_rate)) for rate in ASKED_RATES]
    return {
        "model": model,
        "rate_of_a_core": round(highest_rate, 1),
        "bytes_of_a_request": round(sent),
        "bytes_of_an_answer": len(answer),
        "dollars_a_million": CORE_HOUR / 3600 * 1e6 / (ASKED_SHARE * highest_rate),
        "series_of_a_machine": sum(not line.startswith(b"#") for line in metrics.splitlines()),
        "rates": ASKED_RATES,
        "cores": cores,
        "machines": [math.ceil(number / CORES_OF_A_MACHINE) for number in cores],
    }


if __name__ == "__main__":
    main()
