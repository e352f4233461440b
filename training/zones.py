"""Pass, review and fail of whole screens at the least expected cost, within a hard cap on escapes and a capacity.

A screen fails where any label reaches its `high`, goes to review where any reaches its `low`, and passes otherwise; so
the limits of all labels are chosen together (Chow 1970, "On optimum recognition error and reject tradeoff", has the
case of one score). The shares of the screens at hand count for nothing: defective and clean ones are weighed by the
line's prevalence.
"""

import math
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from itertools import product

import numpy as np
from numpy.typing import NDArray

from training.costs import Costs
from training.frontier import WIDTH, Box, Screens, frontier
from training.measures import wilson

Zones = NDArray[np.float64]  # (L, 2): low and high of each label
PASS, REVIEW, FAIL = range(3)

NARROWEST_BAND = 0.05  # few screens may separate perfectly; a line needs some band all the same
_HIGHEST = 0.995  # of a limit where the threshold is not higher, so that a score can reach it
_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What zones make of screens: counts, of which those that no zone is named for are right."""

    defective: int
    clean: int
    escapes: int
    overkills: int
    reviewed_defective: int
    reviewed_clean: int

    def __add__(self, other: "Tally") -> "Tally":
        """Of both lots of screens."""
        return Tally(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    @property
    def escape(self) -> float:
        """Of the defective screens, the share that passes."""
        return self.escapes / max(self.defective, 1)

    @property
    def overkill(self) -> float:
        """Of the clean screens, the share that fails."""
        return self.overkills / max(self.clean, 1)

    @property
    def escape_bound(self) -> float:
        """What the share of escapes is at most, with 97.5 %: of none in n about 4/n.

        It is the upper end of Wilson's interval of 95 %, which leaves 2.5 % on either side.
        """
        return self.escape_interval[1]

    @property
    def escape_interval(self) -> tuple[float, float]:
        """Of 95 %, of the share of escapes: Wilson's."""
        return wilson(self.escapes, self.defective)[-2:]

    @property
    def overkill_interval(self) -> tuple[float, float]:
        """Of 95 %, of the share of overkills: Wilson's."""
        return wilson(self.overkills, self.clean)[-2:]

    def review_interval(self, costs: Costs) -> tuple[float, float]:
        """Of 95 % at least, of the share of the line's screens that goes to review: from both kinds' ends, Wilson's."""
        bad, good = wilson(self.reviewed_defective, self.defective), wilson(self.reviewed_clean, self.clean)
        share = costs.prevalence
        return share * bad.low + (1 - share) * good.low, share * bad.high + (1 - share) * good.high

    def review(self, costs: Costs) -> float:
        """Of the line's screens, the share that goes to review."""
        bad, good = self.reviewed_defective / max(self.defective, 1), self.reviewed_clean / max(self.clean, 1)
        return costs.prevalence * bad + (1 - costs.prevalence) * good

    def cost(self, costs: Costs) -> float:
        """Expected cost of a screen of the line."""
        return costs.of(escape=self.escape, overkill=self.overkill, review=self.review(costs))


def outcomes(screens: Screens, zones: Zones) -> NDArray[np.int64]:
    """`PASS`, `REVIEW` or `FAIL` of each screen (S,)."""
    fails, held = ((screens.highest >= limit).any(axis=1) for limit in (zones[:, 1], zones[:, 0]))
    return np.where(fails, FAIL, np.where(held, REVIEW, PASS))


def tally(screens: Screens, zones: Zones) -> Tally:
    """Count what zones make of screens."""
    outcome, bad = outcomes(screens, zones), screens.defective
    return Tally(
        defective=int(bad.sum()),
        clean=int((~bad).sum()),
        escapes=int((bad & (outcome == PASS)).sum()),
        overkills=int((~bad & (outcome == FAIL)).sum()),
        reviewed_defective=int((bad & (outcome == REVIEW)).sum()),
        reviewed_clean=int((~bad & (outcome == REVIEW)).sum()),
    )


def worse(screens: Screens, other: NDArray[np.float64], zones: Zones) -> Screens:
    """Each screen with those of two ways' scores (S, L) that give the worse verdict by zones; of equals the first.

    Not label by label: a defect that fails by one label here and by another there escapes in neither way.
    """
    one, two = outcomes(screens, zones), outcomes(Screens(other, screens.defective), zones)
    by_other = np.where(screens.defective, two < one, two > one)
    return Screens(np.where(by_other[:, None], other, screens.highest), screens.defective)


