"""How far chosen zones can be trusted: chosen again and again on screens drawn anew, and judged on those left out."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from training.costs import Costs
from training.frontier import Screens
from training.proof import Served, Thresholds
from training.zones import Tally, Zones, best_zones, lowered, tally

REPLICATES = 200
TOO_FEW = "too few screens"  # is shown in place of an interval without width
_LEAST = 0.05  # of a logit, between the ends of an interval: less is no more than the limits' rounding
_DIGITS, _MOST_DIGITS = 3, 6
_WIDTH = 4  # of the search: the choice of each replicate need not be the very best
_CENTRAL = (0.025, 0.975)


class Interval(NamedTuple):
    """Mean over the replicates, and between what ends the central 95 % of them lie."""

    mean: float
    low: float
    high: float


def span(interval: Interval | None, joint: str) -> str:
    """The ends of an interval of scores for people, in as many digits as tell them apart, with this between them."""
    if interval is None:
        return TOO_FEW
    for digits in range(_DIGITS, _MOST_DIGITS + 1):
        low, high = (f"{end:.{digits}f}" for end in (interval.low, interval.high))
        if low != high:
            return low + joint + high
    return TOO_FEW


class Intervals(NamedTuple):
    """Of each label's low and high, and of what the zones do to screens that they were not chosen on.

    `lows` and `highs` by label's number, None where the replicates do not differ; `escape`, `overkill`, `review` as
    shares, `cost` of a screen. Those of limits are their spread over draws of the screens and no intervals of
    confidence: a limit hangs on the outermost screens, and of those that are drawn again none lies farther out. Where
    it was tried three in five lows of other sets lay within, and the median of them three times in four.
    """

    lows: list[Interval | None]
    highs: list[Interval | None]
    escape: Interval
    overkill: Interval
    review: Interval
    cost: Interval


def bootstrap_zones(
    screens: Screens,
    costs: Costs,
    thresholds_of: Thresholds,
    *,
    step: float = 0.0,
    judging: NDArray[np.bool_] | None = None,
    served: Served | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Intervals | None:
    """Intervals by the bootstrap over screens (Efron 1979), defective and clean ones drawn apart.

    Zones look best on the screens that they were chosen on: where none of those escaped, drawing again from them would
    say that none ever will. So each replicate chooses thresholds and zones of its own, and is judged on the screens
    that it did not draw (Efron 1983, "Estimating the error rate of a prediction rule"). How far replicates differ from
    each other is less than how far any of them may differ from the truth: with few screens these intervals are narrow,
    and what the cap is held against is `training.proof`'s bound.

    Args:
        screens: that the zones were chosen on.
        costs: of the line.
        thresholds_of: the labels' thresholds, of screens by their numbers.
        step: by which the lows were moved down.
        judging: which screens judge where they are not drawn; None: all.
        served: as what they are judged, see `training.proof.choose`.
        replicates: how often they are drawn.
        seed: of the draws.

    Returns:
        None where there are fewer than two screens of a kind, or of those that judge: nothing can be left out.
    """
    judging = np.ones(len(screens), np.bool_) if judging is None else judging
    kinds = [np.flatnonzero(screens.defective), np.flatnonzero(~screens.defective)]
    if min(int(judging[kind].sum()) for kind in kinds) < 2:
        return None

    def replicate(drawn: NDArray[np.int64], left: NDArray[np.int64]) -> tuple[Zones, Tally]:
        zones = lowered(best_zones(screens.take(drawn), costs, thresholds_of(drawn), width=_WIDTH), step)
        return zones, tally(screens.take(left) if served is None else served(drawn, zones, left), zones)

    found = [replicate(drawn, left) for drawn, left in _draws(kinds, judging, replicates, seed)]
    zones = np.stack([chosen for chosen, _ in found])
    labels = range(zones.shape[1])
    return Intervals(
        lows=[_spread(zones[:, label, 0]) for label in labels],
        highs=[_spread(zones[:, label, 1]) for label in labels],
        escape=_interval([one.escape for _, one in found]),
        overkill=_interval([one.overkill for _, one in found]),
        review=_interval([one.review(costs) for _, one in found]),
        cost=_interval([one.cost(costs) for _, one in found]),
    )


def _draws(
    kinds: Sequence[NDArray[np.int64]], judging: NDArray[np.bool_], replicates: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Numbers of the screens that are drawn, some of them several times, and of those that judge them."""
    rng = np.random.default_rng(seed)
    for _ in track(range(replicates), "bootstrap", transient=True):
        drawn = [rng.choice(kind, len(kind)) for kind in kinds]
        left = [np.setdiff1d(kind[judging[kind]], some) for kind, some in zip(kinds, drawn, strict=True)]
        if min(map(len, left)):  # of two or three screens a draw may leave none
            yield np.concatenate(drawn), np.concatenate(left)


def _interval(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, _CENTRAL)
    return Interval(float(np.mean(values)), float(low), float(high))


def _spread(values: NDArray[np.float64]) -> Interval | None:
    """The interval of a limit; None where it has no width: draws that do not differ tell nothing of screens to come."""
    interval = _interval(values)
    low, high = (math.log(end / (1 - end)) for end in np.clip(interval[1:], 1e-9, 1 - 1e-9).tolist())
    return interval if high - low > _LEAST else None
