"""Is a screen's verdict the training module's own, as far as rounding lets it be?

Held against what follows by the same rules from the probabilities and maps of the module, which the export sealed. The
guard band is one of these rules: that of the device which the screen was on. The windows of a second look are the
module's own, and those that it looked at turned. Boxes may differ as rounding moves them, see `service.agreement`. What
a glance clears must change neither the verdict nor the labels of a screen that has a defect; of a clean one it may, for
there it spares the whole network a mistake. Pure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine import Manifest, Window, cover
from service.aggregation import Judgement, Observed, aggregate
from service.agreement import HAIR, Comparison, agree
from service.inspector import Inspection
from service.meter import Brightness
from service.sealed import SealedScreen
from service.selftest import JUST_PASSED
from service.verdict import Outcome

SHIFTED = 0.01  # more than what was looked at by one alone moves the scores of the windows that it is reasoned with

Place = tuple[int, int]  # top and left of a window


class _Look(NamedTuple):
    """Whether a window was looked at turned, and its scores (C,) in the end."""

    turned: bool
    scores: NDArray[np.float32]


_Looks = dict[Place, _Look]


def beside_module(
    inspection: Inspection,
    sealed: SealedScreen,
    activation: NDArray[np.float32],
    manifest: Manifest,
    *,
    tolerance: float,
    has_defect: bool,
) -> Comparison:
    """Compare one screen as it was inspected here with what the module makes of it.

    Args:
        inspection: here.
        sealed: the module's windows and probabilities.
        activation: the module's maps (K, C, h, w).
        manifest: of the bundle.
        tolerance: by which a score may differ.
        has_defect: whether the screen truly has one.
    """
    both = _Both(inspection, sealed, activation, manifest, tolerance, has_defect)
    for check in CHECKS:
        if (why := check(both)) is not None:
            return Comparison("different", why)
    assert inspection.verdict is not None  # nothing was answered before
    # what a glance hides from a further look at a defect is no rounding
    alike = both.same_looks or (has_defect and both.hidden)
    return agree(inspection.verdict, both.wanted, manifest, tolerance=tolerance, same_windows=alike)


@dataclass(frozen=True, eq=False)
class _Both:
    """One screen here and by the module; the arguments are those of `beside_module`."""

    inspection: Inspection
    sealed: SealedScreen
    activation: NDArray[np.float32]
    manifest: Manifest
    tolerance: float
    has_defect: bool

    @cached_property
    def expected(self) -> tuple[Window, ...]:
        """Windows that cover the frame."""
        manifest, shape = self.manifest, self.inspection.frame.pixels.shape
        return cover(*shape, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px)

    @property
    def added(self) -> list[Place]:
        """Where the module's second look had windows."""
        return self.sealed.windows[len(self.expected) :]

    @cached_property
    def alone(self) -> NDArray[np.float32]:
        """The module's probabilities (K, C)."""
        return np.array(self.sealed.probability, np.float32)

    @cached_property
    def spared(self) -> dict[int, NDArray[np.float32]]:
        """The windows of the module that a glance cleared, with their scores (C,) here, which must pass.

        The whole network gives such a window a score of its own, and a glance that of any clean one.
        """
        low, found = self.manifest.review_low, self.inspection
        looked = zip(found.windows, found.probability, found.cleared, strict=True)
        mine = {(window.top, window.left): scores for window, scores, cleared in looked if cleared}
        return {k: mine[at] for k, at in enumerate(self.sealed.windows) if at in mine and (mine[at] < low).all()}

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """The module's probabilities (K, C), and of what a glance cleared those here."""
        probability = self.alone.copy()
        for k, scores in self.spared.items():
            probability[k] = scores
        return probability

    @cached_property
    def wanted(self) -> Judgement:
        """What the verdict has to be."""
        return self.judged(self.probability)

    def judged(self, probability: NDArray[np.float32]) -> Judgement:
        """What follows from probabilities (K, C) of the module's windows, with its maps."""
        frame = self.inspection.frame
        seen = Observed(
            brightness=Brightness.of(frame.pixels),
            size_from=frame.size_from,
            expected=self.expected,
            windows=self.expected + tuple(Window(-1, -1, top, left) for top, left in self.added),  # in no grid
            windows_turned=len(self.sealed.turned),
            windows_cleared=int(self.inspection.cleared.sum()),
            probability=probability,
            activation=self.activation,
            self_test=JUST_PASSED,
        )
        return aggregate(seen, self.manifest, self.inspection.guard)

    @cached_property
    def cleared(self) -> set[Place]:
        """Windows of which the scores are not held against each other."""
        return {self.sealed.windows[k] for k in self.spared}

    @cached_property
    def looks(self) -> tuple[_Looks, _Looks]:
        """Here, and by the module."""
        found, places = self.inspection, [(window.top, window.left) for window in self.inspection.windows]
        return (
            _looks(places, found.turned, found.probability),
            _looks(self.sealed.windows, self.sealed.turned, self.probability),
        )

    @cached_property
    def same_looks(self) -> bool:
        """Whether both have seen the same windows, and the same ones turned."""
        mine, module = (
            {place: look.turned for place, look in looks.items() if place not in self.cleared} for looks in self.looks
        )
        return mine == module

    @property
    def hidden(self) -> bool:
        """Whether the module looked again over a window that a glance cleared, where the service did not look."""
        side, found = self.manifest.patch_px, self.inspection
        places = [(window.top, window.left) for window in found.windows]
        cleared = [place for place, clear in zip(places, found.cleared, strict=True) if clear]
        return any(
            abs(top - other_top) < side and abs(left - other_left) < side
            for top, left in set(self.sealed.windows) - set(places)
            for other_top, other_left in cleared
        )


