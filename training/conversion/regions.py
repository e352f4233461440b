"""A mask taken apart."""

import cv2
import numpy as np
from numpy.typing import NDArray

from training.truth import Defect


def regions(rows: NDArray[np.int32], columns: NDArray[np.int32], label: str) -> list[Defect]:
    """The connected regions (8 neighbours) of a mask of (n,) pixels, n at least 1, each with its box and pixels.

    A window is labelled by its share of a defect: of many spots that are one defect it could hold too little, in every
    window.
    """
    top, left = int(rows.min()), int(columns.min())
    mask = np.zeros((int(rows.max()) - top + 1, int(columns.max()) - left + 1), np.uint8)
    mask[rows - top, columns - left] = 1
    count, numbers, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    defects = []
    for number in range(1, count):  # 0 is what lies around them
        across, down, width, height = (int(value) for value in boxes[number, :4])
        r, c = np.nonzero(numbers[down : down + height, across : across + width] == number)
        place = (r + top + down).astype(np.int32), (c + left + across).astype(np.int32)
        defects.append(Defect.of_pixels(label, *place))
    return defects