def allowed_escapes(costs: Costs, defective: int) -> int:
    """Of so many defective screens, how many may escape by the cap."""
    return math.floor(costs.escape_cap * defective + 1e-9)


def worth(found: Tally, costs: Costs, allowed: int) -> tuple[float, ...]:
    """What is compared: less is better, and the first that differs decides.

    Escapes beyond those that are allowed; review beyond the capacity; cost.
    """
    return (
        max(0, found.escapes - allowed),
        round(max(0.0, found.review(costs) - costs.review_capacity), 12),
        round(found.cost(costs), 12),
    )


def best_zones(screens: Screens, costs: Costs, thresholds: NDArray[np.float64], *, width: int = WIDTH) -> Zones:
    """The zones that are best by `worth` on these screens; what they prove of others is `training.proof`'s.

    What passes is a box in the space of scores, and what does not fail is another (`training.frontier`): the first
    within the thresholds, the second beyond them by `NARROWEST_BAND` at least: no screen passes with a label present,
    and none fails without. A threshold that leaves no room above has its band below. Every cost depends on what is
    inside of both, and only boxes worth having are compared, so no clean screen is failed merely to spare its review.

    Of so few screens that the cap allows none to escape one may all the same, where to keep it takes more review than
    the capacity: a single defect that the network does not see would else send every screen to review.

    Where screens of one kind are missing nothing can be weighed: every screen goes to review, but one with a score of
    1, from which no limit keeps it.

    Args:
        screens: whose limits are wanted.
        costs: of the line.
        thresholds: (L,) from which the labels are present.
        width: of the search.
    """
    labels = len(thresholds)
    if screens.defective.all() or not screens.defective.any():
        return np.tile([0.0, 1.0], (labels, 1))
    beyond = np.maximum(np.minimum(thresholds + NARROWEST_BAND, _HIGHEST), thresholds)
    # in the outer quarters of the gaps between screens: nobody knows what lies in a gap
    within = np.minimum(thresholds, beyond - NARROWEST_BAND)
    lows = frontier(screens, np.zeros(labels), within, place=0.25, width=width)
    highs = frontier(screens, beyond, np.maximum(beyond, _HIGHEST), place=0.75, width=width)
    promises = {(low, high): _promise(screens, low, high) for low, high in product(lows, highs)}
    allowed = allowed_escapes(costs, int(screens.defective.sum()))
    low, high = min(promises, key=lambda pair: worth(promises[pair], costs, allowed))
    if not allowed and promises[low, high].review(costs) > costs.review_capacity:
        low, high = min(promises, key=lambda pair: worth(promises[pair], costs, 1))
    return np.stack([_outwards(low.limits, ROUND_FLOOR), _outwards(high.limits, ROUND_CEILING)], axis=1)


def _promise(screens: Screens, low: Box, high: Box) -> Tally:
    """What the zones of two boxes make of the screens that these are of."""
    defective = int(screens.defective.sum())
    clean = len(screens) - defective
    return Tally(
        defective=defective,
        clean=clean,
        escapes=low.defective,
        overkills=clean - high.clean,
        reviewed_defective=high.defective - low.defective,
        reviewed_clean=high.clean - low.clean,
    )


def rounded(shares: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """To so many significant digits of the distance to 0 or 1, whichever is nearer: scores crowd at both ends."""
    distance = np.minimum(shares, 1 - shares)
    near = np.array([float(f"{one:.{digits}g}") for one in distance.ravel()]).reshape(shares.shape)
    return np.where(shares > 0.5, 1 - near, near)


def _outwards(limits: NDArray[np.float64], rounding: str) -> NDArray[np.float64]:
    """As `rounded`, but away from the band's middle: no screen may come to pass or to fail by it."""
    away = {ROUND_FLOOR: ROUND_CEILING, ROUND_CEILING: ROUND_FLOOR}[rounding]  # of the distance to 1

    def near(distance: float, rounding: str) -> float:
        # twelve digits first: 0.1 + 0.05 is 0.15, and stays so
        return float(Context(_DIGITS, rounding).create_decimal(f"{distance:.12g}"))

    return np.array([near(one, rounding) if one <= 0.5 else 1 - near(1 - one, away) for one in limits.tolist()])


def lowered(zones: Zones, step: float) -> Zones:
    """The lows moved down by the same step of the logit for every label; 0 leaves them."""
    odds = zones[:, 0] / (1 - zones[:, 0]) * math.exp(-step)
    lows = rounded(odds / (1 + odds), _DIGITS)
    return np.stack([np.minimum(lows, zones[:, 0]), zones[:, 1]], axis=1)
