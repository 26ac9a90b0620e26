"""How many cores this process has."""

import math
import os
from pathlib import Path


def available_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: the smaller one of its affinity and its groups' CPU quota.

    Containers and schedulers set quotas. Half a core counts as one. `root` is where /proc and /sys
    are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> list[float]:
    """The quotas, in cores, of this process's control groups and of those around them."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:  # no Linux
        return []
    quotas = []
    for line in (line for line in lines if line.count(":") >= 2):
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            mounts, read = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], _quota_2
        elif "cpu" in controllers.split(","):
            names = (controllers, "cpu", "cpu,cpuacct", "cpuacct,cpu")
            mounts, read = [f"sys/fs/cgroup/{name}" for name in names], _quota_1
        else:
            continue
        for mount in mounts:
            # In a container the path may be the host's, while what is mounted is its own group.
            folder = Path(group.lstrip("/"))
            for part in (folder, *folder.parents):
                quota = read(root / mount / part)
                if quota is not None:
                    quotas.append(quota)
    return quotas


def _quota_2(folder: Path) -> float | None:
    """Of cpu.max, which has microseconds of a period, or max, and the period."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # a group without the file, such as the root
        return None


def _quota_1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
