"""Work that one process does at a time, over files that several see."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """No other process that asks by this file, which is made and stays, is at it meanwhile."""
    with lock.open("a") as file:
        with suppress(OSError):  # a file system without locks, on which whoever writes last wins
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
