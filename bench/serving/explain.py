"""Duration of an explanation, one request after the other: `python -m bench.serving.explain`.

The service has one worker on one processor; the client has the other one. For every model of the
store (`CONVSCOPE_STORE`) and each of its methods, the client asks for the figures of a 32×32 PNG
and for the overlay of a photograph of 12 megapixels. Prints a table, writes
`bench/results/explain.json` and fills `docs/performance.md`.
"""

import os
import shutil
import statistics
import time
from typing import Any

import httpx

from bench import BUILD, ROOT
from bench.harness.payloads import encode, photo, pictures
from bench.harness.processes import ServerProcess, free_port
from bench.harness.report import UNKNOWN, publish, table
from bench.harness.results import machine
from bench.serving.servers import SERVERS

REQUESTS = 40
HEAVY, FEW = 100e6, 6  # a model with more multiply-accumulates gets fewer requests
_SERVICE, _CLIENT = "0", 1


def main() -> None:
    """Measure, print, write."""
    os.sched_setaffinity(0, {_CLIENT})
    port = free_port()
    command = [shutil.which("taskset") or "taskset", "-c", _SERVICE]
    command += SERVERS["ours-1"].command(port)
    log = BUILD / "logs" / "explain.log"
    with (
        ServerProcess(command, directory=ROOT, environment=os.environ, log=log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        process.wait_until(lambda: _ready(client), 150)
        rows = [_measure(client, model) for model in client.get("/models").json()["models"]]
    figures = {"requests": REQUESTS, "models": rows}
    content = explanation_table(rows, machine()["processor"])
    publish("explain", figures, content, ROOT / "docs" / "performance.md")


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def _measure(client: httpx.Client, model: dict[str, Any]) -> dict[str, Any]:
    small = encode(pictures(1)[0], "PNG")
    asked = {"model": model["name"], "version": model["version"]}
    count = FEW if model["macs"] > HEAVY else REQUESTS
    times = {}
    for method in model["explanations"]:
        times[f"{method}, JSON"] = _times(client, small, asked | {"method": method}, count)
        overlay = asked | {"method": method, "format": "overlay"}
        times[f"{method}, overlay on a photograph"] = _times(client, photo(0), overlay, count)
    return {"model": f"{model['name']}/{model['version']}", "macs": model["macs"], "ms": times}


def _times(
    client: httpx.Client, image: bytes, asked: dict[str, str], count: int
) -> dict[str, float]:
    taken = []
    for _ in range(count + 2):
        started = time.perf_counter()
        client.post("/explain", params=asked, content=image).raise_for_status()
        taken.append(1000 * (time.perf_counter() - started))
    taken = sorted(taken[2:])  # the first requests open files
    return {"median": round(statistics.median(taken), 1), "longest": round(taken[-1], 1)}


def explanation_table(rows: list[dict[str, Any]], processor: str) -> str:
    """Return a Markdown table of the times of each model, and its conditions."""
    columns = list(dict.fromkeys(name for row in rows for name in row["ms"]))
    cells = []
    for row in rows:
        times = (row["ms"].get(name) for name in columns)
        shown = (f"{ms['median']:.1f} ({ms['longest']:.1f})" if ms else UNKNOWN for ms in times)
        cells.append([row["model"], *shown])
    said = (
        f"Milliseconds, the median of {REQUESTS} requests ({FEW} where a model has over "
        f"{HEAVY / 1e6:.0f} million multiply-accumulates), the longest in brackets; {processor}."
    )
    return f"{table(['model', *columns], cells)}\n\n{said}"


if __name__ == "__main__":
    main()
