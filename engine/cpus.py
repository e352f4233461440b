"""How many CPUs this process may use, which in a container is fewer than the machine has."""

import os
from pathlib import Path

# quota and period in microseconds, or `max`; of control groups version 2, as inside a container
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def available_cpus(cpu_max: Path = CPU_MAX) -> int:
    """CPUs that the scheduler gives this process: its affinity, bounded by its group's quota.

    A quota is rounded down: one thread too many and the whole group stands still until the next period.
    """
    allowed = len(os.sched_getaffinity(0))
    if not cpu_max.is_file():
        return allowed
    quota, period = cpu_max.read_text().split()
    if quota == "max":
        return allowed
    return max(1, min(allowed, int(quota) // int(period)))
