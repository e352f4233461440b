"""How bright a frame is, measured line by line as it comes: what the frame checks of a verdict need of its pixels."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

BLOCKS = 32  # along the shorter side of a frame: their averages differ where it shows something
SATURATED = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Brightness:
    """What was measured of one frame.

    Attributes:
        size: (height, width) of the lines that were seen.
        contrast: grey levels between the darkest and the brightest block: averaged, a dark sensor's noise is no image.
        saturated_ratio: share of the pixels at 255, 0 to 1.
    """

    size: tuple[int, int]
    contrast: int
    saturated_ratio: float

    @staticmethod
    def of(frame: NDArray[np.uint8]) -> "Brightness":
        """Of a whole frame (H, W)."""
        meter = BrightnessMeter(*frame.shape)
        meter.add(frame)
        return meter.brightness


class BrightnessMeter:
    """Measures a frame of a known size while its lines come."""

    def __init__(self, height: int, width: int) -> None:
        self._width = width
        self._block_px = max(1, min(height, width) // BLOCKS)
        self._starts = np.arange(0, width, self._block_px)  # the last block of a line, or of a frame, may be smaller
        self._sums = np.zeros(len(self._starts), np.int64)  # of the row of blocks that is not complete yet
        self._lines = 0
        self._saturated = 0
        self._darkest, self._brightest = SATURATED, 0

    def add(self, lines: NDArray[np.uint8]) -> None:
        """Take note of the next lines (n, W), in their order."""
        while len(lines):
            room = self._block_px - self._lines % self._block_px
            part, lines = lines[:room], lines[room:]
            columns = cv2.reduce(part, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[0]
            self._sums += np.add.reduceat(columns, self._starts)
            self._saturated += int(np.count_nonzero(part == SATURATED))
            self._lines += len(part)
            if len(part) == room:
                self._darkest, self._brightest = self._with_blocks(self._block_px)
                self._sums[:] = 0

    @property
    def brightness(self) -> Brightness:
        """Of the lines so far."""
        begun = self._lines % self._block_px
        darkest, brightest = self._with_blocks(begun) if begun else (self._darkest, self._brightest)
        return Brightness(
            size=(self._lines, self._width),
            contrast=max(0, brightest - darkest),
            saturated_ratio=self._saturated / max(1, self._lines * self._width),
        )

    def _with_blocks(self, lines: int) -> tuple[int, int]:
        """The darkest and the brightest block, those of the last `lines` among them."""
        widths = np.diff(self._starts, append=self._width)
        means = np.rint(self._sums / (widths * lines))
        return min(self._darkest, int(means.min())), max(self._brightest, int(means.max()))
