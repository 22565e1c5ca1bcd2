import subprocess
from pathlib import Path

import pytest

from training.run import commit
from training.run.commit import find_commit


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", *who, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    _git(tmp_path, "init", "-q")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("old")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "Start")
    monkeypatch.setattr(commit, "CHECKOUT", tmp_path)
    return tmp_path


def test_the_commit_is_that_of_the_checkout(checkout: Path) -> None:
    found = find_commit()
    assert found is not None
    assert found.sha == _git(checkout, "rev-parse", "HEAD")
    assert not found.changed


def test_only_tracked_files_of_the_named_folders_count_as_changes(checkout: Path) -> None:
    (checkout / "a" / "new").write_text("untracked")
    assert find_commit() == commit.Commit(_git(checkout, "rev-parse", "HEAD"), changed=False)
    (checkout / "a" / "file").write_text("new")
    changed = {paths: find_commit(*paths) for paths in ((), ("a",), ("b",))}
    assert [found and found.changed for found in changed.values()] == [True, True, False]


def test_outside_a_checkout_there_is_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "CHECKOUT", checkout / "a")
    assert find_commit() is None
