"""The peers' virtual environments, each made from a pinned `requirements.txt`."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from bench import BUILD, HERE

# Not below `bench`, where tools that read the project's files would find them.
_PLACE = BUILD / "venvs"
_STAMP = "installed"
_MINUTES = 15


class NotInstalled(Exception):
    """A peer's packages cannot be installed on this machine."""


def python_of(peer: str) -> Path:
    """Return the interpreter of a peer's virtual environment, which need not exist yet."""
    return _PLACE / peer / "bin" / "python"


def install(peer: str) -> None:
    """Make a peer's virtual environment, unless it is complete.

    Raises:
        NotInstalled: pip failed; with the end of its output.
    """
    requirements = HERE / "serving" / "peers" / peer / "requirements.txt"
    stamp = _PLACE / peer / _STAMP
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    shutil.rmtree(_PLACE / peer, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(_PLACE / peer)])
    pip = [str(python_of(peer)), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([*pip, "install", "--requirement", str(requirements)])
    stamp.write_text(digest)


def packages(peer: str) -> list[str]:
    """Return every package of a peer's virtual environment as `name==version`."""
    pip = [str(python_of(peer)), "-m", "pip", "--disable-pip-version-check"]
    # `pip freeze` would give the paths of packages that were installed from files.
    return _run([*pip, "list", "--format=freeze"]).split()


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(  # noqa: S603 -- the benchmark's own commands
            command, capture_output=True, text=True, check=True, timeout=_MINUTES * 60
        ).stdout
    except subprocess.CalledProcessError as exc:
        lines = (exc.stderr or exc.stdout).strip().splitlines()
        said = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
        raise NotInstalled(" ".join(said)[-600:]) from exc
    except subprocess.TimeoutExpired as exc:
        raise NotInstalled(f"not installed within {_MINUTES} minutes") from exc
