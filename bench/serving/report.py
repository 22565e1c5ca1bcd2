"""Tables and a plot from the results of a run: `python -m bench.serving.report`.

The text between `<!-- bench:serving -->` and `<!-- /bench:serving -->` in `docs/performance.md` is
replaced by the figures; the plot is `docs/images/serving.png`. Targets are only printed: missed
ones belong in `CHANGELOG.md`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import click

from bench import BUILD, RESULTS, ROOT
from bench.harness.payloads import USUAL, Payload, payloads
from bench.harness.report import UNKNOWN, Target, fill, table, targets_table
from bench.harness.results import Spread
from bench.serving.limit import Limit
from bench.serving.results import Cell, Run, ServerResult, cells_of, requests_per_second
from bench.serving.servers import CONNECTIONS, EXERCISE, FAST, OPEN_LOOP_SHARES

NAME = "serving"
"""Name of the markers in the document."""

PLOT = ROOT / "docs" / "images" / "serving.png"
_PEERS = {"litserve": 30.0, "mlserver": 8.0, "bentoml": 6.0, "ray": 30.0, "tutorial": 8.0}
"""Wanted ratio of the service's throughput to each peer's."""


def write_report(run: Run, *, publish: bool) -> None:
    """Print every table; with `publish`, also draw the plot and fill the document."""
    click.echo(f"\n{figures(run)}\n\n{targets_table(targets(run))}")
    if not publish:
        plot(run, BUILD / "serving.png")
        return
    plot(run, PLOT)
    fill(ROOT / "docs" / "performance.md", figures(run), NAME)


def figures(run: Run) -> str:
    """Return the tables of measurements, in Markdown."""
    return "\n\n".join(
        (
            main_table(run),
            f"Images a second in good answers, {USUAL} connections "
            f"({payloads()['form64'].connections} for forms of 64 images, "
            f"{payloads()['photo'].connections} for the photograph):",
            payload_table(run),
            "Open loop, latency from when a request was due:",
            open_table(run),
            tunings(run),
            conditions(run),
        )
    )


def main_table(run: Run) -> str:
    """Return the table of raw PNGs: rates by connections, latency, cost and memory."""
    head = [
        "one 32×32 PNG a request",
        *(f"{count} conn." for count in CONNECTIONS),
        "p50 / p90 / p99 / p99.9, ms",
        "CPU ms a request",
        "memory, MB",
        "errors",
    ]
    rows = [_limit_row(served, limits) for served, limits in run.limits.items()]
    rows += [_main_row(result) for result in run.servers.values()]
    return table(head, rows)


def _limit_row(served: str, limits: Sequence[Limit]) -> list[str]:
    best = Spread.of(max(one.all_cores.values()) for one in limits)
    first = limits[0]
    batch = max(first.all_cores, key=lambda size: first.all_cores[size])
    name = "the limit" if served == str(EXERCISE) else f"the limit of {served}"
    title = f"{name}: no server, {first.cores} processes, batches of {batch}"
    return [title, "", "", _spread(best), "", "", "", "", ""]


def _main_row(result: ServerResult) -> list[str]:
    if reason := _why_nothing(result):
        return [result.title, reason, *[""] * (len(CONNECTIONS) + 3)]
    rates = [
        _spread(requests_per_second(result, "png", connections=count)) for count in CONNECTIONS
    ]
    cells = cells_of(result, "png", connections=USUAL)
    every = [cell for one in result.rounds for cell in one.cells if cell.payload == "png"]
    return [
        result.title,
        *rates,
        _latencies(cells),
        _figure(cells, _cpu_of_a_request, 2),
        _figure(cells, lambda cell: cell.usage.peak_rss_mb if cell.usage else None, 0),
        str(sum(cell.errors or 0 for cell in every)),
    ]


def _why_nothing(result: ServerResult) -> str | None:
    if result.skipped:
        return result.skipped
    if any(one.cells for one in result.rounds):
        return None
    return next((one.failed for one in result.rounds if one.failed), "not measured")


def _cpu_of_a_request(cell: Cell) -> float | None:
    if cell.usage is None or cell.latency is None or not cell.requests_per_second:
        return None
    return 1000 * cell.usage.cpu_seconds / (cell.requests_per_second * cell.usage.seconds)


def payload_table(run: Run) -> str:
    """Return images per second in good answers, for every payload that was measured."""
    measured = {
        cell.payload
        for result in run.servers.values()
        for one in result.rounds
        for cell in one.cells
    }
    kinds = [payload for payload in payloads().values() if payload.name in measured]
    rows = []
    for result in run.servers.values():
        cells = [_payload_cell(result, payload) for payload in kinds]
        if any(text != UNKNOWN for text in cells):
            rows.append([result.title, *cells])
    return table(["", *(payload.title for payload in kinds)], rows)


def _payload_cell(result: ServerResult, payload: Payload) -> str:
    cells = cells_of(result, payload.name, connections=payload.connections)
    if cells:
        errors = sum(cell.errors or 0 for cell in cells)
        text = _spread(Spread.of(cell.images_per_second or 0 for cell in cells))
        return f"{text}, {errors} {'error' if errors == 1 else 'errors'}" if errors else text
    reasons = [
        cell.failed
        for one in result.rounds
        for cell in one.cells
        if cell.payload == payload.name and cell.failed
    ]
    return reasons[0] if reasons else UNKNOWN


def open_table(run: Run) -> str:
    """Return the latencies at constant rates."""
    rows = []
    for result in run.servers.values():
        for share in OPEN_LOOP_SHARES:
            cells = cells_of(result, "png", share=share)
            if cells:
                rate = median(cell.rate or 0 for cell in cells)
                errors = sum(cell.errors or 0 for cell in cells)
                what = f"{result.title}, {share:.0%} of its most"
                rows.append([what, f"{rate:,.0f}", _latencies(cells), str(errors)])
    return table(["", "requests/s", "p50 / p90 / p99 / p99.9, ms", "errors"], rows)


def tunings(run: Run) -> str:
    """Return the configuration of every server as a list."""
    return "\n".join(f"- {result.title}: {result.tuning}" for result in run.servers.values())


def conditions(run: Run) -> str:
    """Return the conditions of the figures: machine, versions, method."""
    machine = run.machine
    others = [
        cell.others
        for result in run.servers.values()
        for one in result.rounds
        for cell in one.cells
        if cell.others is not None
    ]
    disturbed = f"{median(others):.2f} (most {max(others):.2f})" if others else UNKNOWN
    packages = ", ".join(f"{name} {number}" for name, number in run.versions.items())
    return (
        f"Medians of {run.rounds} rounds of {run.seconds:g} s, lowest and highest in brackets; "
        f"{machine['processor']}, {machine['cores']} cores, load generator (wrk, one thread) on "
        f"the same machine; latency, CPU time and memory with {USUAL} connections, memory as the "
        f"sum of all processes. Other programs meanwhile used {disturbed} of the "
        f"{machine['cores']} cores. {run.access_logs} {packages}; commit "
        f"{run.commit or 'unknown'}, {run.started[:10]}. `make bench` makes these figures."
    )


def _latencies(cells: Sequence[Cell]) -> str:
    found = [cell.latency for cell in cells if cell.latency]
    if not found:
        return UNKNOWN
    columns = zip(*((one.p50, one.p90, one.p99, one.p999) for one in found), strict=True)
    return " / ".join(f"{median(column):.1f}" for column in columns)


def _figure(cells: Sequence[Cell], read: Callable[[Cell], float | None], digits: int) -> str:
    found = [figure for cell in cells if (figure := read(cell)) is not None]
    return f"{median(found):,.{digits}f}" if found else UNKNOWN


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return UNKNOWN
    if spread.low == spread.high:
        return f"{spread.median:,.0f}"
    return f"{spread.median:,.0f} ({spread.low:,.0f}–{spread.high:,.0f})"


def plot(run: Run, path: Path) -> None:
    """Draw requests per second and p99 by connections, for raw PNGs and the compared model."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    compared = [result for result in run.servers.values() if result.serves == str(EXERCISE)]
    shown = [result for result in compared if _why_nothing(result) is None]
    for place, result in enumerate(reversed(shown)):
        spread = requests_per_second(result, "png", connections=USUAL)
        if spread:
            error = [[spread.median - spread.low], [spread.high - spread.median]]
            colour = "tab:blue" if result.title.startswith("Convscope") else "silver"
            bar = left.barh(place, spread.median, xerr=error, color=colour)
            left.bar_label(bar, fmt="{:,.0f}", padding=6, fontsize=8)
    left.set_yticks(range(len(shown)), [result.title for result in reversed(shown)])
    if limit := _limit(run, str(EXERCISE)):
        left.axvline(limit, color="black", linestyle=":", label="the limit: no server")
        left.legend(loc="lower right")
    left.margins(x=0.15)
    left.set_xlabel(f"requests/s, {USUAL} connections")
    for result in shown:
        points = [
            (count, median(cell.latency.p99 for cell in cells if cell.latency))
            for count in CONNECTIONS
            if (cells := cells_of(result, "png", connections=count))
        ]
        if len(points) > 1:
            right.plot(*zip(*points, strict=True), marker="o", label=result.title)
    right.set(xscale="log", yscale="log", xlabel="connections", ylabel="p99, ms")
    right.set_xticks(CONNECTIONS, [str(count) for count in CONNECTIONS])
    right.minorticks_off()
    right.grid(visible=True, alpha=0.3)
    if right.lines:
        right.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def targets(run: Run) -> list[Target]:
    """Return every target with its figure; ratios are of the medians over the rounds."""
    ours = _rate(run, "ours")
    png = f"PNG, {USUAL} connections"
    int8 = run.servers.get("ours-int8")
    fast = int8.serves if int8 else str(FAST)
    return [
        Target(f"{png}, of the limit", _ratio(ours, _limit(run, str(EXERCISE))), 0.70),
        Target(
            f"{png}, {fast}, of its limit", _ratio(_rate(run, "ours-int8"), _limit(run, fast)), 0.85
        ),
        *(
            Target(
                f"{png}, against {_title(run, name)}",
                _ratio(ours, _rate(run, name)),
                bound,
                unit="×",
            )
            for name, bound in _PEERS.items()
        ),
        Target(f"{png}, in a form, of raw", _ratio(_rate(run, "ours", "form"), ours), 0.85),
        Target(f"{png}, in JSON, of raw", _ratio(_rate(run, "ours", "json"), ours), 0.80),
        Target(f"{png}, log on, of log off", _ratio(_rate(run, "ours-log"), ours), 0.90),
        Target("64 images in one request, 1 worker, of one core's limit", _form_ratio(run), 0.80),
        Target("p99 at half of the saturating rate, open loop", _open_p99(run), 5, False, " ms"),
        *_photo(run),
        Target("from exec to ready", _startup(run), 1.5, False, " s"),
        Target("resident memory of one worker, peak under load", _memory(run), 160, False, " MB"),
    ]


