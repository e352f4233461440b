"""Files that are there whole or not at all, and work that one process does at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside the old one and put it in its place; a kill or a power cut leaves the one or the other."""
    partial = file.with_suffix(".partial")
    write(partial)
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(partial, file)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """No other process that asks by this file, which is made and stays, is at it meanwhile."""
    with lock.open("a") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
