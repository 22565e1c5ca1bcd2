"""Measure this service, its peers and the machine's limit: `python -m bench.serving`.

Each round starts every server in turn, compares its answers with the model's own, warms it up,
measures it and stops it; nothing else runs meanwhile. If a server does not start or gives a wrong
answer, the results hold the reason instead of figures, and the command ends with status 1. The
first run makes the peers' virtual environments, which takes some minutes.

A whole run goes to `bench/results/serving.json`, the plot in `docs` and the marked places of the
documents; one with `--quick` or `--only` leaves those alone and goes to `build/bench`.
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from bench import BUILD, RESULTS
from bench.harness.environments import NotInstalled, install, packages
from bench.harness.load import (
    ClosedLoopResult,
    LoadFailed,
    OpenLoopResult,
    build_open_loop,
    closed_loop,
    open_loop,
)
from bench.harness.payloads import USUAL, Payload, payloads
from bench.harness.processes import ServerFailed, ServerProcess, Usage, busy_seconds, free_port
from bench.harness.requests import Address, Request, ask
from bench.harness.results import now
from bench.serving.answers import check
from bench.serving.limit import measure_limit, measure_photo
from bench.serving.report import write_report
from bench.serving.results import Cell, Round, Run, ServerResult, conditions
from bench.serving.servers import ACCESS_LOGS, SERVERS, Server

FULL = RESULTS / "serving.json"
QUICK = BUILD / "quick.json"
STARTS = 5
WARM_UP_SECONDS = 1.0
_HOST = "127.0.0.1"
_PARTS = ("limit", "photo", "startup", *SERVERS)
_CHECKED_BEFORE, _CHECKED_AFTER = 16, 2


def _parts(_: click.Context, __: click.Parameter, value: str | None) -> list[str]:
    chosen = [part.strip() for part in value.split(",")] if value else list(_PARTS)
    for part in chosen:
        if part not in _PARTS:
            raise click.BadParameter(f"{part!r} is not one of {', '.join(_PARTS)}")
    return chosen


@click.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=2.5, show_default=True, type=click.FloatRange(1), help="A cell.")
@click.option("--only", callback=_parts, help=f"Some of: {', '.join(_PARTS)}; by commas.")
@click.option("--quick", is_flag=True, help=f"Smoke test: one round of 1 s, into {QUICK.name}.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the results go.")
def main(
    rounds: int, seconds: float, only: Sequence[str], *, quick: bool, out: Path | None
) -> None:
    """Measure all servers; write the results as JSON, as tables and as a plot."""
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # to stop the server and remove temporary files
    if quick:
        rounds, seconds = 1, 1.0
    path = out or (QUICK if quick or set(only) != set(_PARTS) else FULL)
    try:
        build_open_loop()
        run = Run(**conditions(), rounds=rounds, seconds=seconds, access_logs=ACCESS_LOGS)
        _measure(run, only, path)
    except LoadFailed as exc:
        raise click.ClickException(str(exc)) from exc
    run.finished = now()
    run.write(path)
    write_report(run, publish=path == FULL)
    missing = [f"{one.title}: {one.failures[0]}" for one in run.servers.values() if one.failures]
    if missing:
        raise click.ClickException("not measured: " + "; ".join(missing))


def _measure(run: Run, only: Sequence[str], path: Path) -> None:
    servers = [SERVERS[name] for name in only if name in SERVERS]
    _install(run, servers)
    if "photo" in only:
        run.photo = measure_photo(payloads()["photo"])
        click.echo(f"photo: {run.photo}")
    if "startup" in only:
        run.startup_seconds = [_start_time() for _ in range(STARTS if run.rounds > 1 else 1)]
        click.echo(f"start: {', '.join(f'{seconds:.2f} s' for seconds in run.startup_seconds)}")
    for number in range(run.rounds):
        if "limit" in only:
            _measure_limits(run)
        # Rounds begin with different servers, so that no server always follows the same one.
        turn = number % max(len(servers), 1)
        for server in (*servers[turn:], *servers[:turn]):
            if run.servers[server.name].skipped is None:
                click.echo(f"round {number + 1} of {run.rounds}: {server.title}")
                run.servers[server.name].rounds.append(_measure_server(server, run.seconds))
            run.write(path)


def _install(run: Run, servers: Sequence[Server]) -> None:
    for server in servers:
        result = ServerResult(server.title, server.tuning, str(server.serves))
        run.servers[server.name] = result
        if server.peer is None:
            continue
        click.echo(f"environment of {server.title}")
        try:
            install(server.peer)
            result.packages = packages(server.peer)
        except NotInstalled as exc:
            result.skipped = f"cannot be installed: {exc}"
            click.echo(f"  {result.skipped}")


def _measure_limits(run: Run) -> None:
    files = [data for files in payloads()["png"].requests for data in files]
    for served in dict.fromkeys(server.serves for server in SERVERS.values()):
        limit = measure_limit(served, files, run.seconds / 2)
        run.limits.setdefault(str(served), []).append(limit)
        for title, rates in (("1 core", limit.one_core), (f"{limit.cores} cores", limit.all_cores)):
            rates_text = ", ".join(f"{rate:,.0f} ({batch})" for batch, rate in rates.items())
            click.echo(f"limit of {served}, {title}, images/s (batch): {rates_text}")


def _process(server: Server, port: int) -> ServerProcess:
    command = server.command(port)
    server.directory.mkdir(parents=True, exist_ok=True)
    return ServerProcess(
        command,
        directory=server.directory,
        environment={**os.environ, **server.environment},
        log=BUILD / "logs" / f"{server.name}.log",
    )


def _start_time() -> float:
    """Return the seconds from the start of the service with one worker until it is ready."""
    server, port = SERVERS["ours-1"], free_port()
    with _process(server, port) as process:
        ready = Request("/health/ready")
        return process.wait_until(lambda: ask((_HOST, port), ready)[0] == 200, server.start_seconds)


def _measure_server(server: Server, seconds: float) -> Round:
    result = Round()
    address = (_HOST, free_port())
    png = payloads()["png"]
    first = server.wrap(png, png.requests[0])
    if first is None:
        raise ValueError(f"{server.name} does not take {png.title}")
    try:
        with _process(server, address[1]) as process:
            result.start_seconds = process.wait_until(
                lambda: ask(address, first)[0] == 200, server.start_seconds
            )
            process.tree.settle()  # other workers may still be loading
            check(server, address, png, _CHECKED_BEFORE)
            closed_loop(address, _requests(server, png, address), USUAL, WARM_UP_SECONDS)
            for cell in _Cells(server, process, address, seconds):
                result.cells.append(cell)
                click.echo(f"  {_line(cell)}")
    except (ServerFailed, OSError) as exc:
        result.failed = str(exc)
        click.echo(f"  failed: {exc}")
    return result


def _requests(server: Server, payload: Payload, address: Address) -> list[bytes]:
    wrapped = (server.wrap(payload, files) for files in payload.requests)
    return [request.raw(address) for request in wrapped if request is not None]


class _Cells:
    """The cells of a running server; each is measured when it is asked for."""

    def __init__(
        self, server: Server, process: ServerProcess, address: Address, seconds: float
    ) -> None:
        self._server, self._process = server, process
        self._address, self._seconds = address, seconds

    def __iter__(self) -> Iterator[Cell]:
        best = 0.0
        for name, connections in self._server.closed.items():
            payload = payloads()[name]
            if not _requests(self._server, payload, self._address):
                continue
            for count in connections or (payload.connections,):
                cell = self._closed(payload, count)
                yield cell
                if name == "png":
                    best = max(best, cell.requests_per_second or 0.0)
        for share in self._server.open_shares if best else ():
            yield self._open(payloads()["png"], share, best * share)

    def _closed(self, payload: Payload, connections: int) -> Cell:
        cell = Cell(payload.name, "closed", connections)
        requests = _requests(self._server, payload, self._address)
        return self._measure(
            cell,
            payload,
            lambda: closed_loop(
                self._address, requests, connections, self._seconds * payload.lasts
            ),
        )

    def _open(self, payload: Payload, share: float, rate: float) -> Cell:
        cell = Cell(payload.name, "open", USUAL, share=share, rate=rate)
        requests = _requests(self._server, payload, self._address)
        return self._measure(
            cell,
            payload,
            lambda: open_loop(self._address, requests, rate, self._seconds, connections=USUAL),
        )

    def _measure(
        self,
        cell: Cell,
        payload: Payload,
        load: Callable[[], ClosedLoopResult | OpenLoopResult],
    ) -> Cell:
        """Fill a cell; it has no figures if an answer before or after the load is wrong."""
        try:
            check(self._server, self._address, payload, _CHECKED_BEFORE)
            self._process.tree.settle()
            self._process.tree.begin()
            before = busy_seconds() - sum(os.times()[:4])
            found = load()
            usage = self._process.tree.usage()
            others = busy_seconds() - sum(os.times()[:4]) - before - usage.cpu_seconds
            check(self._server, self._address, payload, _CHECKED_AFTER)
        except (ServerFailed, LoadFailed, OSError) as exc:
            return dataclasses.replace(cell, failed=str(exc))
        cell = dataclasses.replace(cell, others=max(round(others / usage.seconds, 2), 0.0))
        return _filled(cell, payload, found, usage)


def _filled(
    cell: Cell, payload: Payload, found: ClosedLoopResult | OpenLoopResult, usage: Usage
) -> Cell:
    if isinstance(found, ClosedLoopResult):
        good, latency = (
            found.requests_per_second,
            found.latency if found.requests_per_second else None,
        )
        connections = cell.connections
    else:
        good, latency, connections = found.goodput, found.latency.get(200), found.connections
    return dataclasses.replace(
        cell,
        connections=connections,
        requests_per_second=round(good, 2),
        images_per_second=round(good * payload.images, 2),
        errors=found.errors,
        latency=latency,
        usage=usage,
        failed=None if good else f"no good answer; {found.errors} errors",
    )


def _line(cell: Cell) -> str:
    how = f"{cell.connections} connections"
    if cell.rate is not None:
        how = f"open loop, {cell.rate:,.0f}/s"
    where = f"{payloads()[cell.payload].title}, {how}:"
    if cell.failed or cell.latency is None or cell.usage is None:
        return f"{where} {cell.failed}"
    return (
        f"{where} {cell.requests_per_second:,.0f} requests/s, p50 {cell.latency.p50:.2f}, "
        f"p99 {cell.latency.p99:.2f} ms, {cell.errors} errors, {cell.usage.cpu_seconds:.1f} CPU s, "
        f"{cell.usage.peak_rss_mb:.0f} MB, {cell.others:.1f} processors used by others"
    )