def _looks(places: Sequence[Place], turned: Sequence[int], probability: NDArray[np.float32]) -> _Looks:
    return {place: _Look(k in turned, probability[k]) for k, place in enumerate(places)}


def _windows_of_the_frame(both: _Both) -> str | None:
    places = [(window.top, window.left) for window in both.expected]
    if places == both.sealed.windows[: len(places)]:
        return None
    return "the windows that were sealed do not begin with those that cover the frame"


def _windows_of_the_second_look(both: _Both) -> str | None:
    most = both.manifest.second_look.most(len(both.expected))
    if len(both.added) <= most:
        return None
    return f"{len(both.added)} windows of a second look were sealed, of which the bundle takes {most}"


def _scores_of_the_windows(both: _Both) -> str | None:
    if both.alone.shape == both.activation.shape[:2]:
        return None
    return "the scores that were sealed are not those of its windows"


def _windows_looked_at_turned(both: _Both) -> str | None:
    turned, most = len(both.sealed.turned), both.manifest.turned_look.most(len(both.sealed.windows))
    if turned <= most:
        return None
    return f"{turned} windows looked at turned were sealed, of which the bundle takes {most}"


def _what_a_glance_clears(both: _Both) -> str | None:
    if not both.has_defect or _told(both.judged(both.alone)) == _told(both.wanted):
        return None
    return "a glance clears what changes the verdict or the labels of a screen that has a defect"


def _told(judgement: Judgement) -> tuple[Outcome, dict[str, bool]]:
    """The verdict, and which labels there are."""
    return judgement.verdict, {label: found.present for label, found in judgement.labels.items()}


def _scores_by_window(both: _Both) -> str | None:
    """The scores of every window that both have seen, but for what a glance cleared, differ by no more than they may.

    One that was looked at turned by one alone has other scores. It may be so where the one that did not look had a
    score as near to a limit of the doubt, or had no such look left.
    """
    (mine, module), look = both.looks, both.manifest.turned_look
    within = (both.tolerance if both.same_looks else max(both.tolerance, SHIFTED)) + HAIR
    limits = np.array([[look.score_min], [look.score_max]])
    for place in sorted((mine.keys() & module.keys()) - both.cleared):
        one, other = mine[place], module[place]
        window = f"the window {place[0]} px from the top and {place[1]} px from the left"
        if one.turned == other.turned:
            apart = np.abs(one.scores - other.scores)
            if not (apart <= within).all():
                return f"{window} scores otherwise, by {apart.max():.2g}"
            continue
        once, looks = (other, module) if one.turned else (one, mine)
        near = (np.abs(once.scores - limits) <= within).any()
        if not near and sum(other.turned for other in looks.values()) < look.most(len(looks)):
            return f"{window} was looked at turned by one alone, and is in no doubt for the other"
    return None


# in this order: the later ones rely on the form that the first ones ask for
CHECKS: tuple[Callable[[_Both], str | None], ...] = (
    _windows_of_the_frame,
    _windows_of_the_second_look,
    _scores_of_the_windows,
    _windows_looked_at_turned,
    _what_a_glance_clears,
    _scores_by_window,
)
