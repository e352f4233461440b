"""What is measured of a frame while its lines come: its digest, and how bright it is, for the checks of a verdict."""

from dataclasses import dataclass

import cv2
import numpy as np
import xxhash
from numpy.typing import NDArray

BLOCKS = 32  # along the shorter side of a frame: their averages differ where it shows something
SATURATED = 255
# Of a large frame every seventh line is looked at: to read every pixel took a twentieth of a screen's time. A camera
# that lights its lines by turns has two to six kinds of them, and seven meets all alike.
STEP = 7
LEAST_OF_BLOCK = 20  # lines of a block that are looked at; else all are


class FrameDigest:
    """What tells one frame (H, W) from another, whatever file it came in: XXH3-128 of its pixels and its size.

    A SHA-256 of a whole frame would take as long as receiving it; nobody who sends screens gains by a collision.
    """

    def __init__(self) -> None:
        self._digest = xxhash.xxh3_128()

    def add(self, lines: NDArray[np.uint8]) -> None:
        """The next lines (n, W)."""
        self._digest.update(lines.data)

    def end(self, height: int, width: int) -> str:
        """The digest of all lines; the same bytes in lines of another length are another frame."""
        self._digest.update(repr((height, width)).encode())
        return self._digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Brightness:
    """What was measured of one frame.

    Attributes:
        size: (height, width) of the lines that were seen.
        contrast: grey levels between the darkest and the brightest block: averaged, a dark sensor's noise is no image.
            What is left of a side belongs to its last block, as a block of few pixels has their noise.
        saturated_ratio: share of the pixels at 255, 0 to 1.

    Both are of every seventh line of a large frame, and of every line of one whose shorter side is below 4,480.
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
        self._height, self._width = height, width
        self._block_px = max(1, min(height, width) // BLOCKS)
        self._step = STEP if self._block_px >= STEP * LEAST_OF_BLOCK else 1
        self._starts = np.arange(0, width - self._block_px + 1, self._block_px)
        self._sums = np.zeros(len(self._starts), np.int64)  # of the row of blocks that is not complete yet
        self._lines = 0
        self._of_blocks, self._looked_at = 0, 0  # lines looked at, of that row of blocks and of all
        self._saturated = 0
        self._darkest, self._brightest = SATURATED, 0

    def add(self, lines: NDArray[np.uint8]) -> None:
        """Take note of the next lines (n, W), in their order."""
        while len(lines):
            left = self._end_of_blocks() - self._lines
            part, lines = lines[:left], lines[left:]
            looked_at = part[-self._lines % self._step :: self._step]
            if len(looked_at):
                columns = cv2.reduce(looked_at, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[0]
                self._sums += np.add.reduceat(columns, self._starts)
                self._saturated += int(np.count_nonzero(looked_at == SATURATED))
                self._of_blocks += len(looked_at)
                self._looked_at += len(looked_at)
            self._lines += len(part)
            if len(part) == left:
                self._darkest, self._brightest = self._with_blocks()
                self._sums[:], self._of_blocks = 0, 0

    @property
    def brightness(self) -> Brightness:
        """Of the lines so far."""
        darkest, brightest = self._with_blocks() if self._of_blocks else (self._darkest, self._brightest)
        return Brightness(
            size=(self._lines, self._width),
            contrast=max(0, brightest - darkest),
            saturated_ratio=self._saturated / max(1, self._looked_at * self._width),
        )

    def _end_of_blocks(self) -> int:
        """The line at which the row of blocks ends that the next line belongs to."""
        end = (self._lines // self._block_px + 1) * self._block_px
        return end if end + self._block_px <= self._height else max(self._height, self._lines + 1)

    def _with_blocks(self) -> tuple[int, int]:
        """The darkest and the brightest block, those of the row that was begun among them."""
        widths = np.diff(self._starts, append=self._width)
        means = np.rint(self._sums / (widths * self._of_blocks))
        return min(self._darkest, int(means.min())), max(self._brightest, int(means.max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of a whole frame."""

    digest: str
    brightness: Brightness


class FrameMeter:
    """Measures a frame (H, W) while its lines come; each is looked at once."""

    def __init__(self, frame: NDArray[np.uint8]) -> None:
        self._frame = frame
        self._digest, self._meter, self._lines = FrameDigest(), BrightnessMeter(*frame.shape), 0

    def arrived(self, lines: int) -> None:
        """So many lines are there, from the top; more than before."""
        new, self._lines = self._frame[self._lines : lines], lines
        self._digest.add(new)
        self._meter.add(new)

    def end(self) -> Measured:
        """Of all lines."""
        return Measured(digest=self._digest.end(*self._frame.shape), brightness=self._meter.brightness)
