import os
from pathlib import Path

import pytest

from app.server.machine import usable_cpus

HOST = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("max 100000", HOST), ("100000 100000", 1), ("50000 100000", 1), ("6400000 100000", HOST)],
)
def test_quota_of_version_2_counts(tmp_path: Path, cpu_max: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    assert usable_cpus(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", HOST), ("100000", 1), ("6400000", HOST)])
def test_quota_of_version_1_counts(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(tmp_path) == expected


@pytest.mark.skipif(HOST < 2, reason="one processor is the least in any case")
def test_part_of_a_processor_counts_as_one(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert usable_cpus(tmp_path) == 2


def test_without_control_groups_the_scheduler_decides(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == HOST
