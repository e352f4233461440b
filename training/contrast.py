"""How far a defect stands out of what is around it, measured where the data does not tell. numpy alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.truth import Defect

AROUND_PX = 16  # of a box, that are looked at as well
STRONGEST = 9  # pixels whose mean counts: 3 x 3, or what a pinhole has
LEAST_NOISE = 0.5  # grey levels: what rounding leaves of a frame without noise
_KEPT = 0.9  # of the differences: the largest are of edges
_SIGMA_OF_KEPT = 1.0756  # over the mean of so many of the absolute differences of two normal values


def measured(frame: NDArray[np.uint8], defects: Sequence[Defect]) -> list[Defect]:
    """The defects of a frame (H, W), with a contrast for those whose own is not known.

    It is the mean of the strongest nine pixels' distances from the grey level around them, over the noise there: the
    median of what is no defect in the box and 16 pixels around, and what neighbours in a row differ by (a mean, as
    grey levels are whole). What `conditions.csv` tells of rendered defects is the strongest pixel's amplitude over the
    noise, both as they were drawn: of sensor, stripes, lattice and dirt. On a board with its tracks, or on an edge,
    what is around says little, and so does this.
    """
    if all(one.contrast is not None for one in defects):
        return list(defects)
    free = np.ones(frame.shape, np.bool_)
    for one in defects:
        if one.rows is None or one.columns is None:
            free[one.top : one.bottom, one.left : one.right] = False
        else:
            free[one.rows, one.columns] = False
    return [replace(one, contrast=_contrast(frame, one, free)) if one.contrast is None else one for one in defects]


def _contrast(frame: NDArray[np.uint8], defect: Defect, free: NDArray[np.bool_]) -> float | None:
    """None of a defect that is all there is of the frame."""
    top, left = max(0, defect.top - AROUND_PX), max(0, defect.left - AROUND_PX)
    place = slice(top, defect.bottom + AROUND_PX), slice(left, defect.right + AROUND_PX)
    piece, around = frame[place].astype(np.float32), free[place]
    if not _neighbours(around).any():  # it lies in the box of another
        around = np.ones_like(around)
        around[defect.top - top : defect.bottom - top, defect.left - left : defect.right - left] = False
        if not _neighbours(around).any():
            return None
    differences = np.sort(np.abs(np.diff(piece, axis=1))[_neighbours(around)])
    noise = max(LEAST_NOISE, _SIGMA_OF_KEPT * float(differences[: max(1, int(_KEPT * len(differences)))].mean()))
    if defect.rows is None or defect.columns is None:
        own = frame[defect.top : defect.bottom, defect.left : defect.right].ravel()
    else:
        own = frame[defect.rows, defect.columns]
    distance = np.sort(np.abs(own.astype(np.float32) - np.median(piece[around])))
    return float(distance[-STRONGEST:].mean()) / noise


def _neighbours(around: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a pixel and the next of its row are both around."""
    return np.asarray(around[:, 1:] & around[:, :-1])
