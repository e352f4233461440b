"""Looks again at a screen while its lines still come: what step 6 would do after the last one, with the line waiting.

A camera takes longer than a device, which would wait for lines. So while it has nothing to do and lines are still to
come, the windows that are there are reasoned together, and looked at again as `service.reasoning` does it with all of
them. What that gives is used where it is asked for among all of the screen, too, and forgotten otherwise. So it changes
when a look is done, and never what is judged; of each kind at most as many are done early as a screen may ask for.

Where a score hangs on its place in a batch, as on GPUs, no second look is early: its windows share their batches, and
their places there would be a matter of pace.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from engine import POSITIONS, Backend, Features, InferenceError, Window, cover, cut, in_doubt, look_again, turned
from service.errors import ServiceError
from service.scheduler import Queued, Scheduler
from service.waiting import Computed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Looked:
    """What of a screen was looked at again, by window; its time in the queue is nobody's waiting.

    Attributes:
        between: windows of a second look.
        turned: other positions of windows of either look.
    """

    between: Mapping[Window, Computed]
    turned: Mapping[Window, Computed]


NOTHING = Looked(between=MappingProxyType({}), turned=MappingProxyType({}))


class EarlyLooks:
    """Further looks at one screen, by the thread that brings its lines.

    Args:
        backend: that reasons.
        scheduler: where the screen is queued.
        queued: the screen.
        pixels: (H, W) of it.
        windows: K of its first look.
        deadline_at: when the answer is no longer of use.
        clock: monotonic seconds.

    Attributes:
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
        self.took_s = 0.0
        self._backend = backend
        self._scheduler = scheduler
        self._queued = queued
        self._pixels = pixels
        self._windows = tuple(windows)
        self._deadline_at = deadline_at
        self._clock = clock
        self._between: dict[Window, Computed] = {}
        self._turned: dict[Window, Computed] = {}
        manifest = backend.manifest
        self._between_left = 0 if any(backend.guard.values()) else manifest.second_look.most(len(windows))
        self._turned_left = manifest.turned_look.most(len(windows))
        self._begun_at = clock()
        self._slowest_s = 0.0  # of the looks so far

    @property
    def found(self) -> Looked:
        """What was found so far."""
        return Looked(between=self._between, turned=self._turned)

    def look(self, lines: int) -> None:
        """Look at a window again, if one is in doubt and there is time for it; `lines` of the frame are there."""
        # another such screen that comes meanwhile is not to be refused for it
        room = self._scheduler.free_places >= len(self._windows) + POSITIONS - 1
        left = self._between_left or self._turned_left
        if not left or self._late(lines) or not room or not self._queued.idles(self._backend.batch_size):
            return
        begun_at = self._clock()
        try:
            self._look(lines)
        except (InferenceError, ServiceError):  # whoever needs it hears of it, and until then it is not tried again
            self._between_left = self._turned_left = 0
        self.took_s += self._clock() - begun_at

    def _late(self, lines: int) -> bool:
        """Whether the last lines may be there before a look is done, and would wait for it."""
        left = len(self._pixels) - lines
        if not self._slowest_s:
            return left < self._backend.manifest.patch_px
        return left * (self._clock() - self._begun_at) < 2 * self._slowest_s * lines  # at the pace so far

    def _look(self, lines: int) -> None:
        manifest = self._backend.manifest
        features, windows = self._queued.so_far(), self._windows
        if features is None:
            return
        windows = windows[: len(features.stage1)]
        probability = self._together(features)
        between = tuple(
            window
            for window in look_again(windows, probability, features.activation, manifest)
            if window.top + manifest.patch_px <= lines
        )
        for window in between:
            if window not in self._between and self._between_left:
                self._between_left -= 1
                self._between[window] = self._compute(self._pixels, [window])
                return
        if there := tuple(window for window in between if window in self._between):
            features = Features.joined([features, *(self._between[window].features for window in there)])
            windows += there
            probability = self._together(features)
        for place in in_doubt(probability, manifest.turned_look):
            window = windows[place]
            if window not in self._turned and self._turned_left:
                self._turned_left -= 1
                self._turned[window] = self._compute(*in_other_positions(self._pixels, window, manifest.patch_px))
                return

    def _together(self, features: Features) -> NDArray[np.float32]:
        return self._backend.reason(features.label_features, features.stage1)

    def _compute(self, pixels: NDArray[np.uint8], windows: Sequence[Window]) -> Computed:
        begun_at = self._clock()
        try:
            found = self._scheduler.compute(pixels, windows, deadline_at=self._deadline_at, after=self._queued)
        finally:
            self._slowest_s = max(self._slowest_s, self._clock() - begun_at)
        return replace(found, queue_s=0.0)


def in_other_positions(
    pixels: NDArray[np.uint8], window: Window, side: int
) -> tuple[NDArray[np.uint8], Sequence[Window]]:
    """A window in its seven other positions, as a frame of their own, one below the other, and its windows."""
    strip = turned(cut(pixels, [window], side)[0, 0]).reshape(-1, side)
    return strip, cover(*strip.shape, patch_px=side)
