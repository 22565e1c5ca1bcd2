"""The commit of the code that runs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Commit:
    """A commit, and whether tracked files differ from it.

    Attributes:
        sha: 40 hexadecimal digits.
        changed: whether files differ.
    """

    sha: str
    changed: bool


def find_commit(*paths: str) -> Commit | None:
    """Return the commit of this code, or None outside a checkout or without git.

    Args:
        paths: the files and folders that count as changed; all by default.
    """
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", *paths)
        return Commit(_git("rev-parse", "HEAD"), changed=bool(changes))
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(  # noqa: S603 - constant commands
        command, cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
