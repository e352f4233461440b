"""A mask taken apart."""

import cv2
import numpy as np
from numpy.typing import NDArray

from training.truth import Defect

_GAP_PX = 4  # what is no further apart is one defect: a crack with gaps
_SPECK_PX = 4  # fewer pixels are no defect of their own, as brushes and networks leave some about one


def regions(rows: NDArray[np.int32], columns: NDArray[np.int32], label: str) -> list[Defect]:
    """A mask of (n,) pixels, n at least 1, as the defects that it shows, each with its box and pixels.

    A window is labelled by its share of a defect: of many spots that are one defect it could hold too little, in every
    window. Pixels with gaps of up to 4 px are one; specks of fewer than 4 belong to the largest of all.
    """
    top, left = int(rows.min()) - _GAP_PX, int(columns.min()) - _GAP_PX
    shape = int(rows.max()) - top + 1 + _GAP_PX, int(columns.max()) - left + 1 + _GAP_PX
    mask = np.zeros(shape, np.uint8)
    mask[rows - top, columns - left] = 1
    reach = _GAP_PX + 1
    count, numbers = cv2.connectedComponents(cv2.dilate(mask, np.ones((reach, reach), np.uint8)), connectivity=8)
    of_pixel = numbers[rows - top, columns - left]
    sizes = np.bincount(of_pixel, minlength=count)
    largest = int(sizes.argmax())
    of_pixel[(sizes < _SPECK_PX)[of_pixel]] = largest
    order = np.argsort(of_pixel, kind="stable")
    _, starts = np.unique(of_pixel[order], return_index=True)
    return [Defect.of_pixels(label, rows[one], columns[one]) for one in np.split(order, starts[1:])]
