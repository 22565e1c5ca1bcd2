import os
import resource
from pathlib import Path

import pytest

from app.machine import raise_descriptor_limit, usable_cpus

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


@pytest.mark.parametrize("limited", ["cpu.max", "outer/cpu.max", "outer/inner/cpu.max"])
def test_quota_of_own_group_and_of_those_above_it_counts(tmp_path: Path, limited: str) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/outer/inner\n")
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / limited).write_text("100000 100000\n")
    assert usable_cpus(tmp_path, membership) == 1


def test_quota_of_another_group_does_not_count(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/ours\n")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "cpu.max").write_text("100000 100000\n")
    assert usable_cpus(tmp_path, membership) == HOST


def test_quota_of_own_group_of_version_1_counts(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("4:memory:/other\n3:cpu,cpuacct:/ours\n0::/\n")
    (tmp_path / "cpu" / "ours").mkdir(parents=True)
    (tmp_path / "cpu" / "ours" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "ours" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(tmp_path, membership) == 1


def test_without_control_groups_the_scheduler_decides(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == HOST


@pytest.fixture
def infinite_limit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A limit of 256 files, as on macOS: it may be infinite, but no more than 10240 are granted."""
    soft = [256]

    def setrlimit(_which: int, limits: tuple[int, int]) -> None:
        if limits[0] > 10240:
            raise ValueError("current limit exceeds maximum limit")
        soft[0] = limits[0]

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft[0], resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    return soft


@pytest.mark.parametrize(("wanted", "granted"), [(100, 256), (2112, 2112), (30_000, 7500)])
def test_infinite_limit_of_files_is_raised_as_far_as_the_system_agrees(
    infinite_limit: list[int], wanted: int, granted: int
) -> None:
    assert raise_descriptor_limit(wanted) == granted
    assert infinite_limit == [granted]


def test_limit_of_files_that_is_infinite_already_allows_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    infinite = resource.RLIM_INFINITY, resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _which: infinite)
    assert raise_descriptor_limit(5000) == 5000
