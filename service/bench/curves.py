"""How a cost grows with a size: curves, their exponents, and where they bend."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

WORDS = ("flat", "linear", "quadratic", "cubic")
SPREAD = (0.25, 0.5, 0.75)  # quantiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Seconds by size: of each size the median and the quartiles of what was measured.

    Attributes:
        sizes: rising.
        median_s: at each size, and so on.
    """

    sizes: Sequence[float]
    low_s: Sequence[float]
    median_s: Sequence[float]
    high_s: Sequence[float]

    @property
    def exponents(self) -> list[float]:
        """Between neighbours: b where the median grows as the size to the power of b."""
        points = list(zip(self.sizes, self.median_s, strict=True))
        return [
            math.log(max(after_s, 1e-9) / max(before_s, 1e-9)) / math.log(after / before)
            for (before, before_s), (after, after_s) in pairwise(points)
        ]

    @property
    def bends(self) -> dict[float, str]:
        """The word for the growth from the first size on, and from each size on at which the curve bends upwards.

        Of a curve that bends upwards the exponents rise; measured ones do so but for noise, so the nearest ones that
        rise are taken instead (neighbours that fall count as one, with the exponent of both). The curve bends where
        these, rounded to whole numbers, are higher than before. What comes down again is no bend.
        """
        found: dict[float, str] = {}
        before = -1
        for size, exponent in zip(self.sizes, self._rising_exponents(), strict=False):
            degree = min(max(round(exponent), 0), len(WORDS) - 1)
            if degree > before:
                found[size], before = WORDS[degree], degree
        return found

    def _rising_exponents(self) -> list[float]:
        """The nearest to `exponents` that never fall: isotonic regression, by pooling adjacent violators."""
        pools: list[tuple[float, float, int]] = []  # exponent, width on the logarithmic axis, how many there are
        for exponent, (size, next_size) in zip(self.exponents, pairwise(self.sizes), strict=True):
            width, count = math.log(next_size / size), 1
            while pools and pools[-1][0] >= exponent:
                lower, lower_width, lower_count = pools.pop()
                exponent = (exponent * width + lower * lower_width) / (width + lower_width)
                width, count = width + lower_width, count + lower_count
            pools.append((exponent, width, count))
        return [exponent for exponent, _, count in pools for _ in range(count)]

    def describe_bends(self) -> str:
        """The same in words, such as `flat, linear from 8`."""
        (_, first), *later = self.bends.items()
        return ", ".join([first, *(f"{word} from {_plain(size)}" for size, word in later)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One question: what does a screen cost as something grows?

    Attributes:
        title: the question, short.
        unit: of the sizes.
        curves: by name: `wall`, `CPU`, and stages of the verdict's `timing`.
        figures: more for machines.
    """

    title: str
    unit: str
    curves: Mapping[str, Curve]
    figures: Mapping[str, Any]

    def describe(self) -> str:
        """Each curve's growth in a line, for people: its words, and what the first and the last size take."""
        return "; ".join(
            f"{name} {curve.describe_bends()} ({seconds(curve.median_s[0])} to {seconds(curve.median_s[-1])})"
            for name, curve in self.curves.items()
        )

    def as_dict(self) -> dict[str, Any]:
        """For machines: sizes, and by curve its seconds, exponents and bends."""
        return {
            "unit": self.unit,
            "sizes": list(next(iter(self.curves.values())).sizes),
            "curves": {
                name: {
                    "low_s": list(curve.low_s),
                    "median_s": list(curve.median_s),
                    "high_s": list(curve.high_s),
                    "exponents": curve.exponents,
                    "bends": {f"{size:g}": word for size, word in curve.bends.items()},
                }
                for name, curve in self.curves.items()
            },
            **self.figures,
        }


def curves_of(samples: Mapping[float, Sequence[Mapping[str, float]]]) -> dict[str, Curve]:
    """Curves of what was measured.

    Args:
        samples: by size, two or more and rising: repeated measurements of at least one, each seconds by name.

    Returns:
        By name.
    """
    names = next(iter(samples.values()))[0]
    quantiles = {
        name: np.array([np.quantile([one[name] for one in repeats], SPREAD) for repeats in samples.values()]).T.tolist()
        for name in names
    }
    return {
        name: Curve(sizes=list(samples), low_s=low, median_s=median, high_s=high)
        for name, (low, median, high) in quantiles.items()
    }


def seconds(value: float) -> str:
    """A time with its unit, three digits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def _plain(size: float) -> str:
    return f"{size:.0f}" if size >= 10 else f"{size:.2g}"
