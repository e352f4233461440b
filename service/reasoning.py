"""A screen's patches reasoned together, and looked at again where the bundle asks for it: all of step 6.

First once, by all windows of the screen. Then by those that a second look adds where a border may cut a defect
(`engine.second_look`), and then with the windows in doubt seen in all positions (`engine.turned_look`). What is looked
at again is computed by the screen's own device.

A camera takes longer than a device, which would wait for lines and then, after the last one, look at the windows in
doubt with the line waiting. So while lines are still to come and nobody else needs the device, the windows that are
there are reasoned together, and those in doubt are looked at turned (`EarlyLooks`). What that gives is used for windows
that are in doubt among all of the screen, too, and forgotten otherwise: it changes when a look is done, never whether.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from engine import Backend, Window, cover, cut, in_doubt, look_again, turned
from service.scheduler import Queued, Scheduler
from service.waiting import Computed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reasoned:
    """What is known of a screen's windows in the end.

    Attributes:
        computed: their features, all looks in them.
        windows: K, those of a second look last.
        turned: places among them of those that were looked at turned, too.
        probability: (K, C) their scores.
        took_s: time of reasoning and of choosing where to look again, without the looks.
    """

    computed: Computed
    windows: tuple[Window, ...]
    turned: tuple[int, ...]
    probability: NDArray[np.float32]
    took_s: float


class EarlyLooks:
    """Turned looks at one screen while its lines still come, by the thread that brings them.

    Args:
        backend: that reasons.
        scheduler: where the screen is queued.
        queued: the screen.
        pixels: (H, W) of it.
        windows: K of its first look.
        deadline_at: when the answer is no longer of use.

    Attributes:
        found: by place among the windows, their other positions.
    """

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler,
        queued: Queued,
        pixels: NDArray[np.uint8],
        windows: Sequence[Window],
        *,
        deadline_at: float,
    ) -> None:
        self.found: dict[int, Computed] = {}
        self._backend = backend
        self._scheduler = scheduler
        self._queued = queued
        self._pixels = pixels
        self._windows = windows
        self._deadline_at = deadline_at

    def look(self, lines: int) -> None:
        """Look at a window in doubt, if there is one and time for it; `lines` of the frame are there.

        Raises:
            ServiceError: it cannot be computed, or not in time.
            InferenceError: the device failed.
        """
        manifest = self._backend.manifest
        look, side = manifest.turned_look, manifest.patch_px
        late = lines > len(self._pixels) - side  # the last lines would wait for it
        alone = self._scheduler.waiting_patches <= len(self._windows)
        if late or not alone or len(self.found) >= look.most(len(self._windows)):
            return
        there = self._queued.so_far()
        if there is None:
            return
        for place in in_doubt(self._backend.reason(*there), look):
            if place not in self.found:
                strip, places = _in_other_positions(self._pixels, self._windows[place], side)
                again = self._scheduler.compute(strip, places, deadline_at=self._deadline_at, after=self._queued)
                self.found[place] = again
                return


class Reasoner:
    """Reasons over screens with one bundle.

    Args:
        backend: that reasons.
        scheduler: computes features of what is looked at again.
        clock: monotonic seconds.
    """

    def __init__(self, backend: Backend, scheduler: Scheduler, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._clock = clock

    def reason(
        self,
        pixels: NDArray[np.uint8],
        windows: tuple[Window, ...],
        computed: Computed,
        *,
        deadline_at: float,
        early: Mapping[int, Computed] = MappingProxyType({}),
    ) -> Reasoned:
        """One screen.

        Args:
            pixels: (H, W) of it.
            windows: K of the first look.
            computed: their features.
            deadline_at: when the answer is no longer of use.
            early: other positions that were looked at already, by place among the windows.

        Raises:
            ServiceError: no further look can be computed, or not in time.
            InferenceError: the device failed.
        """
        manifest, begun_at = self._backend.manifest, self._clock()
        computing_s: list[float] = []

        def compute(pixels: NDArray[np.uint8], windows: Sequence[Window]) -> Computed:
            since = self._clock()
            again = self._scheduler.compute(pixels, windows, deadline_at=deadline_at, after=computed)
            computing_s.append(self._clock() - since)
            return again

        probability = self._together(computed)
        between = look_again(windows, probability, computed.features.activation, manifest)
        if between:
            computed, windows = computed.joined(compute(pixels, between)), windows + between
            probability = self._together(computed)
        doubtful = in_doubt(probability, manifest.turned_look)
        for place in doubtful:
            again = early.get(place) or compute(*_in_other_positions(pixels, windows[place], manifest.patch_px))
            computed = computed.averaged(place, again)
        if doubtful:
            probability = self._together(computed)
        return Reasoned(
            computed=computed,
            windows=windows,
            turned=doubtful,
            probability=probability,
            took_s=self._clock() - begun_at - sum(computing_s),
        )

    def _together(self, computed: Computed) -> NDArray[np.float32]:
        return self._backend.reason(computed.features.label_features, computed.features.stage1)


def _in_other_positions(
    pixels: NDArray[np.uint8], window: Window, side: int
) -> tuple[NDArray[np.uint8], Sequence[Window]]:
    """A window in its seven other positions, as a frame of their own, one below the other, and its windows."""
    strip = turned(cut(pixels, [window], side)[0, 0]).reshape(-1, side)
    return strip, cover(*strip.shape, patch_px=side)
