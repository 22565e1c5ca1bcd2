"""Load on a server: a closed loop by `wrk`, an open loop by `openloop.c`, from raw requests.

In a closed loop each connection sends its next request when its answer has come, which finds a
server's highest throughput. In the open loop requests are due at a constant rate, and a latency
starts when the request is due, as users at that rate see it.
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
    """The load generator is missing, or it ended with an error."""


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
        """Read the output of a generator."""
        return cls(*(round(figures[key], 3) for key in ("p50", "p90", "p99", "p99.9", "max")))


@dataclass(frozen=True)
class ClosedLoopResult:
    """Result of `wrk`.

    Attributes:
        seconds: duration.
        requests_per_second: answers with a status below 400.
        errors: answers with a status of 400 or above, and connections that failed or timed out.
        latency: from sending to the answer, over all answers.
    """

    seconds: float
    requests_per_second: float
    errors: int
    latency: Latency


@dataclass(frozen=True)
class OpenLoopResult:
    """Result of `openloop`; each request that was due is in exactly one of the counts.

    Attributes:
        rate: requests due per second.
        seconds: time during which requests became due.
        elapsed: time until the last answer, if that is longer.
        sent: requests that found a connection.
        statuses: answers by status.
        connect_errors: requests whose connection was refused.
        resets: connections that ended before the answer was complete.
        timeouts: requests that had no answer in time.
        unsent: requests that were not due yet when the run was interrupted.
        connections: highest number of open connections.
        achieved_rate: requests sent per second within `seconds`.
        goodput: answers with status 200 per second within `seconds`.
        latency: from the time a request was due to its answer, by status.
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
        """Requests without an answer of status 200."""
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
        address: address of the server.
        requests: complete raw requests, sent in turn.
        connections: number of connections.
        seconds: duration, rounded to whole seconds.
        timeout: time limit of one request in seconds.

    Raises:
        LoadFailed: `wrk` is not installed, or it failed.
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
        raise LoadFailed(f"wrk printed no result: {output.strip()[-300:]}")
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
    seed: int = 0,
) -> OpenLoopResult:
    """Send requests at a rate that does not depend on the server.

    Args:
        address: address of the server.
        requests: complete raw requests, sent in turn.
        rate: requests per second.
        seconds: duration.
        connections: connections opened before the first request.
        max_connections: most connections; further requests wait for a free one.
        timeout: seconds after which a request that was due is given up.
        seed: of the times at which requests are due, a Poisson process; 0 for equal distances.

    Raises:
        LoadFailed: the generator could not be compiled, or failed.
    """
    numbers = (rate, seconds, connections, max_connections, timeout, seed)
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
    """Compile the open-loop generator, unless that is done, and return its path.

    Raises:
        LoadFailed: the C compiler is missing or failed.
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
        _run([compiler, "-O2", "-o", str(made), str(source), "-lm"], 120)
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
        raise LoadFailed(f"{Path(command[0]).name} ran for more than {seconds:g} s") from exc
    return done.stdout
