"""Work that one process does at a time, over files that several see."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(lock: Path, *, wait: bool = True) -> Iterator[None]:
    """No other process that asks by this file, which is made and stays, is at it meanwhile.

    Args:
        lock: the file.
        wait: until whoever is at it has done.

    Raises:
        BlockingIOError: another is at it, and one does not wait.
    """
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            # else it is a file system without locks, on which whoever writes last wins
        yield
