"""Reasoning takes its own time alone, and early looks are done where nobody is kept waiting by them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import Backend, Features, InferenceError, TurnedLook, Window, cover
from service.errors import DeadlineExceeded
from service.reasoning import EarlyLooks, Reasoner
from service.scheduler import Queued, Scheduler
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
        self.batch_size = 5
        self.free_places = 100
        self.now = 0.0
        self.after: list[object] = []
        self.error: Exception | None = None
        self.looked: list[tuple[tuple[int, ...], int]] = []  # pixels and windows of each further look
        self._score = score

    def clock(self) -> float:
        return self.now

    def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
        self.now += REASON_S
        return np.full(stage1.shape, self._score, np.float32)

    def compute(
        self, frame: NDArray[np.uint8], windows: Sequence[Window], *, deadline_at: float, after: object
    ) -> Computed:
        self.now += LOOK_S
        self.after.append(after)
        if self.error is not None:
            raise self.error
        self.looked.append((frame.shape, len(windows)))
        return computed(len(windows))


def computed(patches: int) -> Computed:
    features = Features(
        label_features=np.zeros((patches, 1, 2), np.float32),
        stage1=np.zeros((patches, 1), np.float32),
        activation=np.zeros((patches, 1, 3, 3), np.float32),
        doubt=np.ones(patches, np.float32),
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


class Coming:
    """A screen of some rows of two windows, some of which are computed."""

    def __init__(self, there: int, *, idles: bool = True) -> None:
        self.there = there
        self._idles = idles

    def idles(self, batch_size: int) -> bool:
        assert batch_size == 5
        return self._idles

    def so_far(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        shape = (self.there, 1)
        return (np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)) if self.there else None


PIXELS = np.zeros((10 * SIDE, 2 * SIDE), np.uint8)
WINDOWS = cover(*PIXELS.shape, patch_px=SIDE)  # 20, of which two may be looked at turned


def early_looks(ticking: Ticking, coming: Coming) -> EarlyLooks:
    ticking.manifest = replace(ticking.manifest, turned_look=TurnedLook(score_min=0.1, score_max=0.9, ratio_max=0.1))
    parts = cast(Backend, ticking), cast(Scheduler, ticking), cast(Queued, coming)
    return EarlyLooks(*parts, PIXELS, WINDOWS, deadline_at=1e9, clock=ticking.clock)


def test_windows_in_doubt_are_looked_at_early_one_at_a_word_and_no_more_than_are_asked_for() -> None:
    ticking, coming = Ticking(0.5), Coming(20)
    early = early_looks(ticking, coming)
    for number in range(1, 4):
        early.look(8 * SIDE)
        assert sorted(early.found) == [0, 1][:number]
    assert ticking.looked == [((7 * SIDE, SIDE), 7)] * 2
    assert ticking.after == [coming] * 2  # on its device, before all that wait
    assert all(found.queue_s == 0.0 for found in early.found.values())
    assert early.took_s == 2 * (REASON_S + LOOK_S)


@pytest.mark.parametrize(("lines", "looks"), [(9 * SIDE, 1), (9 * SIDE + 1, 0)])
def test_none_is_begun_where_the_last_lines_would_wait_for_it(lines: int, looks: int) -> None:
    ticking = Ticking(0.5)
    early_looks(ticking, Coming(10)).look(lines)
    assert len(ticking.looked) == looks


@pytest.mark.parametrize(
    ("coming", "score", "places"),
    [
        (Coming(10, idles=False), 0.5, 100),
        (Coming(0), 0.5, 100),
        (Coming(10), 0.0, 100),  # without doubt
        (Coming(10), 0.5, 26),  # another such screen would be refused meanwhile
    ],
)
def test_none_is_begun_where_the_device_or_a_place_is_needed(coming: Coming, score: float, places: int) -> None:
    ticking = Ticking(score)
    ticking.free_places = places
    early = early_looks(ticking, coming)
    early.look(SIDE)
    assert (early.found, ticking.looked) == ({}, [])


@pytest.mark.parametrize("error", [InferenceError("failed"), DeadlineExceeded("too late")])
def test_one_that_fails_is_left_to_whoever_needs_it(error: Exception) -> None:
    ticking = Ticking(0.5)
    ticking.error = error
    early = early_looks(ticking, Coming(10))
    for _ in range(5):
        early.look(SIDE)
    assert early.found == {}
    assert len(ticking.after) == 2  # and not again and again


def test_what_was_looked_at_early_is_not_looked_at_again() -> None:
    ticking = Ticking(0.5)
    pixels = np.zeros((SIDE, 4 * SIDE), np.uint8)
    windows = cover(*pixels.shape, patch_px=SIDE)
    reasoner = Reasoner(cast(Backend, ticking), cast(Scheduler, ticking), clock=ticking.clock)
    early = {0: computed(7), 3: computed(7)}  # 3 is none of those that are asked for in the end
    found = reasoner.reason(pixels, windows, computed(4), deadline_at=1e9, early=early)
    assert found.turned == (0, 1)
    assert len(ticking.looked) == 1
