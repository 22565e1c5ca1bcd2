"""What a run found, as plain data: one JSON file, written whole after every server."""

import json
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from bench import ROOT
from bench.harness.load import Latency
from bench.harness.processes import Usage
from bench.serving.limit import Limit, PhotoDecoding

_PACKAGES = ("convscope", "fastapi", "httptools", "numpy", "onnxruntime", "pillow", "starlette")
_MORE_PACKAGES = ("uvicorn", "uvloop")

Mode = Literal["closed", "open"]


@dataclass(frozen=True)
class Cell:
    """One measurement of one server.

    Attributes:
        payload: its name.
        mode: closed loop (by wrk) or open loop.
        connections: of the closed loop; of the open loop, the most that were open at a time.
        share: the open loop's rate as a part of what the closed loop reached in the same round.
        rate: the open loop's requests a second.
        requests_per_second: good answers.
        images_per_second: images in them.
        errors: everything else.
        latency: in milliseconds; the open loop's from when a request was due.
        usage: of the server's whole process tree.
        others: processors that neither the server nor the load used, but something else: a
            machine that is not quiet.
        failed: why there are no figures; they are None then.
    """

    payload: str
    mode: Mode
    connections: int
    share: float | None = None
    rate: float | None = None
    requests_per_second: float | None = None
    images_per_second: float | None = None
    errors: int | None = None
    latency: Latency | None = None
    usage: Usage | None = None
    others: float | None = None
    failed: str | None = None


@dataclass
class Round:
    """One start of a server and what was measured until it was stopped."""

    start_seconds: float | None = None
    cells: list[Cell] = field(default_factory=list)
    failed: str | None = None


@dataclass
class ServerResult:
    """Everything about one server; `skipped` says why it was not measured."""

    title: str
    tuning: str
    packages: list[str] = field(default_factory=list)
    skipped: str | None = None
    rounds: list[Round] = field(default_factory=list)


@dataclass
class Run:
    """A whole run. `startup_seconds` are those of one worker, from exec to ready."""

    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str
    started: str
    rounds: int
    seconds: float
    access_logs: str
    finished: str | None = None
    limit: list[Limit] = field(default_factory=list)
    photo: PhotoDecoding | None = None
    startup_seconds: list[float] = field(default_factory=list)
    servers: dict[str, ServerResult] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        partial.rename(path)

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read what `write` wrote."""
        content = json.loads(path.read_text())
        content["limit"] = [_read_limit(item) for item in content["limit"]]
        content["photo"] = PhotoDecoding(**content["photo"]) if content["photo"] else None
        content["servers"] = {
            name: ServerResult(**{**item, "rounds": [_read_round(one) for one in item["rounds"]]})
            for name, item in content["servers"].items()
        }
        return cls(**content)


def _read_limit(item: Mapping[str, Any]) -> Limit:
    by_batch = [
        {int(batch): rate for batch, rate in item[key].items()} for key in ("one_core", "all_cores")
    ]
    return Limit(item["cores"], *by_batch)


def _read_round(item: Mapping[str, Any]) -> Round:
    cells = []
    for cell in item["cells"]:
        latency = Latency(**cell["latency"]) if cell["latency"] else None
        usage = Usage(**cell["usage"]) if cell["usage"] else None
        cells.append(Cell(**{**cell, "latency": latency, "usage": usage}))
    return Round(item["start_seconds"], cells, item["failed"])


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Return None where there is no value."""
        known = sorted(values)
        return cls(statistics.median(known), known[0], known[-1]) if known else None


def cells_of(
    result: ServerResult,
    payload: str,
    *,
    connections: int | None = None,
    share: float | None = None,
) -> list[Cell]:
    """Return a cell of every round that has figures: `connections` closed, or `share` open."""
    return [
        cell
        for one in result.rounds
        for cell in one.cells
        if cell.payload == payload
        and cell.failed is None
        and (cell.share == share if share is not None else cell.mode == "closed")
        and (share is not None or cell.connections == connections)
    ]


def requests_per_second(
    result: ServerResult,
    payload: str,
    *,
    connections: int | None = None,
    share: float | None = None,
) -> Spread | None:
    """Return good answers a second over the rounds."""
    cells = cells_of(result, payload, connections=connections, share=share)
    return Spread.of(cell.requests_per_second for cell in cells if cell.requests_per_second)


def new_run(rounds: int, seconds: float, access_logs: str) -> Run:
    """Return an empty run of this machine, these versions and this commit."""
    return Run(
        machine=machine(),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in (*_PACKAGES, *_MORE_PACKAGES)},
            "wrk": _first_line("wrk", "-v"),
            "cc": _first_line("cc", "--version"),
        },
        commit=commit("app", "bench"),
        started=now(),
        rounds=rounds,
        seconds=seconds,
        access_logs=access_logs,
    )


def now() -> str:
    """Return the time of day in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, memory, kernel, and the load by then."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in cpu if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "kernel": platform.release(),
        "load_average_before": os.getloadavg()[0],
    }


def _first_line(program: str, *arguments: str) -> str:
    path = shutil.which(program)
    if path is None:
        return "not installed"
    done = subprocess.run(  # noqa: S603 -- the benchmark's own programs
        [path, *arguments], capture_output=True, text=True, check=False
    )
    line = (done.stdout or done.stderr).splitlines()[0].split(" Copyright")[0]
    return line.removeprefix(program).strip()


def commit(*folders: str) -> str:
    """Return the commit; empty outside a checkout.

    Args:
        folders: `+changes` follows where files in them differ from it.
    """
    git = shutil.which("git")
    if git is None:
        return ""

    def say(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 -- the benchmark's own programs
            [git, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )
        return done.stdout.strip()

    changes = say("status", "--porcelain", "--untracked-files=no", "--", *folders)
    return say("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")
