"""What this service is held to, against figures of one run."""

from dataclasses import dataclass
from statistics import median

from bench.harness.payloads import USUAL
from bench.harness.results import Run, cells_of, requests_per_second

_PEERS = {"litserve": 6.0, "mlserver": 6.0, "bentoml": 6.0, "ray": 6.0, "tutorial": 5.0}


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        title: what is measured.
        figure: what was found; None where it was not measured.
        bound: what is wanted.
        at_least: whether the figure must reach the bound, or may not exceed it.
        unit: follows both numbers.
    """

    title: str
    figure: float | None
    bound: float
    at_least: bool = True
    unit: str = ""

    @property
    def reached(self) -> bool | None:
        """None where nothing was measured."""
        if self.figure is None:
            return None
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound


def targets(run: Run) -> list[Target]:
    """Return every target with its figure; ratios are of the medians over the rounds."""
    ours = _rate(run, "ours")
    limit = median(max(one.all_cores.values()) for one in run.limit) if run.limit else None
    return [
        Target(f"PNG, {USUAL} connections, of the limit", _ratio(ours, limit), 0.55),
        *(
            Target(
                f"PNG, {USUAL} connections, against {_title(run, name)}",
                _ratio(ours, _rate(run, name)),
                bound,
                unit="×",
            )
            for name, bound in _PEERS.items()
        ),
        Target("64 images in one request, 1 worker, of one core's limit", _form_ratio(run), 0.80),
        Target("p99 at half of the saturating rate, open loop", _open_p99(run), 10, False, " ms"),
        *_photo(run),
        Target("from exec to ready", _startup(run), 1.5, False, " s"),
        Target("resident memory of one worker, peak under load", _memory(run), 160, False, " MB"),
    ]


def _title(run: Run, name: str) -> str:
    return run.servers[name].title if name in run.servers else name


def _rate(run: Run, name: str) -> float | None:
    if name not in run.servers:
        return None
    found = requests_per_second(run.servers[name], "png", connections=USUAL)
    return found.median if found else None


def _ratio(figure: float | None, base: float | None) -> float | None:
    return figure / base if figure is not None and base else None


def _form_ratio(run: Run) -> float | None:
    if "ours-1" not in run.servers or not run.limit:
        return None
    by_connections = [
        [cell.images_per_second or 0.0 for cell in cells]
        for count in (1, 2, 8, 32)
        if (cells := cells_of(run.servers["ours-1"], "form64", connections=count))
    ]
    best = max((median(rates) for rates in by_connections), default=None)
    return _ratio(best, median(max(one.one_core.values()) for one in run.limit))


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
            4.0,
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
