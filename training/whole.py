"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside the old one and put it in its place; a kill or a power cut leaves the one or the other."""
    partial = file.with_suffix(".partial")
    write(partial)
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(partial, file)
