"""What a glance clears of known screens, and what these score then, whatever its limit is.

Limits are to be judged on screens that had no part in the choice, and the limit of a glance follows from them: so it is
chosen again and again, on these screens and those. The whole network and the glance see each window once; what a limit
clears has the features of a clean window from then on, and its screen is reasoned anew, as the engine does it.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from engine import Backend, Features, Glance, changed_copy, in_doubt, infer, load, look_turned, turned
from training.datasets import PatchSet
from training.glance import CLEARS_ALL, Chosen, Doubts, choose, doubts_of, limit_of, telling
from training.zones import Zones


class Clearing:
    """Screens of a set, of which the whole network and a glance have seen every window.

    Args:
        backend: the bundle's, which must stay open: what a limit leaves may be looked at turned.
        patches: the set.
        doubts: of the glance.
        clean: features of the one window (1, ...) that stands for those that are cleared.
        lost: share of the windows in which a defect is found that may be cleared.
        most: what the limit is at most.
        blind: whether these screens had no part in choosing `most`; else it may not help where they judge.

    Attributes:
        probability: (N, L) by the whole network, with turned looks where the bundle asks for them.
    """

    def __init__(
        self,
        backend: Backend,
        patches: PatchSet,
        doubts: Doubts,
        clean: Features,
        *,
        lost: float,
        most: float,
        blind: bool,
    ) -> None:
        self._backend, self._patches, self._doubts, self._clean = backend, patches, doubts, clean
        self._lost, self._most, self._most_judged = lost, most, most if blind else 1.0
        self._features: dict[int, Features] = {}  # of screens, by the number of the first patch
        self._others: dict[int, Features] = {}  # of windows in their other positions, by the number of the patch
        self._cleared: dict[tuple[int, int], NDArray[np.float32]] = {}  # by that number, and how many are cleared
        once = np.zeros(patches.labels.shape, np.float32)
        self.probability = np.zeros_like(once)
        for rows in track(patches.by_screen(), "screens seen whole", transient=True):
            features, once[rows] = infer(backend, patches.pixels(rows), glance=False)
            self._features[int(rows[0])] = _without_maps(features)
            self.probability[rows] = self._reasoned(rows, np.zeros(len(rows), np.bool_))
        self._once = once

    def served(self, rows: NDArray[np.int64], doubt_min: float) -> NDArray[np.float32]:
        """Probabilities (K, L) of all K windows of a screen, given by their numbers, where a glance has a limit."""
        cleared = Glance(doubt_min=doubt_min).clears(self._doubts.windows[rows])
        key = int(rows[0]), int(cleared.sum())  # those of least doubt: their number tells which they are
        if not cleared.any():
            return self.probability[rows]
        if key not in self._cleared:
            self._cleared[key] = self._reasoned(rows, cleared)
        return self._cleared[key]

    def served_all(self, doubt_min: float) -> NDArray[np.float32]:
        """Probabilities (N, L) of the whole set, where a glance has a limit."""
        probability = np.zeros_like(self.probability)
        for rows in self._patches.by_screen():
            probability[rows] = self.served(rows, doubt_min)
        return probability

    def highest(
        self, chosen_on: NDArray[np.int64], zones: Zones, screens: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.float64]:
        """See `training.calibration.Glancing`; windows that show nothing to choose a limit by clear nothing."""
        found = np.asarray(self._found(zones[:, 0])[chosen_on].any(axis=1))
        doubt_min = 0.0
        if found.any():
            most = min(self._most_judged, self._doubts.most(self._backend.manifest, low=zones[:, 0]))
            doubt_min = limit_of(self._doubts.windows[chosen_on], found, lost=self._lost, most=most)
        highest = np.zeros((len(screens), len(self._patches.label_names)))
        for screen, rows in zip(highest, screens, strict=True):
            screen[:] = self.served(rows, doubt_min).max(axis=0)
        return highest

    def choose(self, low: NDArray[np.float64]) -> Chosen:
        """The limit for these lows (L,) of the labels' bands, chosen on the whole set.

        Raises:
            ValueError: no defect is found in any window, no golden patch tells anything, nothing would be cleared, or
                what stands for a cleared window tells something.
        """
        manifest = self._backend.manifest
        self._doubts.refuse_silent(manifest, low=low)
        windows, most = self._doubts.windows, min(self._most, self._doubts.most(manifest, low=low))
        chosen = choose(windows, self._found(low), self._patches.screens, lost=self._lost, most=most)
        probability = self._backend.reason(self._clean.label_features, self._clean.stage1)
        if telling(probability, manifest, low=low).any():
            scores = ", ".join(f"{score:.2g}" for score in probability[0])
            raise ValueError(f"what stands for a cleared window has the scores {scores}, and would not pass")
        return chosen

    def _found(self, low: NDArray[np.float64]) -> NDArray[np.bool_]:
        """The labels (N, L) that are there, or may be, and that the whole network finds; see `training.glance`."""
        may_be_there = self._patches.labels != 0
        return np.asarray(telling(self._once, self._backend.manifest, low=low) & may_be_there)

    def _reasoned(self, rows: NDArray[np.int64], cleared: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Probabilities (K, L) of a screen some of whose windows (K,) are cleared."""
        seen = self._features[int(rows[0])]
        features = replace(
            seen,
            label_features=np.where(cleared[:, None, None], self._clean.label_features, seen.label_features),
            stage1=np.where(cleared[:, None], self._clean.stage1, seen.stage1),
        )
        once = self._backend.reason(features.label_features, features.stage1)
        doubtful = in_doubt(once, self._backend.manifest.turned_look)
        if not doubtful:
            return once
        features = look_turned(features, doubtful, lambda window: self._turned(int(rows[window])))
        return self._backend.reason(features.label_features, features.stage1)

    def _turned(self, row: int) -> Features:
        """Of the other positions of a window, by the whole network."""
        if row not in self._others:
            found, _ = infer(self._backend, turned(self._patches.patch(row)), glance=False)
            self._others[row] = _without_maps(found)
        return self._others[row]


@contextmanager
def clearing(bundle: Path, patches: PatchSet, *, lost: float, blind: bool = True) -> Iterator[Clearing]:
    """What the glance of a bundle clears of a set, until the block ends; by a limit that is no higher than its own.

    A few windows with a defect may all have a high doubt, and a limit that was chosen on many knows better.

    Args:
        bundle: with a glance.
        patches: of its labels and patch size.
        lost: share of the windows in which a defect is found that may be cleared, below 1.
        blind: whether the limit that it has was chosen without these screens.

    Raises:
        BundleError: the bundle is not whole.
        InferenceError: a runtime failed.
    """
    with changed_copy(bundle, glance=CLEARS_ALL) as copy:
        doubts = doubts_of(copy, patches)
        with closing(load(copy, "onnxruntime", precision="fp32")) as backend:
            clean = backend.features(patches.pixels([int(doubts.windows.argmin())]))
    with closing(load(bundle)) as backend:
        yield Clearing(backend, patches, doubts, clean, lost=lost, most=backend.manifest.glance.doubt_min, blind=blind)


def _without_maps(features: Features) -> Features:
    """They take most memory and tell no score."""
    n, labels = features.stage1.shape
    return replace(features, activation=np.zeros((n, labels, 1, 1), np.float32))
