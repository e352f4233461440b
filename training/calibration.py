"""Thresholds and review bands from screens that were not learnt from, with what they cost and how far that is known."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import LabelLimits
from training.costs import Costs
from training.frontier import Screens
from training.intervals import Interval, Intervals, bootstrap_zones
from training.measures import Share, enough, wilson
from training.proof import choose
from training.zones import Tally, rounded, tally

FEW = 5  # screens with a label: of fewer nothing follows
UNLIKE = 1.5  # times as many windows: screens of other sizes
_DIGITS = 4  # of a threshold
_NEAREST = 1e-6  # to 0 and 1, which are no thresholds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Limits of each label, and what they do.

    Attributes:
        limits: by label.
        costs: that they were chosen for.
        tally: of the screens that they were chosen on.
        held_out: of the same screens, but those that chose the epoch where others are there, each judged by limits that
            were chosen without it; None where there are too few.
        intervals: of screens to come; None where there are too few to tell.
        screens: those screens.
        has: (S, L) which label each of them has.
        windows: of how many windows the smallest and the largest of them are.
        weights_chosen: whether the epoch was chosen by the screens that judge.
    """

    limits: dict[str, LabelLimits]
    costs: Costs
    tally: Tally
    held_out: Tally | None
    intervals: Intervals | None
    screens: Screens
    has: NDArray[np.bool_]
    windows: tuple[int, int]
    weights_chosen: bool

    @property
    def escape_bound(self) -> float:
        """What the share of escapes may be with 95 %, by the screens left out."""
        return 1.0 if self.held_out is None else self.held_out.escape_bound

    @property
    def proven(self) -> bool:
        """Whether so few escapes of so many screens left out bound the share of escapes by the cap, with 95 %."""
        return self.escape_bound <= self.costs.escape_cap

    def warnings(self) -> list[str]:
        """What the limits do not hold, or the screens do not prove, in words; empty where all is well."""
        found, cap = self.tally, self.costs.escape_cap
        said = []
        if not found.clean or not found.defective:
            said.append(
                "there are no clean or no defective screens, so every screen goes to review, but one with a score of 1"
            )
        if found.escape > cap:
            said.append(
                f"{found.escapes} of {found.defective} defective screens escape, {found.escape:.1%}: over the cap of "
                f"{cap:.2%}, which so few screens cannot keep but by more review than the capacity of "
                f"{self.costs.review_capacity:.1%}"
            )
        for label, count in zip(self.limits, self.has.sum(axis=0).tolist(), strict=True):
            if count < FEW:
                said.append(f"{count or 'no'} screens have the label {label}: its threshold and limits are guessed")
        if not self.proven:
            escapes, n = (0, 0) if self.held_out is None else (self.held_out.escapes, self.held_out.defective)
            said.append(
                f"{escapes} escapes of {n} defective screens, each judged by limits chosen without it, prove no more "
                f"than {self.escape_bound:.1%} (95 %), not the cap of {cap:.2%}: that takes {enough(escapes, cap)} "
                "such screens with as many escapes. Until then the bands are wider, as far as the capacity for review "
                "allows"
            )
        if self.weights_chosen:
            said.append(
                "the same screens chose the epoch whose weights these are, so what is told of them flatters: other "
                "defective and clean ones, by --calibrate, judge without them"
            )
        least, most = self.windows
        if most >= UNLIKE * least:
            said.append(
                f"the screens have {least} to {most} windows each, and the more windows the higher the highest score: "
                "for a line whose screens are of one size, calibrate on such screens alone"
            )
        if found.review(self.costs) > self.costs.review_capacity:
            said.append(
                f"{found.review(self.costs):.1%} of the screens go to review, over the capacity of "
                f"{self.costs.review_capacity:.1%}: neither the cap on escapes nor the thresholds, which no band may "
                "leave outside, let these scores do with less, if no more clean ones are to fail"
            )
        return said

    def facts(self) -> dict[str, float | str]:
        """For the manifest: what the limits were chosen for and on, and what they do."""
        found = self.tally
        return {
            "limits_costs": str(self.costs),
            "limits_screens": f"{found.defective} defective, {found.clean} clean",
            "limits_escape": round(found.escape, 4),
            "limits_escape_bound": round(self.escape_bound, 4),
            "limits_overkill": round(found.overkill, 4),
            "limits_review": round(found.review(self.costs), 4),
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON: limits, costs, counts, shares and intervals."""
        labels = list(self.limits)
        intervals = None
        if self.intervals is not None:
            shares = {name: getattr(self.intervals, name) for name in ("escape", "overkill", "review", "cost")}
            by_label = zip(labels, self.intervals.lows, self.intervals.highs, strict=True)
            intervals = {**shares, "labels": {label: {"low": low, "high": high} for label, low, high in by_label}}
        return {
            "limits": {label: asdict(limits) for label, limits in self.limits.items()},
            "costs": self.costs.model_dump(),
            "screens": asdict(self.tally),
            "escape": self.tally.escape,
            "held_out": None if self.held_out is None else asdict(self.held_out),
            "escape_bound": self.escape_bound,
            "escape_cap_proven": self.proven,
            "overkill": self.tally.overkill,
            "review": self.tally.review(self.costs),
            "cost": self.tally.cost(self.costs),
            "intervals": intervals,
            "warnings": self.warnings(),
        }


def calibrate(
    probability: NDArray[np.floating],
    target: NDArray[np.int8],
    screens: NDArray[np.int64],
    *,
    labels: Sequence[str],
    costs: Costs,
    chose_weights: NDArray[np.bool_] | None = None,
) -> Calibration:
    """Limits of each label.

    The threshold, from which a label counts as present, gives the best F on the known patches; the review band, which
    holds it, is that of `best_zones` on the highest scores of the screens.

    Args:
        probability: (N, L) of the screens' patches, reasoned by screen.
        target: (N, L); 1, 0 or -1.
        screens: (N,) number of each patch's screen.
        labels: L names.
        costs: of the line.
        chose_weights: (N,) patches of the screens that chose the epoch whose weights these are; None: of none.

    Raises:
        ValueError: a probability is no number.
    """
    if not np.isfinite(probability).all():
        raise ValueError("a probability is no number: no limits can be chosen on these")
    whole, has, rows = whole_screens(probability, target, screens)
    judging, weights_chosen = np.ones(len(whole), np.bool_), False
    if chose_weights is not None:
        fresh = np.array([not chose_weights[group].any() for group in rows], np.bool_)
        weights_chosen = not (fresh & whole.defective).any() or not (fresh & ~whole.defective).any()
        judging = judging if weights_chosen else fresh

    def thresholds_of(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        those = np.concatenate([np.empty(0, np.int64), *(rows[number] for number in numbers)])
        pairs = zip(probability[those].T, target[those].T, strict=True)
        chosen = [best_threshold(score[truth >= 0], truth[truth >= 0] == 1) for score, truth in pairs]
        return rounded(np.array(chosen), _DIGITS)

    found = choose(whole, costs, thresholds_of, judging=judging)
    intervals = bootstrap_zones(whole, costs, thresholds_of, step=found.step, judging=judging)
    windows = [len(group) for group in rows]
    limits = zip(labels, found.thresholds.tolist(), found.zones.tolist(), strict=True)
    return Calibration(
        limits={
            label: LabelLimits(threshold=threshold, review=(low, high)) for label, threshold, (low, high) in limits
        },
        costs=costs,
        tally=tally(whole, found.zones),
        held_out=found.held_out,
        intervals=_no_narrower(intervals, found.held_out, costs),
        screens=whole,
        has=has,
        windows=(min(windows, default=0), max(windows, default=0)),
        weights_chosen=weights_chosen,
    )


def _no_narrower(intervals: Intervals | None, held_out: Tally | None, costs: Costs) -> Intervals | None:
    """No narrower than Wilson's intervals: replicates of which none has an escape would say that none ever will.

    Nor is that of the cost narrower than the costs at both ends of the others.
    """
    if intervals is None or held_out is None:
        return intervals
    escape = _widened(intervals.escape, wilson(held_out.escapes, held_out.defective))
    overkill = _widened(intervals.overkill, wilson(held_out.overkills, held_out.clean))
    ends = [
        costs.of(escape=e, overkill=o, review=r)
        for e, o, r in zip(escape[1:], overkill[1:], intervals.review[1:], strict=True)
    ]
    cost = Interval(intervals.cost.mean, min(intervals.cost.low, ends[0]), max(intervals.cost.high, ends[1]))
    return intervals._replace(escape=escape, overkill=overkill, cost=cost)


def _widened(interval: Interval, share: Share) -> Interval:
    return Interval(interval.mean, min(interval.low, share.low), max(interval.high, share.high))


def whole_screens(
    probability: NDArray[np.floating], target: NDArray[np.int8], screens: NDArray[np.int64]
) -> tuple[Screens, NDArray[np.bool_], list[NDArray[np.int64]]]:
    """Patches as whole screens, which labels (S, L) each has, and the numbers of its patches.

    A screen whose every defect is "unknown" is left out.
    """
    groups = [np.flatnonzero(screens == number) for number in np.unique(screens)]
    has = np.array([(target[group] == 1).any(axis=0) for group in groups])
    unsure = np.array([(target[group] < 0).any() for group in groups])
    highest = np.array([probability[group].max(axis=0) for group in groups], np.float64)
    known = has.any(axis=1) | ~unsure
    rows = [group for group, taken in zip(groups, known, strict=True) if taken]
    return Screens(highest[known], np.asarray(has[known].any(axis=1))), has[known], rows


def best_within(score: NDArray[np.floating], truth: NDArray[np.bool_], low: float, high: float) -> float:
    """The threshold with the best F inside a band, in the middle of its gap to four digits; the highest of several.

    Raises:
        ValueError: there is no positive.
    """
    if not truth.any():
        raise ValueError("no patch has the label: no threshold can be chosen")
    low, high = max(low, _NEAREST), min(high, 1 - _NEAREST)
    ranked, hits = np.sort(score), np.sort(score[truth])
    gaps = ((ranked[1:] + ranked[:-1]) / 2).astype(np.float64)
    inside = np.unique(np.clip(rounded(gaps[(gaps >= low) & (gaps <= high)], _DIGITS), low, high))[::-1]
    tried = np.array([*inside, low, high])  # its ends only where they are better than all between
    present = len(ranked) - np.searchsorted(ranked, tried)
    right = len(hits) - np.searchsorted(hits, tried)
    return float(tried[np.argmax(2 * right / (present + len(hits)))])


def best_threshold(score: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """The threshold with the best F, in the middle of the gap it lies in; 0.5 where there is no positive."""
    if not truth.any():
        return 0.5
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], np.cumsum(truth[order])
    f = 2 * hits / (np.arange(1, len(score) + 1) + truth.sum())
    ends = np.append(ranked[1:] < ranked[:-1], True)  # equal scores fall together
    best = int(np.argmax(np.where(ends, f, -1)))
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float(np.clip((float(ranked[best]) + float(below)) / 2, _NEAREST, 1 - _NEAREST))
