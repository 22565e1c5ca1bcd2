"""Files and directories that are written whole or not at all.

They are made under a hidden name beside their place, and renamed when every byte is on disk. A
process that is killed at any moment leaves the old content.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """Give an empty directory; it becomes `final` when the block ends without an error.

    Raises:
        OSError: `final` exists and is not empty, or the disk refuses.
    """
    partial = final.parent / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in (*partial.iterdir(), partial):
            _sync(path)
        partial.rename(final)
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_text(final: Path, text: str) -> None:
    """Replace a file's content.

    Raises:
        OSError: the disk refuses; the old content stands.
    """
    partial = final.parent / f".{final.name}.partial"
    try:
        partial.write_text(text, encoding="utf-8")
        _sync(partial)
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
