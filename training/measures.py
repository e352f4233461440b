"""Figures of merit, apart from everything that needs torch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_DRAWS = 2000


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
    """A share with its 95 % Wilson score interval; no observation gives the interval (0, 1).

    As if observations were independent: those of one screen are less than that, so of patches and boxes the interval is
    rather too narrow. `bootstrap_means` draws screens.
    """
    if total == 0:
        return Share(0, 0, 0.0, 0.0, 1.0)
    z = _Z
    ratio = count / total
    centre = (ratio + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(ratio * (1 - ratio) / total + z * z / (4 * total * total))
    return Share(count, total, ratio, max(0.0, centre - half), min(1.0, centre + half))


class Mean(NamedTuple):
    """A mean over `total` observations, with its 95 % interval; None where draws that do not differ tell of none."""

    value: float
    low: float | None
    high: float | None
    total: int


def bootstrap_means(
    values: Sequence[NDArray[np.float64]], groups: Sequence[NDArray[np.int64]]
) -> tuple[list[Mean], Mean]:
    """The mean of each kind of observation, and the mean of these means, by the percentile bootstrap over groups.

    Whole groups are drawn (Davison and Hinkley 1997, 3.8), the same ones for every kind, as the patches of one screen
    are not independent of each other. A kind that a draw lacks takes no part in its mean of means.

    Args:
        values: of each kind, (n,) observations; n is at least 1.
        groups: of each kind, (n,) the number of each observation's group.
    """
    numbers = np.unique(np.concatenate(groups))
    place = [np.searchsorted(numbers, of_kind) for of_kind in groups]
    total = np.stack([np.bincount(p, v, len(numbers)) for p, v in zip(place, values, strict=True)])
    count = np.stack([np.bincount(p, minlength=len(numbers)) for p in place])
    rng = np.random.default_rng(0)
    weight = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), BOOTSTRAP_DRAWS).T
    drawn = (total @ weight) / np.ma.masked_equal(count @ weight, 0)
    means = total.sum(axis=1) / count.sum(axis=1)
    each = [
        _mean(float(mean), of_kind.compressed(), int(seen.sum()))
        for mean, of_kind, seen in zip(means, drawn, count, strict=True)
    ]
    return each, _mean(float(means.mean()), drawn.mean(axis=0).compressed(), int(count.sum()))


def _mean(value: float, drawn: NDArray[np.float64], total: int) -> Mean:
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return Mean(value, low, high, total) if low < high else Mean(value, None, None, total)


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
