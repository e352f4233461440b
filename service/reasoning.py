"""A screen's patches reasoned together, and looked at again where the bundle asks for it: all of step 6.

First once, by all windows of the screen. Then by those that a second look adds where a border may cut a defect
(`engine.second_look`), and then with the windows in doubt seen in all positions (`engine.turned_look`). What is looked
at again is computed by the screen's own device.

What was looked at already while the screen's lines came (`service.early`) is not looked at again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from engine import Backend, Window, in_doubt, look_again
from service.early import NOTHING, Looked, in_other_positions
from service.scheduler import Scheduler
from service.stopwatch import Stopwatch
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
        early: Looked = NOTHING,
    ) -> Reasoned:
        """One screen.

        Args:
            pixels: (H, W) of it.
            windows: K of the first look.
            computed: their features.
            deadline_at: when the answer is no longer of use.
            early: what was looked at again already.

        Raises:
            ServiceError: no further look can be computed, or not in time.
            InferenceError: the device failed.
        """
        manifest, spent = self._backend.manifest, Stopwatch(self._clock)

        def compute(pixels: NDArray[np.uint8], windows: Sequence[Window]) -> Computed:
            return self._scheduler.compute(pixels, windows, deadline_at=deadline_at, after=computed)

        with spent("reasoning"):
            probability = self._together(computed)
            between = look_again(windows, probability, computed.features.activation, manifest)
            if between:
                with spent("looks"):
                    # in their order, by as few calls as that allows
                    for is_there, some in groupby(between, early.between.__contains__):
                        run = tuple(some)
                        for again in [early.between[window] for window in run] if is_there else [compute(pixels, run)]:
                            computed = computed.joined(again)
                windows += between
                probability = self._together(computed)
            doubtful = in_doubt(probability, manifest.turned_look)
            for place in doubtful:
                window = windows[place]
                with spent("looks"):
                    again = early.turned.get(window) or compute(*in_other_positions(pixels, window, manifest.patch_px))
                    computed = computed.averaged(place, again)
            if doubtful:
                probability = self._together(computed)
        return Reasoned(
            computed=computed,
            windows=windows,
            turned=doubtful,
            probability=probability,
            took_s=spent.seconds["reasoning"],
        )

    def _together(self, computed: Computed) -> NDArray[np.float32]:
        return self._backend.reason(computed.features.label_features, computed.features.stage1)
