"""What tells one frame from another."""

import numpy as np
import xxhash
from numpy.typing import NDArray


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
