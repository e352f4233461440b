"""Masks told as runs of pixels down the columns, the way Kaggle and COCO write them.

Both count column by column: pixel k of an image (H, W) is row k mod H of column k div H, k from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Runs:
    """Ascending runs that do not overlap: `starts` (n,) from 0 and `lengths` (n,), down the columns of `height` px."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    height: int

    def pixels(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Rows and columns of the pixels, in the order of the runs."""
        before = np.cumsum(self.lengths) - self.lengths
        flat = np.repeat(self.starts - before, self.lengths) + np.arange(self.lengths.sum())
        return (flat % self.height).astype(np.int32), (flat // self.height).astype(np.int32)


def runs_of_pairs(text: str, height: int, width: int) -> Runs:
    """Kaggle's "start length start length ...", starts counted from 1.

    Raises:
        ValueError: no pairs of whole numbers, an empty run, one beyond the image, or runs that overlap or descend.
    """
    words = text.split()
    if not words or len(words) % 2 or not all(word.isascii() and word.isdecimal() for word in words):
        raise ValueError(f"{_shortened(text)!r} are no pairs of a start and a length")
    numbers = [min(int(word), 2**62) for word in words]
    starts, lengths = np.array(numbers[::2]) - 1, np.array(numbers[1::2])
    if (lengths < 1).any() or (starts < 0).any():
        raise ValueError("starts and lengths count from 1")
    if (starts >= height * width).any() or (lengths > height * width - starts).any():
        raise ValueError(f"a run ends beyond the {height * width} pixels of the image")
    if (starts[1:] < starts[:-1] + lengths[:-1]).any():
        raise ValueError("runs overlap, or do not ascend")
    return Runs(starts, lengths, height)


def runs_of_counts(counts: Sequence[int], height: int, width: int) -> Runs:
    """COCO's counts: pixels without, with, without ... the mask, until the image is full.

    Raises:
        ValueError: a negative count, or counts that add up to another number of pixels than the image has.
    """
    if any(count < 0 for count in counts):
        raise ValueError("a negative count")
    if sum(counts) != height * width:
        raise ValueError(f"counts of {sum(counts)} pixels, but the image has {height * width}")
    lengths = np.array(counts, np.int64)
    starts = np.cumsum(lengths) - lengths
    kept = lengths[1::2] > 0
    return Runs(starts[1::2][kept], lengths[1::2][kept], height)


def unpack_counts(text: str) -> list[int]:
    """COCO's compressed counts.

    Five bits a character above "0", low ones first; the sixth says that more follow. From the fourth count on each is
    told as its difference to the last but one.

    Raises:
        ValueError: a character out of place, or an end within a count.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"{_shortened(text)!r} are no compressed counts")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("compressed counts that end within a count")
    return counts


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
