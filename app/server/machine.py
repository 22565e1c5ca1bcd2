"""The resources that the platform gives to this process: processors and file descriptors."""

import math
import os
import resource
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus(cgroups: Path = CGROUPS) -> int:
    """Return the number of processors that scheduler and control group allow, at least 1.

    Args:
        cgroups: the mount point of the control groups; in a container, its own group is the root.
    """
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _quota(cgroups))))


def raise_descriptor_limit() -> int:
    """Raise the number of files that may be open to the system's limit, and return that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _quota(cgroups: Path) -> float:
    """Return the quota in processors; infinity if there is none.

    Sources: the kernel's documentation of `cpu.max` (version 2) and `cpu.cfs_quota_us` (version 1).
    """
    try:
        if (cgroups / "cpu.max").exists():
            quota, period = (cgroups / "cpu.max").read_text().split()
        else:
            quota = (cgroups / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroups / "cpu/cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota not in {"max", "-1"} else math.inf
    except (OSError, ValueError):
        return math.inf
