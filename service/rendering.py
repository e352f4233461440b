"""Rendered screens, for whoever has none: the renderer is a process of its own, known by its command and its files."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from service.client import ended


class RenderingError(Exception):
    """The renderer failed, and the message holds what it printed; or what it wrote cannot be read."""


def render(
    out: Path, *, screens: int, seed: int, size: tuple[int, int], tell: Callable[[int], None] = lambda made: None
) -> None:
    """Render screens into a folder, as `training render` does.

    Args:
        out: folder to fill: `screens/`, `boxes.csv`, `splits.csv`, `masks/`.
        screens: how many.
        seed: the same one gives the same screens.
        size: (height, width) of a screen, pixels.
        tell: told now and then how many there are.

    Raises:
        RenderingError: the renderer failed.
    """
    height, width = size
    command = [sys.executable, "-m", "training", "render", "--out", str(out), "--screens", str(screens)]
    command += ["--seed", str(seed), "--width", str(width), "--height", str(height)]
    with tempfile.TemporaryFile() as log:
        started_at = time.time()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603 - our own
        while not ended(process):
            made = [path for path in (out / "screens").glob("*") if path.stat().st_mtime >= started_at]
            tell(min(len(made), screens))
        if process.returncode != 0:
            log.seek(0)
            raise RenderingError(f"rendering failed:\n{log.read().decode(errors='replace')}")
    tell(screens)


def read_frame(path: Path) -> NDArray[np.uint8]:
    """A rendered screen, (H, W) grey.

    Raises:
        RenderingError: it cannot be read.
    """
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise RenderingError(f"the screen {path} cannot be read")
    return np.asarray(image, np.uint8)
