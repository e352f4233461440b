"""A screen's patches reasoned together, and looked at again where the bundle asks for it: all of step 6.

First once, by all windows of the screen. Then by those that a second look adds where a border may cut a defect
(`engine.second_look`), and then with the windows in doubt seen in all positions (`engine.turned_look`). What is looked
at again is computed by the screen's own device.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine import Backend, Window, cover, cut, in_doubt, look_again, turned
from service.scheduler import Scheduler
from service.waiting import Computed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reasoned:
    """What is known of a screen's windows in the end.

    Attributes:
        computed: their features, all looks in them.
        windows: K, those of a second look last.
        turned: places among them of those that were looked at turned, too.
        probability: (K, C) their scores.
        took_s: time of the reasoning alone.
    """

    computed: Computed
    windows: tuple[Window, ...]
    turned: tuple[int, ...]
    probability: NDArray[np.float32]
    took_s: float


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
        self, pixels: NDArray[np.uint8], windows: tuple[Window, ...], computed: Computed, *, deadline_at: float
    ) -> Reasoned:
        """One screen.

        Args:
            pixels: (H, W) of it.
            windows: K of the first look.
            computed: their features.
            deadline_at: when the answer is no longer of use.

        Raises:
            ServiceError: no further look can be computed, or not in time.
            InferenceError: the device failed.
        """
        manifest = self._backend.manifest
        found = self._together(computed, windows)
        between = look_again(windows, found.probability, computed.features.activation, manifest)
        if between:
            again = self._scheduler.compute(pixels, between, deadline_at=deadline_at, after=computed)
            found = self._together(computed.joined(again), windows + between, before_s=found.took_s)
        doubtful = in_doubt(found.probability, manifest.turned_look)
        if doubtful:
            computed = found.computed
            for window in doubtful:
                strip, places = _in_all_positions(pixels, found.windows[window], manifest.patch_px)
                again = self._scheduler.compute(strip, places, deadline_at=deadline_at, after=computed)
                computed = computed.averaged(window, again)
            found = self._together(computed, found.windows, turned=doubtful, before_s=found.took_s)
        return found

    def _together(
        self,
        computed: Computed,
        windows: tuple[Window, ...],
        *,
        turned: tuple[int, ...] = (),
        before_s: float = 0.0,
    ) -> Reasoned:
        since = self._clock()
        probability = self._backend.reason(computed.features.label_features, computed.features.stage1)
        return Reasoned(
            computed=computed,
            windows=windows,
            turned=turned,
            probability=probability,
            took_s=before_s + self._clock() - since,
        )


def _in_all_positions(
    pixels: NDArray[np.uint8], window: Window, side: int
) -> tuple[NDArray[np.uint8], Sequence[Window]]:
    """A window's other positions as a frame of their own, one below the other, and its windows."""
    strip = turned(cut(pixels, [window], side)[0, 0]).reshape(-1, side)
    return strip, cover(*strip.shape, patch_px=side)
