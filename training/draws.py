"""Random numbers that several files of the renderer draw."""

from __future__ import annotations

import numpy as np


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between `low` and `high` whose logarithm is uniform: as often from 1 to 10 as from 10 to 100."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
