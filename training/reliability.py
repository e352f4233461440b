"""Whether a probability is what it says: of the patches that get 0.3, do three in ten have the label?"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 15  # equally wide, as in Guo et al. 2017


class Bin(NamedTuple):
    """Patches whose probabilities fall together: their mean, the share of them that has the label, and how many."""

    probability: float
    share: float
    patches: int


def calibration_error(probability: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Expected calibration error: the distance of probability and share, a mean over `BINS` bins weighed by patches.

    Most patches have no label and a probability near 0, so this is small for any network that has learnt something.

    Args:
        probability: (N,) in [0, 1].
        truth: (N,).
    """
    apart = sum(abs(one.probability - one.share) * one.patches for one in reliability(probability, truth))
    return apart / max(1, len(probability))


def reliability(probability: NDArray[np.floating], truth: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """The bins that have patches, by rising probability; of (N,) each. What lies between two belongs to the upper."""
    number = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    groups = [number == k for k in range(BINS)]
    return tuple(
        Bin(float(probability[group].mean()), float(truth[group].mean()), int(group.sum()))
        for group in groups
        if group.any()
    )
