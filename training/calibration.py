"""Thresholds and review bands from screens that were not learnt from, with what they cost and how far that is known."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import LabelLimits
from training.costs import Costs
from training.frontier import Screens
from training.intervals import Interval, Intervals, bootstrap_zones
from training.measures import enough
from training.proof import LabelEscapes, choose, escapes_by_label
from training.zones import Tally, Zones, rounded, tally, worse

FEW = 5  # screens with a label, or with it alone: of fewer nothing follows
UNLIKE = 1.5  # times as many windows: screens of other sizes
LESS_GLANCE = "Where it may clear less (--lost), or is left out (--drop-glance), the whole network sees more"
DIGITS = 4  # of a threshold
NEAREST = 1e-6  # to 0 and 1, which are no thresholds

# highest scores (S, L) of S screens, each given by the numbers of its patches, as a glance leaves them whose limit was
# chosen, by these zones, on the patches (N,) that come first
Glancing = Callable[[NDArray[np.int64], Zones, Sequence[NDArray[np.int64]]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Limits of each label, and what they do.

    Attributes:
        limits: by label.
        costs: that they were chosen for.
        tally: of the screens that they were chosen on.
        held_out: of the same screens, but those that chose the epoch where others are there, each judged by limits that
            were chosen without it; None where there are too few.
        by_label: of the screens of `held_out`, the escapes of each label.
        whole: those two by the whole network, without what a glance does to the screens.
        intervals: of screens to come; None where there are too few to tell.
        screens: those screens, as they are judged.
        has: (S, L) which label each of them has.
        windows: of how many windows the smallest and the largest of them are.
        weights_chosen: whether the epoch was chosen by the screens that judge, or may have been.
    """

    limits: dict[str, LabelLimits]
    costs: Costs
    tally: Tally
    held_out: Tally | None
    by_label: dict[str, LabelEscapes]
    whole: tuple[Tally, Tally | None]
    intervals: Intervals | None
    screens: Screens
    has: NDArray[np.bool_]
    windows: tuple[int, int]
    weights_chosen: bool

    @property
    def escape_bound(self) -> float:
        """What the share of escapes is at most, with 97.5 %, by the screens left out; see `Tally.escape_bound`."""
        return 1.0 if self.held_out is None else self.held_out.escape_bound

    @property
    def proven(self) -> bool:
        """Whether so few escapes of so many screens left out bound the share of escapes by the cap, with 97.5 %.

        Never where these screens chose the epoch: the network is at its best on them.
        """
        return self.escape_bound <= self.costs.escape_cap and not self.weights_chosen

    def warnings(self) -> list[str]:
        """What the limits do not hold, or the screens do not prove, in words; empty where all is well."""
        found, cap = self.tally, self.costs.escape_cap
        whole, held_out_whole = self.whole
        said = []
        if not found.clean or not found.defective:
            said.append(
                "there are no clean or no defective screens, so every screen goes to review, but one with a score of 1"
            )
        if found.clean and found.defective:
            said += self._no_better_than_review()
        if found.escape > cap:
            why = (
                ", which so few screens cannot keep but by more review than the capacity of "
                f"{self.costs.review_capacity:.1%}"
            )
            said.append(
                f"{found.escapes} of {found.defective} defective screens escape, {found.escape:.1%}: over the cap of "
                f"{cap:.2%}{why if whole.escape > cap else ''}{_by_glance(found, whole)}"
            )
        said += self._of_labels()
        if self.escape_bound > cap:
            escapes, n = (0, 0) if self.held_out is None else (self.held_out.escapes, self.held_out.defective)
            said.append(
                f"{escapes} escapes of {n} defective screens, each judged by limits chosen without it, prove no more "
                f"than {self.escape_bound:.1%} (97.5 %), not the cap of {cap:.2%}: that takes {enough(escapes, cap)} "
                "such screens with as many escapes. Until then the bands are wider, as far as the capacity for review "
                f"allows{_by_glance(self.held_out, held_out_whole)}"
            )
        if self.weights_chosen:
            said.append(
                "the same screens chose the epoch whose weights these are, or may have, so what is told of them "
                "flatters, and no cap is proven: other defective and clean ones, by export --calibrate or calibrate "
                "--data, judge without them"
            )
        least, most = self.windows
        if most >= UNLIKE * least:
            said.append(
                f"the screens have {least} to {most} windows each, and the more windows the higher the highest score: "
                "for a line whose screens are of one size, calibrate on such screens alone"
            )
        if found.review(self.costs) > self.costs.review_capacity:
            why = (
                "neither the cap on escapes nor the thresholds, which no band may leave outside, let these scores do "
                "with less, if no more clean ones are to fail"
            )
            if whole.review(self.costs) <= self.costs.review_capacity:
                why = f"{whole.review(self.costs):.1%} without the glance. {LESS_GLANCE}"
            said.append(
                f"{found.review(self.costs):.1%} of the screens go to review, over the capacity of "
                f"{self.costs.review_capacity:.1%}: {why}"
            )
        elif self.held_out is not None and self.held_out.review(self.costs) > self.costs.review_capacity:
            ends = self.held_out.review_interval(self.costs) if self.intervals is None else self.intervals.review[1:]
            said.append(
                f"{self.held_out.review(self.costs):.1%} ({ends[0]:.1%}-{ends[1]:.1%}) of screens that are left out of "
                f"the choice go to review, over the capacity of {self.costs.review_capacity:.1%}, though "
                f"{found.review(self.costs):.1%} of those that it is made on do: expect so many on the line, or "
                "calibrate on more screens"
            )
        return said

    def _of_labels(self) -> list[str]:
        """Labels of which too few screens tell, and those whose own screens escape beyond the cap, which all share."""
        said, cap = [], self.costs.escape_cap
        single = self.has.sum(axis=1, keepdims=True) == 1
        counts = zip(self.has.sum(axis=0).tolist(), (self.has & single).sum(axis=0).tolist(), strict=True)
        for (label, left_out), (count, alone) in zip(self.by_label.items(), counts, strict=True):
            escapes = left_out.alone
            judging = alone if self.held_out is None else escapes.total
            if count < FEW:
                said.append(f"{count or 'no'} screens have the label {label}: its threshold and limits are guessed")
            elif judging < FEW:
                fresh = "" if judging == alone else " that did not choose the epoch"
                said.append(
                    f"{judging or 'no'} screens{fresh} have the label {label} and no other, and beside others it need "
                    f"not be seen: how many of it escape is not known. Add screens that have {label} alone"
                )
            if len(self.limits) > 1 and escapes.ratio > cap:
                said.append(
                    f"{escapes.hits} of {escapes.total} screens that have the label {label} and no other escape where "
                    f"they are left out of the choice, {escapes.ratio:.1%} ({escapes.low:.1%}-{escapes.high:.1%}): the "
                    f"cap of {cap:.2%} counts screens of all labels together. Add screens that have {label} alone, to "
                    "calibrate on and, where they score like clean ones, to learn from"
                )
        return said

    def _no_better_than_review(self) -> list[str]:
        """That hardly anything is gained where no clean screen passes, or where a review of every screen costs less."""
        found, of_review = self.tally, self.costs.review_cost
        costs = [one.cost(self.costs) for one in (found, self.held_out) if one is not None]
        most = round(max(costs), 12)  # what is equal may differ in its last digit
        passed = found.clean - found.overkills - found.reviewed_clean
        if passed and most < of_review:
            return []
        left_out = f", {costs[1]:.3g} if it is left out of the choice," if costs[1:] else ""
        return [
            f"these limits do {'little' if most < of_review else 'no'} better than to review every screen: of "
            f"{found.clean} clean ones {passed} pass, {found.overkills} fail and {found.reviewed_clean} go to review, "
            f"and a screen is expected to cost {costs[0]:.3g}{left_out} where its review costs {of_review:g}. To do "
            "better takes more screens to calibrate on, other costs, or a network that tells clean screens from "
            "defective ones"
        ]

    def facts(self) -> dict[str, float | str]:
        """For the manifest: what the limits were chosen for and on, and what they do."""
        found = self.tally
        return {
            "limits_costs": str(self.costs),
            "limits_screens": f"{found.defective} defective, {found.clean} clean",
            "limits_escape": round(found.escape, 4),
            "limits_escape_bound": round(self.escape_bound, 4),
            "limits_proven": "yes" if self.proven else f"no{': they may have chosen the epoch' * self.weights_chosen}",
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
            "held_out_labels": {label: asdict(one) for label, one in self.by_label.items()},
            "escape_bound": self.escape_bound,
            "escape_cap_proven": self.proven,
            "weights_chosen": self.weights_chosen,
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
    glancing: Glancing | None = None,
) -> Calibration:
    """Limits of each label.

    The threshold, from which a label counts as present, gives the best F on the known patches; the review band, which
    holds it, is that of `best_zones` on the highest scores of the screens. Where there is a glance, limits are chosen
    by what the whole network sees, and screens are judged by whichever is worse: with the glance, as on CPUs, or
    without.

    Args:
        probability: (N, L) of the screens' patches, reasoned by screen.
        target: (N, L); 1, 0 or -1.
        screens: (N,) number of each patch's screen.
        labels: L names.
        costs: of the line.
        chose_weights: (N,) patches of the screens that chose the epoch whose weights these are; None: of none.
        glancing: what a glance makes of the screens; None: there is none.

    Raises:
        ValueError: a probability is no number.
    """
    if not np.isfinite(probability).all():
        raise ValueError("a probability is no number: no limits can be chosen on these")
    whole, has, rows = whole_screens(probability, target, screens)
    judging, weights_chosen = np.ones(len(whole), np.bool_), False
    if chose_weights is not None and chose_weights.any():
        fresh = np.array([not chose_weights[group].any() for group in rows], np.bool_)
        weights_chosen = not (fresh & whole.defective).any() or not (fresh & ~whole.defective).any()
        judging = judging if weights_chosen else fresh

    def patches_of(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([np.empty(0, np.int64), *(rows[number] for number in numbers)])

    def thresholds_of(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        those = patches_of(numbers)
        pairs = zip(probability[those].T, target[those].T, strict=True)
        chosen = [best_threshold(score[truth >= 0], truth[truth >= 0] == 1) for score, truth in pairs]
        return rounded(np.array(chosen), DIGITS)

    everything = np.arange(len(whole))
    unknown = np.setdiff1d(np.arange(len(target)), patches_of(everything))  # which a glance must not clear all the same

    def served(chosen_on: NDArray[np.int64], zones: Zones, judged: NDArray[np.int64]) -> Screens:
        if glancing is None:
            return whole.take(judged)
        patches = np.concatenate([patches_of(chosen_on), unknown])
        return worse(whole.take(judged), glancing(patches, zones, [rows[number] for number in judged]), zones)

    found = choose(whole, costs, thresholds_of, judging=judging, served=served)
    as_served = served(everything, found.zones, everything)
    intervals = bootstrap_zones(whole, costs, thresholds_of, step=found.step, judging=judging, served=served)
    windows = [len(group) for group in rows]
    limits = zip(labels, found.thresholds.tolist(), found.zones.tolist(), strict=True)
    return Calibration(
        limits={
            label: LabelLimits(threshold=threshold, review=(low, high)) for label, threshold, (low, high) in limits
        },
        costs=costs,
        tally=tally(as_served, found.zones),
        held_out=found.held_out,
        by_label=dict(zip(labels, escapes_by_label(has, found), strict=True)),
        whole=(tally(whole, found.zones), found.held_out_whole),
        intervals=_of_labels_seen(_no_narrower(intervals, found.held_out, costs), has),
        screens=as_served,
        has=has,
        windows=(min(windows, default=0), max(windows, default=0)),
        weights_chosen=weights_chosen,
    )


def _by_glance(served: Tally | None, whole: Tally | None) -> str:
    """How many of the escapes are those of a glance, and what helps against them; empty if none is."""
    count = 0 if served is None or whole is None else served.escapes - whole.escapes
    return f"; {count} of them by the glance alone, which no band catches. {LESS_GLANCE}" if count else ""


def _no_narrower(intervals: Intervals | None, held_out: Tally | None, costs: Costs) -> Intervals | None:
    """No narrower than Wilson's intervals: replicates of which none has an escape would say that none ever will.

    That of review has both ends of its two kinds of screens, and that of the cost those of the others.
    """
    if intervals is None or held_out is None:
        return intervals
    escape = _widened(intervals.escape, held_out.escape_interval)
    overkill = _widened(intervals.overkill, held_out.overkill_interval)
    review = _widened(intervals.review, held_out.review_interval(costs))
    low, high = (
        costs.of(escape=e, overkill=o, review=r) for e, o, r in zip(escape[1:], overkill[1:], review[1:], strict=True)
    )
    return intervals._replace(
        escape=escape, overkill=overkill, review=review, cost=_widened(intervals.cost, (low, high))
    )


def _of_labels_seen(intervals: Intervals | None, has: NDArray[np.bool_]) -> Intervals | None:
    """Without those of limits that are guessed, as hardly a screen has (S, L) the label: draws of few are all alike."""
    if intervals is None:
        return None
    lows, highs = (
        [one if count >= FEW else None for one, count in zip(ends, has.sum(axis=0).tolist(), strict=True)]
        for ends in (intervals.lows, intervals.highs)
    )
    return intervals._replace(lows=lows, highs=highs)


def _widened(interval: Interval, ends: tuple[float, float]) -> Interval:
    low, high = ends
    return Interval(interval.mean, min(interval.low, low), max(interval.high, high))


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
    return float(np.clip((float(ranked[best]) + float(below)) / 2, NEAREST, 1 - NEAREST))
