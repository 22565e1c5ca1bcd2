"""Load on a server: closed loop by `wrk`, open loop by `openloop.c`, on the same raw requests.

In a closed loop each connection sends its next request when it has its answer: that finds the
most that a server can do. In the open loop requests are due at a constant rate, and a latency runs
from the time that a request was due: that is what users at that rate would see.
"""

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import BUILD, HERE
from bench.harness.requests import Address


class LoadFailed(Exception):
    """The load generator is missing or ended with an error."""


@dataclass(frozen=True)
class Latency:
    """Percentiles and maximum in milliseconds."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, figures: Mapping[str, float]) -> "Latency":
        """Read what a generator printed."""
        return cls(*(round(figures[key], 3) for key in ("p50", "p90", "p99", "p99.9", "max")))


@dataclass(frozen=True)
class ClosedLoopResult:
    """What `wrk` saw.

    Attributes:
        seconds: how long it ran.
        requests_per_second: answers with a status below 400.
        errors: answers of 400 and above, and connections that failed, broke or timed out.
        latency: from sending to the answer, of all answers.
    """

    seconds: float
    requests_per_second: float
    errors: int
    latency: Latency


@dataclass(frozen=True)
class OpenLoopResult:
    """What `openloop` saw; every request that was due is in exactly one of the counts.

    Attributes:
        rate: requests that were due in a second.
        seconds: how long requests became due.
        elapsed: until the last answer, where that is later.
        sent: requests for which a connection was found.
        statuses: answers by status.
        connect_errors: requests whose connection was refused.
        resets: connections that ended before the answer was whole.
        timeouts: requests without an answer in time after they were due.
        unsent: requests that were not due yet when the run was interrupted.
        connections: the most that were open at a time.
        achieved_rate: requests sent within the `seconds`, a second.
        goodput: answers of status 200 that came within the `seconds`, a second.
        latency: from the time when a request was due to its answer, by status.
    """

    rate: float
    seconds: float
    elapsed: float
    sent: int
    statuses: Mapping[int, int]
    connect_errors: int
    resets: int
    timeouts: int
    unsent: int
    connections: int
    achieved_rate: float
    goodput: float
    latency: Mapping[int, Latency]

    @property
    def errors(self) -> int:
        """Everything but an answer of status 200."""
        refused = sum(count for status, count in self.statuses.items() if status != 200)
        return refused + self.connect_errors + self.resets + self.timeouts


def closed_loop(
    address: Address,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    *,
    timeout: float = 60,
) -> ClosedLoopResult:
    """Keep `connections` requests in flight with one thread of `wrk`.

    Args:
        address: the server's.
        requests: complete raw requests, sent in turn.
        connections: how many.
        seconds: how long; `wrk` knows whole seconds only.
        timeout: of one request in seconds.

    Raises:
        LoadFailed: `wrk` is not installed, or failed.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise LoadFailed("wrk is not installed (Debian: apt install wrk)")
    options = [
        f"--connections={connections}",
        "--threads=1",
        f"--duration={max(round(seconds), 1)}",
    ]
    options += [f"--timeout={timeout:g}", f"--script={HERE / 'harness' / 'wrk.lua'}"]
    url = f"http://{address[0]}:{address[1]}"
    with _files(requests) as paths:
        output = _run([wrk, *options, url, "--", *paths], seconds + timeout + 30)
    line = next((line for line in output.splitlines() if line.startswith("JSON ")), None)
    if line is None:
        raise LoadFailed(f"wrk gave no result: {output.strip()[-300:]}")
    figures = json.loads(line.removeprefix("JSON "))
    broken = sum(figures[kind] for kind in ("connect", "read", "write", "timeout"))
    return ClosedLoopResult(
        seconds=figures["seconds"],
        requests_per_second=(figures["answers"] - figures["not_ok"]) / figures["seconds"],
        errors=figures["not_ok"] + broken,
        latency=Latency.of(figures),
    )


def open_loop(
    address: Address,
    requests: Sequence[bytes],
    rate: float,
    seconds: float,
    *,
    connections: int = 32,
    max_connections: int = 1024,
    timeout: float = 10,
) -> OpenLoopResult:
    """Send requests at a constant rate, whatever the server does.

    Args:
        address: the server's.
        requests: complete raw requests, sent in turn.
        rate: requests a second.
        seconds: how long.
        connections: opened before the first request.
        max_connections: how many may be opened while all are busy; more requests wait.
        timeout: seconds after a request was due when it is given up.

    Raises:
        LoadFailed: the generator could not be compiled, or failed.
    """
    numbers = (rate, seconds, connections, max_connections, timeout)
    with _files(requests) as paths:
        command = [str(build_open_loop()), address[0], str(address[1])]
        command += [f"{number:.9g}" for number in numbers]
        figures = json.loads(_run([*command, *paths], seconds + timeout + 30))
    latencies = figures.pop("latency_ms")
    figures["statuses"] = {int(status): n for status, n in figures["statuses"].items()}
    return OpenLoopResult(
        **figures, latency={int(key): Latency.of(value) for key, value in latencies.items()}
    )


def build_open_loop() -> Path:
    """Return the generator's program, compiled unless it is there.

    Raises:
        LoadFailed: there is no C compiler, or it failed.
    """
    source = HERE / "harness" / "openloop.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    program = BUILD / f"openloop-{digest}"
    if program.exists():
        return program
    compiler = shutil.which("cc")
    if compiler is None:
        raise LoadFailed(
            "no C compiler for bench/harness/openloop.c (Debian: apt install gcc libc6-dev)"
        )
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as place:
        made = Path(place) / "openloop"
        _run([compiler, "-O2", "-o", str(made), str(source)], 120)
        made.rename(program)
    return program


@contextmanager
def _files(contents: Sequence[bytes]) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory(prefix="convscope-bench-") as place:
        paths = [Path(place) / f"{number:03d}" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        yield [str(path) for path in paths]


def _run(command: Sequence[str], seconds: float) -> str:
    try:
        done = subprocess.run(  # noqa: S603 -- the benchmark's own programs
            command, capture_output=True, text=True, timeout=seconds, check=True
        )
    except subprocess.CalledProcessError as exc:
        said = (exc.stderr or exc.stdout or "").strip()[-600:]
        raise LoadFailed(f"{Path(command[0]).name} ended with {exc.returncode}: {said}") from exc
    except subprocess.TimeoutExpired as exc:
        raise LoadFailed(f"{Path(command[0]).name} took over {seconds:g} s") from exc
    return done.stdout
