from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from training import report
from training.data.dataset import Source
from training.evaluate import read_evaluation
from training.run.checkpoint import Checkpoint


def _first_column(table: Table, capsys: pytest.CaptureFixture[str]) -> list[str]:
    Console(width=200).print(table)
    title, _, heading, _, *rows, _ = capsys.readouterr().out.splitlines()
    assert title.startswith("Most confident mistakes")
    assert heading.split()[:2] == ["test", "image"]
    return [row.split()[0] for row in rows]


def test_mistakes_are_named_by_file_in_a_folder_and_by_index_elsewhere(
    trained: Checkpoint, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = read_evaluation(trained)
    assert evaluation is not None
    assert evaluation.confident_mistakes
    *_, of_folder = report.evaluation_tables(evaluation, source)
    files = _first_column(of_folder, capsys)
    expected = [Path("test", row.true) for row in evaluation.confident_mistakes]
    assert [Path(name).parent for name in files] == expected
    assert all((source.place / name).is_file() for name in files)
    *_, of_cifar10 = report.evaluation_tables(evaluation, replace(source, findings=None))
    expected_index = [str(row.index) for row in evaluation.confident_mistakes]
    assert _first_column(of_cifar10, capsys) == expected_index
