"""The CPUs: how many this process may use, which in a container is fewer than the machine has, and what they are."""

import os
import platform
import re
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
VECTORS = re.compile(r"fma|avx\w*|amx\w*|asimd\w*|sve\w*|i8mm|bf16")

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


def cpu_name() -> str:
    """The CPU's model."""
    found = re.search(r"^model name\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def vector_instructions() -> list[str]:
    """Names of the CPU's vector instructions that multiply and add."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return [] if found is None else sorted(name for name in found[1].split() if VECTORS.fullmatch(name))


def held_to() -> str:
    """The vector instructions that variables of oneDNN hold OpenVINO to, as AVX2; empty where they do not."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()


def openvino_vectors() -> list[str]:
    """Those of the CPU's vector instructions that OpenVINO may use."""
    held = held_to()
    forbidden: tuple[str, ...] = ()
    if held == "AVX" or held.startswith(("SSE", "AVX2")):
        forbidden = ("avx512", "amx") if "VNNI" in held else ("avx512", "amx", "avx_vnni")
    return [name for name in vector_instructions() if not name.startswith(forbidden)]


def _cpu_info() -> str:
    return CPU_INFO.read_text() if CPU_INFO.is_file() else ""
