"""Figures of merit, apart from everything that needs torch."""

from __future__ import annotations

import math
from typing import NamedTuple


def f_measure(precision: float, recall: float) -> float:
    """Harmonic mean of precision and recall in [0, 1]; 0 where both are 0."""
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


_Z = 1.959964  # 95 % of a normal distribution lie within


class Share(NamedTuple):
    """`hits` of `total`, with its 95 % Wilson interval (Wilson 1927)."""

    hits: int
    total: int
    ratio: float
    low: float
    high: float


def wilson(count: int, total: int) -> Share:
    """A share with its 95 % Wilson score interval; no observation gives the interval (0, 1)."""
    if total == 0:
        return Share(0, 0, 0.0, 0.0, 1.0)
    z = _Z
    ratio = count / total
    centre = (ratio + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(ratio * (1 - ratio) / total + z * z / (4 * total * total))
    return Share(count, total, ratio, max(0.0, centre - half), min(1.0, centre + half))


def enough(count: int, ratio: float) -> int:
    """The least total of which so many are no more than `ratio`, by the upper end of Wilson's interval.

    With none it is about 4 / ratio; the interval's end is where (total ratio - count)^2 = z^2 total ratio (1 - ratio).

    Args:
        count: of hits.
        ratio: in (0, 1).
    """
    half = _Z * math.sqrt(ratio * (1 - ratio))
    root = (half + math.sqrt(half * half + 4 * ratio * count)) / (2 * ratio)
    return math.ceil(root * root)
