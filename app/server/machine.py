"""How many processors this process may use: the container's quota, not the host's number."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus(cgroups: Path = CGROUPS) -> int:
    """Return the whole processors that scheduler and control group leave to us, at least 1.

    Args:
        cgroups: where the control groups are mounted; inside a container, its own is the root.
    """
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _quota(cgroups))))


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
