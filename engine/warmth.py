"""Where on an activation map something was seen: what decides the boxes also decides where to look again."""

import numpy as np
from numpy.typing import NDArray

WARM = 0.5  # of the way from a map's median to its maximum: from there on a cell belongs to a defect
FLAT = 1e-6  # a map that varies less says nothing about where


def warm_cells(activation: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The cells (h, w) of a map (h, w) that are warm; none where it is flat, or not of numbers."""
    if not np.isfinite(activation).all():
        return np.zeros(activation.shape, np.bool_)
    heat = activation.astype(np.float64)  # where a middle is always found
    median, highest = float(np.median(heat)), float(heat.max())
    return np.asarray((heat > median + WARM * (highest - median)) & (highest - median > FLAT))
