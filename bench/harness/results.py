"""Results of any benchmark: the conditions they hold for, their spread, and their file."""

import json
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.run import durable
from training.run.commit import find_commit


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of a figure."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Return None if there is no value."""
        known = sorted(values)
        return cls(statistics.median(known), known[0], known[-1]) if known else None


def write(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(path, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


def now() -> str:
    """Return the time of day in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Return the processor, cores, memory, kernel and present load of this machine."""
    from training.run.hardware import name_processor  # imports torch

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": name_processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "kernel": platform.release(),
        "load_average_before": os.getloadavg()[0],
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of these packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def program_version(program: str, option: str) -> str:
    """Return the first line that a program prints about itself."""
    path = shutil.which(program)
    if path is None:
        return "not installed"
    done = subprocess.run(  # noqa: S603 -- the benchmark's own programs
        [path, option], capture_output=True, text=True, check=False
    )
    line = (done.stdout or done.stderr).splitlines()[0].split(" Copyright")[0]
    return line.removeprefix(program).strip()


def commit(*folders: str) -> str:
    """Return the commit of the checkout; empty outside a checkout.

    Args:
        folders: `+changes` is added if files in them differ from the commit.
    """
    found = find_commit(*folders)
    return "" if found is None else found.sha[:12] + "+changes" * found.changed
