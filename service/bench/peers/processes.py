"""The processes of a server that is made of several: which they are, what memory they hold together, and their end.

From `/proc`, so on Linux alone.
"""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROC = Path("/proc")
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl.h
SAMPLE_S = 0.1
ENDS_WITHIN_S = 10.0
POLL_S = 0.05


def descendants(pid: int) -> set[int]:
    """Every process that comes of this one, itself left out; those that have ended and wait to be read included."""
    children: dict[int, set[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):  # it has gone meanwhile
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, set()).add(int(folder.name))
    found: set[int] = set()
    left = {pid}
    while left:
        below = children.get(left.pop(), set()) - found
        found |= below
        left |= below
    return found


def held_bytes(pid: int) -> int:
    """Memory of a process and its descendants; what several share is counted once (proportional set size)."""
    return sum(map(_pss_bytes, {pid} | descendants(pid)))


class Watch:
    """The highest `held_bytes` of a process while the block runs, as `peak_bytes`."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._stop = threading.Event()
        self._looking = threading.Lock()  # a sample begun earlier must not undo one taken meanwhile
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Take a sample now."""
        with self._looking:
            self.peak_bytes = max(self.peak_bytes, held_bytes(self._pid))

    def _sample(self) -> None:
        self.look()
        while not self._stop.wait(SAMPLE_S):
            self.look()


@contextmanager
def none_left() -> Iterator[None]:
    """Whatever the block starts has ended when it has, directly started or not, however it ends.

    A process whose parent has gone comes to this one for as long, so that none is lost from sight.
    """
    before = descendants(os.getpid())
    _adopt_orphans(True)
    try:
        yield
    finally:
        _end(before)
        _adopt_orphans(False)


def _end(spared: set[int]) -> None:
    """Kill the descendants of this process but for those spared, and wait for them."""
    give_up_at = time.monotonic() + ENDS_WITHIN_S
    while (left := descendants(os.getpid()) - spared) and time.monotonic() < give_up_at:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):  # of a child that has not gone yet: it will come to this process
                os.waitpid(pid, os.WNOHANG)
        time.sleep(POLL_S)


def _adopt_orphans(on: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


def _pss_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
