"""Is one backend faster than another? Timed by turns, so that what else the machine does slows both."""

import time
from typing import NamedTuple

import numpy as np

from engine.backend import Backend, Batch, stream

FASTER_BY = 1.05  # closer than this, two timings of the same graph come out in either order
TIMED_ROUNDS = 30


class Speed(NamedTuple):
    """Patches a second of a reference and of what is compared with it."""

    reference: float
    other: float

    @property
    def faster(self) -> bool:
        """Whether the other one is worth having for its speed."""
        return self.other >= FASTER_BY * self.reference


def speed_by_turns(reference: Backend, other: Backend, *, in_row: int = 1) -> Speed:
    """Time two backends of the same bundle; medians.

    Args:
        reference: the one.
        other: the other.
        in_row: batches of a turn, which a backend that can has under way two at a time.

    Raises:
        InferenceError: a runtime failed.
    """
    side = reference.manifest.patch_px
    rng = np.random.default_rng(0)
    seconds: list[list[float]] = [[], []]
    pixels = [rng.integers(0, 256, (one.batch_size, 1, side, side), np.uint8) for one in (reference, other)]
    for _ in range(TIMED_ROUNDS + 1):
        for backend, patches, times in zip((reference, other), pixels, seconds, strict=True):
            start = time.perf_counter()
            for _ in stream(backend, [Batch(patches)] * in_row):
                pass
            times.append(time.perf_counter() - start)
    # the first round pays for the memory
    return Speed(
        *(in_row * len(patches) / float(np.median(times[1:])) for patches, times in zip(pixels, seconds, strict=True))
    )
