"""The time of reasoning is that of reasoning: what is computed for a further look counts as the device's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import Backend, Features, TurnedLook, Window, cover
from service.reasoning import Reasoner
from service.scheduler import Scheduler
from service.waiting import Computed
from tests.service.strategies import FRESH
from tests.service.test_agreement import MANIFEST

SIDE = 64
REASON_S, LOOK_S = 1.0, 100.0


class Ticking:
    """A clock that only moves by what a backend and a scheduler take, and both of these."""

    def __init__(self, score: float) -> None:
        self.manifest = replace(
            MANIFEST, patch_px=SIDE, turned_look=TurnedLook(score_min=0.1, score_max=0.9, ratio_max=0.5)
        )
        self.now = 0.0
        self.looked: list[tuple[tuple[int, ...], int]] = []  # pixels and windows of each further look
        self._score = score

    def clock(self) -> float:
        return self.now

    def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
        self.now += REASON_S
        return np.full(stage1.shape, self._score, np.float32)

    def compute(
        self, frame: NDArray[np.uint8], windows: Sequence[Window], *, deadline_at: float, after: Computed
    ) -> Computed:
        self.now += LOOK_S
        self.looked.append((frame.shape, len(windows)))
        return computed(len(windows))


def computed(patches: int) -> Computed:
    features = Features(
        label_features=np.zeros((patches, 1, 2), np.float32),
        stage1=np.zeros((patches, 1), np.float32),
        activation=np.zeros((patches, 1, 3, 3), np.float32),
    )
    return Computed(features=features, guard={}, self_test=FRESH, queue_s=0.0, features_s=0.0, device=object())


@pytest.mark.parametrize(("score", "between"), [(0.0, 0), (0.0, 2), (0.5, 0), (0.5, 2)])
def test_only_reasoning_counts_as_reasoning(monkeypatch: pytest.MonkeyPatch, score: float, between: int) -> None:
    pixels = np.zeros((SIDE, 4 * SIDE), np.uint8)
    windows = cover(*pixels.shape, patch_px=SIDE)
    more = tuple(Window(-1, -1, 0, SIDE // 2 + SIDE * k) for k in range(between))
    monkeypatch.setattr("service.reasoning.look_again", lambda *_: more)
    ticking = Ticking(score)
    reasoner = Reasoner(cast(Backend, ticking), cast(Scheduler, ticking), clock=ticking.clock)
    found = reasoner.reason(pixels, windows, computed(len(windows)), deadline_at=1e9)
    assert found.windows == windows + more
    assert found.probability.shape == (4 + between, 1)
    assert found.turned == (tuple(range((4 + between) // 2)) if score else ())
    seconds = [(pixels.shape, between)] if between else []
    assert ticking.looked == seconds + [((7 * SIDE, SIDE), 7)] * len(found.turned)
    assert found.took_s == REASON_S * (1 + bool(between) + bool(score))
    assert ticking.now == found.took_s + LOOK_S * len(ticking.looked)
