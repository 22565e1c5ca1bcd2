"""The platform: its resources for this process, and a fallback for each name that it lacks.

Every name that some platform lacks is used here alone: macOS has no `sched_getaffinity`, no control
groups and no number for its limit of open files; Windows has no `fork`, `resource` and `fcntl`.
"""

import ctypes
import importlib
import math
import os
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def can_fork() -> bool:
    """Return whether a process can be forked."""
    return hasattr(os, "fork")


def usable_cpus(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the number of processors that scheduler and control groups allow, at least 1.

    Args:
        cgroups: the mount point of the control groups.
        membership: the file with the groups of this process; where there is none, as in some
            containers, the group at the mount point counts alone.
    """
    return max(1, math.ceil(min(_schedulable_cpus(), _quota(cgroups, membership))))


def raise_descriptor_limit(wanted: int) -> int:
    """Raise the number of files that may be open, as far as `wanted`; return how many may be.

    It is never lowered. macOS calls its limit infinite and refuses what is over another one, so
    less is asked for until the system agrees.
    """
    resource = _module("resource")
    if resource is None:
        return wanted
    infinite = getattr(resource, "RLIM_INFINITY", -1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == infinite:
        return wanted
    target = wanted if hard == infinite else min(wanted, hard)
    while target > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        except (OSError, ValueError):
            target //= 2
        else:
            return target
    return int(soft)


def lock(file: IO[Any]) -> bool:
    """Lock a file for this process, which alone may write it; return whether that succeeded.

    The lock ends with the process, however it ends, and a forked process does not have it. It never
    succeeds where there are no such locks.
    """
    fcntl = _module("fcntl")
    if fcntl is None:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_own_directory(path: Path) -> bool:
    """Return whether a path is a directory, and no link to one, that belongs to this user."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == getattr(os, "getuid", int)()


def trim_heap() -> None:
    """Return free memory to the system, where glibc can; it takes some 40 µs for each MiB."""
    with suppress(TypeError):  # Windows has no library that is the process itself
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _module(name: str) -> Any:
    """Return a module of the standard library, or None if the platform lacks it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def _schedulable_cpus() -> int:
    """Return the number of processors that this process may run on, of the machine's otherwise."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(cgroups: Path, membership: Path) -> float:
    """Return the quota in processors of a process's groups; infinity if there is none.

    A group may use no more than those above it. In a container, the group at the mount point is its
    own, and the file may name groups that cannot be seen.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    groups = {cgroups, cgroups / "cpu"}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            top = cgroups / "cpu" if controllers else cgroups
            inner = PurePosixPath(path.lstrip("/"))
            groups |= {top / group for group in (inner, *inner.parents)}
    return min(_quota_of(group) for group in groups)


def _quota_of(group: Path) -> float:
    """Return the quota of one group in processors; infinity if it has none.

    Sources: the kernel's documentation of `cpu.max` (version 2) and `cpu.cfs_quota_us` (version 1).
    """
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota not in {"max", "-1"} else math.inf
    except (OSError, ValueError):
        return math.inf
