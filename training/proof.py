"""What chosen zones prove: judged on screens that had no part in the choice, and widened where that is not enough.

On the screens that they were chosen on zones look best: the number of escapes there bounds nothing. So thresholds and
zones are chosen again without each fifth of the screens, and judged on it (cross-validation, Stone 1974).
"""

import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.costs import Costs
from training.frontier import Screens
from training.measures import Share, wilson
from training.zones import PASS, Tally, Zones, best_zones, lowered, outcomes, tally

FOLDS = 5
FARTHEST = 8.0  # of a logit, that the lows are moved at most

Thresholds = Callable[[NDArray[np.int64]], NDArray[np.float64]]  # of screens by their numbers, to one for each label
# screens by their numbers as they are judged, after those that zones were chosen on, and these zones: a glance follows
# from both, and changes what the screens score
Served = Callable[[NDArray[np.int64], Zones, NDArray[np.int64]], Screens]


class Choice(NamedTuple):
    """Of all screens thresholds, zones and how far their lows were moved down; and what was found on screens left out.

    `held_out` as they are served, `held_out_whole` by the scores that zones are chosen on; None where there are fewer
    than two screens of a kind: nothing can be left out. Of all screens (S,) `judged` says which were left out and
    judge, `escaped` which of these are defective and pass as they are served.
    """

    thresholds: NDArray[np.float64]
    zones: Zones
    step: float
    held_out: Tally | None
    held_out_whole: Tally | None
    judged: NDArray[np.bool_]
    escaped: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelEscapes:
    """Of the screens left out that have a label, those that pass; `alone` of those that have no other label."""

    escape: Share
    alone: Share


def choose(
    screens: Screens,
    costs: Costs,
    thresholds_of: Thresholds,
    *,
    judging: NDArray[np.bool_] | None = None,
    served: Served | None = None,
) -> Choice:
    """The best zones, widened where the screens that were left out do not prove the cap.

    Then the lows go down by the same step of the logit for every label, until they use the review that the capacity
    leaves, in the share in which the cap is unproven: nothing where the bound just meets it, nearly all of it with few
    screens. Neither the zones that judge the screens left out nor those of all screens may then pass the capacity. What
    escapes because of how screens are served moves nothing: a window that a glance has cleared scores as a clean one.

    What keeps the capacity is an estimate, and the lows are moved onto it: the review of these screens, and of those
    left out. On small sets a quarter to a half of such choices pass it on other screens: of simulated ones with two
    labels, by how far these stood out, 25 to 49 % on 60 defective and 60 clean screens, 5 to 31 % on 200 and 200.

    Args:
        screens: whose limits are wanted.
        costs: of the line.
        thresholds_of: the labels' thresholds, of these screens alone.
        judging: which of them judge where they are left out; None: all.
        served: as what they are judged; None: by the scores that zones are chosen on.
    """
    judging = np.ones(len(screens), np.bool_) if judging is None else judging
    thresholds = thresholds_of(np.arange(len(screens)))
    zones = best_zones(screens, costs, thresholds)
    left_out = [
        (rest, best_zones(screens.take(rest), costs, thresholds_of(rest)), part[judging[part]])
        for part, rest in _folds(screens.defective)
    ]

    def as_chosen(rest: NDArray[np.int64], chosen: Zones, part: NDArray[np.int64]) -> Screens:
        return screens.take(part)

    def moved(step: float) -> Iterator[tuple[NDArray[np.int64], Zones, NDArray[np.int64]]]:
        return ((rest, lowered(chosen, step), part) for rest, chosen, part in left_out)

    def judged(step: float, seen: Served) -> Tally:
        tallies = [tally(seen(rest, chosen, part), chosen) for rest, chosen, part in moved(step)]
        # of screens of one kind no zones were chosen: all of them go to review, and prove nothing
        return functools.reduce(operator.add, tallies) if tallies else of_all(step)

    def of_all(step: float) -> Tally:
        everything, chosen = np.arange(len(screens)), lowered(zones, step)
        return tally(as_served(everything, chosen, everything), chosen)

    as_served = served or as_chosen
    bound, review = judged(0.0, as_chosen).escape_bound, judged(0.0, as_served).review(costs)
    step = 0.0
    if bound > costs.escape_cap and review < costs.review_capacity:
        limit = review + (costs.review_capacity - review) * (1 - costs.escape_cap / bound)
        most = max(costs.review_capacity, of_all(0.0).review(costs))

        def fits(step: float) -> bool:
            return judged(step, as_served).review(costs) <= limit and of_all(step).review(costs) <= most

        step = _largest_step(fits)
    judges, escaped = (np.zeros(len(screens), np.bool_) for _ in range(2))
    tallies = []
    for rest, chosen, part in moved(step):
        seen = as_served(rest, chosen, part)  # which may choose a glance's limit anew: once is enough
        judges[part], escaped[part] = True, seen.defective & (outcomes(seen, chosen) == PASS)
        tallies.append(tally(seen, chosen))
    held_out = functools.reduce(operator.add, tallies) if tallies else None
    whole = judged(step, as_chosen) if left_out else None
    return Choice(thresholds, lowered(zones, step), step, held_out, whole, judges, escaped)


def escapes_by_label(has: NDArray[np.bool_], found: Choice) -> list[LabelEscapes]:
    """Of each label: a cap that all labels keep together may hide a rare one whose every screen escapes.

    Args:
        has: (S, L) which label each screen has.
        found: of these screens.
    """

    def share(which: NDArray[np.bool_]) -> Share:
        return wilson(int((which & found.escaped).sum()), int((which & found.judged).sum()))

    single = has.sum(axis=1) == 1
    return [LabelEscapes(escape=share(own), alone=share(own & single)) for own in has.T]


def _folds(defective: NDArray[np.bool_]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Numbers of the screens left out and of the others, each kind dealt out evenly; none where a kind has but one."""
    kinds = [np.flatnonzero(defective), np.flatnonzero(~defective)]
    count = min(FOLDS, *map(len, kinds))
    if count < 2:
        return []
    fold = np.empty(len(defective), np.int64)
    for kind in kinds:
        fold[np.random.default_rng(0).permutation(kind)] = np.arange(len(kind)) % count
    return [(np.flatnonzero(fold == number), np.flatnonzero(fold != number)) for number in range(count)]


def _largest_step(fits: Callable[[float], bool]) -> float:
    low, high = 0.0, FARTHEST
    for _ in range(40):
        step = (low + high) / 2
        low, high = (step, high) if fits(step) else (low, step)
    return low