def _title(run: Run, name: str) -> str:
    return run.servers[name].title if name in run.servers else name


def _rate(run: Run, name: str, payload: str = "png") -> float | None:
    if name not in run.servers:
        return None
    found = requests_per_second(run.servers[name], payload, connections=USUAL)
    return found.median if found else None


def _limit(run: Run, served: str) -> float | None:
    limits = run.limits.get(served)
    return median(max(one.all_cores.values()) for one in limits) if limits else None


def _ratio(figure: float | None, base: float | None) -> float | None:
    return figure / base if figure is not None and base else None


def _form_ratio(run: Run) -> float | None:
    limits = run.limits.get(str(EXERCISE))
    if "ours-1" not in run.servers or not limits:
        return None
    by_connections = [
        [cell.images_per_second or 0.0 for cell in cells]
        for count in (1, 2, 4)
        if (cells := cells_of(run.servers["ours-1"], "form64", connections=count))
    ]
    best = max((median(rates) for rates in by_connections), default=None)
    return _ratio(best, median(max(one.one_core.values()) for one in limits))


def _open_p99(run: Run) -> float | None:
    if "ours" not in run.servers:
        return None
    cells = cells_of(run.servers["ours"], "png", share=0.5)
    found = [cell.latency.p99 for cell in cells if cell.latency]
    return median(found) if found else None


def _photo(run: Run) -> list[Target]:
    photo = run.photo
    title = "12-megapixel JPEG in process"
    return [
        Target(
            f"{title}, against a full decode",
            photo.full_ms / photo.ours_ms if photo else None,
            5.0,
            unit="×",
        ),
        Target(
            f"{title}, mean difference of a sample, of 255",
            photo.difference if photo else None,
            3.0,
            at_least=False,
        ),
        Target(f"{title}, same label", float(photo.same_label) if photo else None, 1.0),
    ]


def _startup(run: Run) -> float | None:
    return median(run.startup_seconds) if run.startup_seconds else None


def _memory(run: Run) -> float | None:
    if "ours-1" not in run.servers:
        return None
    cells = [cell for one in run.servers["ours-1"].rounds for cell in one.cells]
    return max((cell.usage.peak_process_mb for cell in cells if cell.usage), default=None)


@click.command()
@click.argument("results", default=RESULTS / "serving.json", type=click.Path(path_type=Path))
def main(results: Path) -> None:
    """Make the tables and the plot from the RESULTS of a run."""
    write_report(Run.read(results), publish=results == RESULTS / "serving.json")


if __name__ == "__main__":
    main()
