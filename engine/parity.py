"""Do two ways of running a bundle agree? Measured on probabilities, the numbers that decide."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.backend import Backend, infer
from engine.errors import ParityError


class Difference(NamedTuple):
    """Largest and mean absolute difference of probability."""

    largest: float
    mean: float


def check_parity(
    backend: Backend, pixels: NDArray[np.uint8], expected: NDArray[np.float32], *, tolerance: float
) -> Difference:
    """Compare a backend with the probabilities it should give.

    Args:
        backend: a loaded bundle.
        pixels: (K, 1, P, P) patches, reasoned together.
        expected: (K, C) probabilities of the source.
        tolerance: largest absolute difference allowed.

    Raises:
        ParityError: a larger difference, or a value that is not finite.
    """
    _, probability = infer(backend, pixels)
    if not np.isfinite(probability).all():
        raise ParityError("the exported graphs gave a probability that is not finite")
    gap = np.abs(probability.astype(np.float64) - expected)
    difference = Difference(float(gap.max()), float(gap.mean()))
    if not difference.largest <= tolerance:
        raise ParityError(
            f"the exported graphs differ from their source by {difference.largest:.3g} in probability, "
            f"over the tolerance of {tolerance:.3g}"
        )
    return difference
