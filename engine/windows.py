"""How a frame is cut: equal windows that cover every pixel, and the patches under them.

A window knows where it is, a patch is the pixels in it. Nothing is padded or resized: where the frame is
no multiple of the stride, the last windows of an axis shift inwards until they end on the edge.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray


class Window(NamedTuple):
    """One square of the frame: its place in the grid, and its first pixel in the frame."""

    row: int
    column: int
    top: int
    left: int


def cover(height: int, width: int, *, patch_px: int, overlap_px: int = 0) -> tuple[Window, ...]:
    """The fewest windows, in row order, that cover a frame of (height, width) pixels.

    Args:
        height: rows of the frame.
        width: columns of the frame.
        patch_px: side of a window.
        overlap_px: pixels that neighbours share at least; those at the far edges may share more.

    Raises:
        ValueError: the frame is smaller than a window, or the sizes make no sense.
    """
    if patch_px < 1:
        raise ValueError(f"patch_px must be at least 1, got {patch_px}")
    if not 0 <= overlap_px < patch_px:
        raise ValueError(f"overlap_px must be in [0, {patch_px}), got {overlap_px}")
    if min(height, width) < patch_px:
        raise ValueError(f"a frame of {width} x {height} pixels is smaller than a patch of {patch_px}")
    tops = _starts(height, patch_px, patch_px - overlap_px)
    lefts = _starts(width, patch_px, patch_px - overlap_px)
    return tuple(Window(row, column, top, left) for row, top in enumerate(tops) for column, left in enumerate(lefts))


def cut(frame: NDArray[np.uint8], windows: Sequence[Window], patch_px: int) -> NDArray[np.uint8]:
    """The patches under `windows`: the frame's own pixels where they go on by equal steps, copies elsewhere.

    A batch that is a row of windows costs nothing until a runtime reads it.

    Args:
        frame: (H, W) grey.
        windows: K windows inside the frame.
        patch_px: side of a window, P.

    Returns:
        (K, 1, P, P), in the order of `windows`; not to be written to.

    Raises:
        ValueError: a window leaves the frame, or the frame is not grey.
    """
    if frame.ndim != 2:
        raise ValueError(f"a frame has two dimensions, got shape {frame.shape}")
    height, width = frame.shape
    for window in windows:
        if not (0 <= window.top <= height - patch_px and 0 <= window.left <= width - patch_px):
            raise ValueError(f"{window} leaves the frame of {width} x {height} pixels")
    steps = {(after.top - before.top, after.left - before.left) for before, after in pairwise(windows)}
    if len(windows) == 1 or (len(steps) == 1 and min(min(steps)) >= 0):
        down, right = steps.pop() if steps else (0, 0)
        line, pixel = frame.strides
        return as_strided(  # within the frame, as every window is
            frame[windows[0].top :, windows[0].left :],
            (len(windows), 1, patch_px, patch_px),
            (down * line + right * pixel, 0, line, pixel),
            writeable=False,
        )
    patches = np.empty((len(windows), 1, patch_px, patch_px), np.uint8)
    for patch, window in zip(patches, windows, strict=True):
        patch[0] = frame[window.top : window.top + patch_px, window.left : window.left + patch_px]
    patches.flags.writeable = False
    return patches


def _starts(length: int, patch_px: int, stride_px: int) -> list[int]:
    """First pixels of the windows along one axis; the last ends on the edge."""
    count = -(-(length - patch_px) // stride_px) + 1
    return [min(index * stride_px, length - patch_px) for index in range(count)]
