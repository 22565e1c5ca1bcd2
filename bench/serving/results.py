"""Results of a comparison of servers: one JSON file, written whole after every server."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.harness import results
from bench.harness.load import Latency
from bench.harness.processes import Usage
from bench.harness.results import Spread
from bench.serving.limit import Limit, PhotoDecoding
from bench.serving.servers import EXERCISE

_PACKAGES = (
    *("convscope", "fastapi", "httptools", "numpy", "onnxruntime", "pillow", "starlette"),
    *("uvicorn", "uvloop"),
)

Mode = Literal["closed", "open"]


@dataclass(frozen=True)
class Cell:
    """One measurement of one server.

    Attributes:
        payload: name of the payload.
        mode: closed loop (by wrk) or open loop.
        connections: connections of the closed loop, or the most that the open loop had at a time.
        share: rate of the open loop as a part of the closed loop's best in the same round.
        rate: requests a second of the open loop.
        requests_per_second: good answers.
        images_per_second: images in good answers.
        errors: all other answers, and requests without one.
        latency: in milliseconds; the open loop's starts when a request is due.
        usage: use of the server's whole process tree.
        others: processors used by programs other than server and load: a machine that is not quiet.
        failed: reason why the figures are None.
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
    """One start of a server and all measurements until it was stopped."""

    start_seconds: float | None = None
    cells: list[Cell] = field(default_factory=list)
    failed: str | None = None


@dataclass
class ServerResult:
    """All results of one server; `skipped` is the reason why it was not started."""

    title: str
    tuning: str
    serves: str = str(EXERCISE)
    packages: list[str] = field(default_factory=list)
    skipped: str | None = None
    rounds: list[Round] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Reasons why a part of the server's row is missing."""
        reasons = [self.skipped, *(one.failed for one in self.rounds)]
        reasons += [cell.failed for one in self.rounds for cell in one.cells]
        return [reason for reason in reasons if reason]


@dataclass
class Run:
    """A whole run; `startup_seconds` are from exec to ready, with one worker.

    `limits` are the machine's for each served model, one a round.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str
    started: str
    rounds: int
    seconds: float
    access_logs: str
    finished: str | None = None
    limits: dict[str, list[Limit]] = field(default_factory=dict)
    photo: PhotoDecoding | None = None
    startup_seconds: list[float] = field(default_factory=list)
    servers: dict[str, ServerResult] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the run as JSON, whole or not at all."""
        results.write(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read a file of `write`."""
        content = json.loads(path.read_text())
        content["limits"] = {
            served: [_read_limit(item) for item in items]
            for served, items in content["limits"].items()
        }
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


def conditions() -> dict[str, Any]:
    """Return the machine, the versions, the commit and the time of a measurement of the service."""
    return {
        "machine": results.machine(),
        "versions": {
            **results.versions(_PACKAGES),
            "wrk": results.program_version("wrk", "-v"),
            "cc": results.program_version("cc", "--version"),
        },
        "commit": results.commit("app", "bench"),
        "started": results.now(),
    }


def cells_of(
    result: ServerResult,
    payload: str,
    *,
    connections: int | None = None,
    share: float | None = None,
) -> list[Cell]:
    """Return the cells with figures, one a round: closed by `connections`, or open by `share`."""
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
    """Return good answers a second over the rounds; arguments as of `cells_of`."""
    cells = cells_of(result, payload, connections=connections, share=share)
    return Spread.of(cell.requests_per_second for cell in cells if cell.requests_per_second)
