"""A screen's patches reasoned together, and looked at again where the bundle asks for it: all of step 6.

First once, by all windows of the screen. Then by those that a second look adds where a border may cut a defect
(`engine.second_look`), and then with the windows in doubt seen in all positions (`engine.turned_look`). What is looked
at again is computed by the screen's own device.

A camera takes longer than a device, which would wait for lines and then, after the last one, look at the windows in
doubt with the line waiting. So while it has nothing to do and lines are still to come, the windows that are there are
reasoned together, and those in doubt are looked at turned (`EarlyLooks`). What that gives is used for windows that are
in doubt among all of the screen, too, and forgotten otherwise; one that failed is done again. So it changes when a look
is done, and never what is judged; at most twice as many are done as are asked for.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from engine import POSITIONS, Backend, InferenceError, Window, cover, cut, in_doubt, look_again, turned
from service.errors import ServiceError
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
        clock: monotonic seconds.

    Attributes:
        found: by place among the windows, their other positions; their time in the queue is nobody's waiting.
        took_s: time that all of this took.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.found: dict[int, Computed] = {}
        self.took_s = 0.0
        self._backend = backend
        self._scheduler = scheduler
        self._queued = queued
        self._pixels = pixels
        self._windows = windows
        self._deadline_at = deadline_at
        self._clock = clock
        self._left = backend.manifest.turned_look.most(len(windows))

    def look(self, lines: int) -> None:
        """Look at a window in doubt, if there is one and time for it; `lines` of the frame are there."""
        late = lines > len(self._pixels) - self._backend.manifest.patch_px  # the last lines would wait for it
        # another such screen that comes meanwhile is not to be refused for it
        room = self._scheduler.free_places >= len(self._windows) + POSITIONS - 1
        if not self._left or late or not room or not self._queued.idles(self._backend.batch_size):
            return
        begun_at = self._clock()
        with suppress(InferenceError, ServiceError):  # whoever needs it hears of it then
            self._look()
        self.took_s += self._clock() - begun_at

    def _look(self) -> None:
        there, manifest = self._queued.so_far(), self._backend.manifest
        if there is None:
            return
        for place in in_doubt(self._backend.reason(*there), manifest.turned_look):
            if place not in self.found:
                self._left -= 1
                strip, places = _in_other_positions(self._pixels, self._windows[place], manifest.patch_px)
                again = self._scheduler.compute(strip, places, deadline_at=self._deadline_at, after=self._queued)
                self.found[place] = replace(again, queue_s=0.0)
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
