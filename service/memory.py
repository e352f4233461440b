"""Memory that nobody uses any more goes back to the machine, which glibc does not do of itself.

It gives threads heaps of their own and keeps what is freed in them. A swap frees a bundle that many threads have
allocated, while frames come and go: without this, a service on the embedded bundle grew by 32 MiB from the second to
the twentieth swap under load, though nothing held a bundle that was left; with it, it does not grow. Other C libraries
have no such calls, and then nothing is done here.
"""

import ctypes
import os
from pathlib import Path

M_ARENA_MAX = -8  # of glibc's malloc.h


def share_one_heap() -> None:
    """Let all threads allocate from one heap; called before there are any.

    What is large comes here from a handful of calls a batch, so that threads hardly wait for each other.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def give_back() -> None:
    """Return what was freed; called after a bundle was closed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM now, after Linux's proc(5)."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(pid: int) -> int:
    """The most that it ever had there: the kernel's own mark, which no sampling misses."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mark,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(mark) * 1024
