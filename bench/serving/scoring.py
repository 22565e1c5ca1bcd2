"""Pictures per second of `convscope score` beside the limit: `python -m bench.serving.scoring`.

The command scores a folder of PNG files, from its start to its end. Before and after it, the same
files are decoded and computed in a loop, one process a core, without reading or writing a file: the
limit. Prints the rates and their ratio, and writes `bench/results/scoring.json`.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click

from bench import RESULTS, ROOT
from bench.harness.payloads import encode, pictures
from bench.harness.results import commit, machine, now, versions, write
from bench.serving.limit import measure_limit
from bench.serving.servers import Served

DISTINCT = 512
IN_A_FOLDER = 1000
SECONDS = 3.0


@click.command()
@click.option("--pictures", "count", default=200_000, show_default=True, help="Files to score.")
@click.option("--model", default="simple-cnn/3", show_default=True, help="As name/version.")
@click.option("--engine", default="local", show_default=True, help="Of `convscope score`.")
def main(count: int, model: str, engine: str) -> None:
    """Measure, print, write."""
    files = [encode(image, "PNG") for image in pictures(DISTINCT)]
    served = Served(model, "float32")
    with tempfile.TemporaryDirectory() as place:
        _write(Path(place) / "pictures", files, count)
        limits = [_limit(served, files)]
        seconds = _score(Path(place), model, engine)
        limits.append(_limit(served, files))
    rate, limit = count / seconds, statistics.mean(limits)
    figures = {
        "machine": machine(),
        "commit": commit(),
        "date": now(),
        "versions": versions(["onnxruntime", "pyarrow"]),
        "model": model,
        "engine": engine,
        "pictures": count,
        "pictures_per_second": rate,
        "limits": limits,
        "ratio": rate / limit,
    }
    write(RESULTS / "scoring.json", figures)
    click.echo(
        f"{model}, {engine}: {rate:,.0f} pictures/s of {count:,}; limit {limit:,.0f}; "
        f"ratio {rate / limit:.2f}"
    )


def _limit(served: Served, files: Sequence[bytes]) -> float:
    return max(measure_limit(served, files, SECONDS).all_cores.values())


def _write(folder: Path, files: Sequence[bytes], count: int) -> None:
    """Write files into folders, each of them under many names."""
    for number in range(count):
        path = folder / f"{number // IN_A_FOLDER:04}" / f"{number:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < len(files):
            path.write_bytes(files[number])
        else:
            first = number % len(files)
            path.hardlink_to(folder / f"{first // IN_A_FOLDER:04}" / f"{first:07}.png")


def _score(place: Path, model: str, engine: str) -> float:
    """Return the seconds that the command takes."""
    command = [sys.executable, "-c", "from app.cli import main; main()", "score"]
    command += [str(place / "pictures"), "--out", str(place / "results.parquet")]
    command += ["--model", model, "--engine", engine]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment)  # noqa: S603 -- our own command
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
