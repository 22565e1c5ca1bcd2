"""Folders that the processes of one test run share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that is made once a run, by the first process that asks for it.

    Args:
        factory: the process's own.
        name: of the folder.
        make: fills the folder, which does not exist yet. Tests read it only.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    path, finished = base / name, base / f"{name}.finished"
    with FileLock(base / f"{name}.lock"):
        if not finished.exists():
            make(path)
            finished.touch()
    return path
