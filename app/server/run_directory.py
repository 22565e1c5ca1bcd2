"""The directory of a running service: its workers' metrics, and the address that it listens on.

The supervisor makes it and holds a lock in it. A supervisor that is killed leaves the directory
behind; the next one that starts finds it without a lock and removes it.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from app.errors import SettingsError
from app.machine import is_own_directory, lock
from app.telemetry import METRICS_DIRECTORY_VARIABLE

PREFIX = "convscope-metrics-"
_ADDRESS = "address"

Address = tuple[str, int]
"""Host, as a number, and port."""


@contextmanager
def run_directory(address: Address) -> Iterator[None]:
    """Own a directory during the block; the environment names it, if it does not name one already.

    The variable must be set before prometheus_client is imported.

    Args:
        address: of the listening socket.

    Raises:
        SettingsError: the directory cannot be made or written to.
    """
    with ExitStack() as stack:
        try:
            if not os.environ.get(METRICS_DIRECTORY_VARIABLE):
                _sweep()
                made = stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX))
                os.environ[METRICS_DIRECTORY_VARIABLE] = made
            stack.enter_context(_claimed(Path(os.environ[METRICS_DIRECTORY_VARIABLE]), address))
        except OSError as exc:
            raise SettingsError(
                f"no directory for the workers' metrics: {exc}; set {METRICS_DIRECTORY_VARIABLE}"
            ) from exc
        yield


def reachable(host: str) -> str:
    """Return the host at which a service that listens on `host` is reached on this machine."""
    every_address = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing listens here
    return every_address.get(host, host)


def running_services() -> list[Address]:
    """Return the addresses of this user's services on this machine."""
    named = os.environ.get(METRICS_DIRECTORY_VARIABLE)
    directories = [Path(named)] if named else _own_directories()
    found = []
    for directory in directories:
        with suppress(OSError, ValueError), (directory / _ADDRESS).open("r+") as file:
            if not lock(file):
                host, port = file.read().split()
                found.append((host, int(port)))
    return found


@contextmanager
def _claimed(directory: Path, address: Address) -> Iterator[None]:
    """Keep the address in a directory, locked, during the block."""
    host, port = address
    # It gets its name once it is locked, so that nobody finds it without a lock.
    unnamed, path = directory / f"{_ADDRESS}-{os.getpid()}", directory / _ADDRESS
    with unnamed.open("w") as file:
        lock(file)
        file.write(f"{host} {port}\n")
        file.flush()
        unnamed.replace(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _own_directories() -> list[Path]:
    found = Path(tempfile.gettempdir()).glob(f"{PREFIX}*")
    return [directory for directory in found if is_own_directory(directory)]


def _sweep() -> None:
    """Remove the directories whose supervisors are dead.

    One without an address belongs to a supervisor that is just starting.
    """
    for directory in _own_directories():
        with suppress(OSError), (directory / _ADDRESS).open("r+") as file:
            if lock(file):
                shutil.rmtree(directory, ignore_errors=True)
