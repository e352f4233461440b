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

        A curve bends at a size where its exponent, rounded to a whole number, rises for good: it is higher between all
        neighbours from there on than it was before. What noise or a cache lifts for a while, and lets down again, is no
        bend.
        """
        rounded = [min(max(round(exponent), 0), len(WORDS) - 1) for exponent in self.exponents]
        lasting = np.minimum.accumulate(rounded[::-1])[::-1].tolist()
        found: dict[float, str] = {}
        for index, degree in enumerate(lasting):
            if index == 0 or degree > lasting[index - 1]:
                found[self.sizes[index]] = WORDS[degree]
        return found

    def describe_bends(self) -> str:
        """The same in words, such as `flat, linear from 8`."""
        (_, first), *later = self.bends.items()
        return ", ".join([first, *(f"{word} from {size:.3g}" for size, word in later)])


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
