"""Markdown of any benchmark: tables, targets, and the marked places of documents that hold them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench import RESULTS
from bench.harness.results import commit, machine, now, write

UNKNOWN = "–"
"""Stands for a figure that was not measured."""


@dataclass(frozen=True)
class Target:
    """One line of a table of targets.

    Attributes:
        title: name of the figure.
        figure: measured value; None if it was not measured.
        bound: wanted value.
        at_least: whether the bound is a minimum, else a maximum.
        unit: follows both numbers.
    """

    title: str
    figure: float | None
    bound: float
    at_least: bool = True
    unit: str = ""

    @property
    def reached(self) -> bool | None:
        """None if nothing was measured."""
        if self.figure is None:
            return None
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound


def targets_table(wanted: Sequence[Target]) -> str:
    """Return each target, its measured value, and whether it is reached."""
    rows = []
    for target in wanted:
        sign = "≥" if target.at_least else "≤"
        found = UNKNOWN if target.figure is None else f"{target.figure:.2f}{target.unit}"
        said = {True: "yes", False: "**no**", None: "not measured"}[target.reached]
        rows.append([target.title, f"{sign} {target.bound:g}{target.unit}", found, said])
    return table(["", "wanted", "found", "reached"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is aligned left, the others right."""
    clean = [[text.replace("|", "/").replace("\n", " ") for text in row] for row in rows]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in clean)])


def fill(document: Path, content: str, name: str) -> bool:
    """Replace the text between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->` in a document.

    Returns:
        Whether the document has the markers.
    """
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    text = document.read_text() if document.exists() else ""
    if begin not in text or end not in text:
        return False
    pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
    block = f"{begin}\n{content}\n{end}"
    document.write_text(re.sub(pattern, lambda _: block, text, flags=re.DOTALL))
    return True


def publish(name: str, figures: dict[str, Any], content: str, document: Path) -> None:
    """Write a benchmark's figures to `bench/results`, fill its document and print its tables.

    Args:
        name: name of the markers; the file's has underscores in place of hyphens.
        figures: measured values; machine, commit and time of day are added.
        content: tables in Markdown.
        document: file with the markers.

    Raises:
        SystemExit: the document lacks the markers.
    """
    found = {"machine": machine(), "commit": commit(), "date": now()} | figures
    write(RESULTS / f"{name.replace('-', '_')}.json", found)
    if not fill(document, content, name):
        raise SystemExit(f"{document} lacks the markers of bench:{name}")
    click.echo(content)
