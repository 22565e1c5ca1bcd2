"""Tables and the plot of `bench.scaling`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness.report import table
from bench.scaling.autoscaling import Second

Row = Mapping[str, Any]


BALANCED_BY_A_CORE = 2_040_000 / 64
"""Requests a second of HAProxy 2.3 on a machine of 64 cores, as its makers measured in 2021."""

SCRAPE_SECONDS = 15
"""Between two looks at a machine's metrics."""


def scaling_tables(found: Mapping[str, Any], processor: str) -> str:
    """Return all tables of `docs/scaling.md` as Markdown."""
    first = found["sizes"][0]
    return "\n\n".join(
        [
            f"One worker on one core of {processor}, PNG of 32×32 pixels.",
            _compared_table(found["compared"]),
            _asked_table(found["asked"]),
            _sizes_table(found["sizes"]),
            f"What else `{first['model']}` takes:",
            _bottlenecks_table(first),
        ]
    )


def _compared_table(rows: Sequence[Row]) -> str:
    """Return latencies measured and simulated, of one worker."""
    columns = ["model", "requests/s", "p50, ms", "simulated", "p99, ms", "simulated", "ratio"]
    cells = [
        [
            row["model"],
            f"{row['rate']:,.0f}",
            f"{row['p50_ms']:.1f}",
            f"{row['simulated_p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['simulated_p99_ms']:.1f}",
            f"{row['simulated_p99_ms'] / row['p99_ms']:.2f}",
        ]
        for row in rows
    ]
    return table(columns, cells)


def _asked_table(rows: Sequence[Row]) -> str:
    """Return simulated latencies, a line for each number of workers, a column for each balancer."""
    balancers = list(dict.fromkeys(row["balancer"] for row in rows))
    p99 = {(row["model"], row["workers"], row["balancer"]): row["p99_ms"] for row in rows}
    rates = {(row["model"], row["workers"]): row["rate"] for row in rows}
    cells = [
        [
            model,
            f"{workers:,}",
            f"{rate:,.0f}",
            *(f"{p99[model, workers, balancer]:.1f}" for balancer in balancers),
        ]
        for (model, workers), rate in rates.items()
    ]
    return table(
        ["model", "workers", "requests/s", *(f"p99 {name}, ms" for name in balancers)], cells
    )


def _sizes_table(rows: Sequence[Row]) -> str:
    """Return the cores that so many requests a second take, and what a million requests cost."""
    columns = ["model", "requests/s of a core", "$ a million requests"]
    columns += [f"cores for {rate:,}/s" for rate in rows[0]["rates"]]
    cells = [
        [
            row["model"],
            f"{row['rate_of_a_core']:,.0f}",
            f"{row['dollars_a_million']:.3f}",
            *(f"{cores:,}" for cores in row["cores"]),
        ]
        for row in rows
    ]
    return table(columns, cells)


def _bottlenecks_table(row: Row) -> str:
    """Return what stands before and beside the workers of one model."""
    moved = 8 * (row["bytes_of_a_request"] + row["bytes_of_an_answer"])
    lines = {
        "machines": [f"{machines:,}" for machines in row["machines"]],
        "network, Gbit/s": [f"{rate * moved / 1e9:.2f}" for rate in row["rates"]],
        "cores of load balancers": [
            f"{math.ceil(rate / BALANCED_BY_A_CORE):,}" for rate in row["rates"]
        ],
        "metrics, samples/s": [
            f"{machines * row['series_of_a_machine'] / SCRAPE_SECONDS:,.0f}"
            for machines in row["machines"]
        ],
    }
    columns = ["", *(f"{rate:,}/s" for rate in row["rates"])]
    return table(columns, [[name, *cells] for name, cells in lines.items()])


def plot_scaling(
    courses: Mapping[str, Sequence[Second]], rate_of_a_replica: float, path: Path
) -> None:
    """Draw traffic, what the replicas could answer, and p99, a column for each policy."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(courses), figsize=(11, 5.4), layout="constrained", sharex=True, sharey="row"
    )
    for (title, course), (upper, lower) in zip(courses.items(), axes.T, strict=True):
        minutes = [number / 60 for number in range(1, len(course) + 1)]
        possible = [second.replicas * rate_of_a_replica for second in course]
        refused = [second.refused for second in course]
        upper.step(minutes, possible, color="silver", label="most that the replicas answer")
        upper.plot(minutes, [second.asked for second in course], color="tab:blue", label="asked")
        upper.fill_between(minutes, refused, color="tab:red", label="refused")
        share = sum(refused) / sum(second.asked for second in course)
        upper.set(title=f"{title}: {share:.2%} refused", yscale="log", ylim=(10, None))
        lower.plot(minutes, [second.p99_ms for second in course], color="tab:blue")
        lower.set(xlabel="minutes", yscale="log")
        for axis in (upper, lower):
            axis.grid(visible=True, alpha=0.3)
    axes[0, 0].set_ylabel("requests/s")
    axes[1, 0].set_ylabel("p99, ms")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
