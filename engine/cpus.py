"""How many CPUs this process may use, which in a container is fewer than the machine has."""

import os
from pathlib import Path

# the control group of this process, as a container sees it
GROUP = Path("/sys/fs/cgroup")
# quota and period in microseconds: version 2 has both in one file, version 1 in one each
VERSION_2, VERSION_1 = ("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
NO_LIMIT = ("max", "-1")  # by version 2, and by version 1


def available_cpus(group: Path = GROUP) -> int:
    """CPUs that the scheduler gives this process: its affinity, bounded by its group's quota.

    A quota is rounded down: one thread too many and the whole group stands still until the next period.
    """
    allowed = len(os.sched_getaffinity(0))
    for names in (VERSION_2, VERSION_1):
        files = [group / name for name in names]
        if all(file.is_file() for file in files):
            quota, period = " ".join(file.read_text() for file in files).split()
            return allowed if quota in NO_LIMIT else max(1, min(allowed, int(quota) // int(period)))
    return allowed
