"""Early looks are done where nobody is kept waiting by them, and are those that are asked for in the end."""

from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from engine import Backend, Features, InferenceError, SecondLook, TurnedLook, Window, cover
from service.early import EarlyLooks
from service.errors import DeadlineExceeded
from service.scheduler import Queued, Scheduler
from tests.service.test_reasoning import LOOK_S, REASON_S, SIDE, Ticking, computed


class Coming:
    """A screen of some rows of two windows, some of which are computed."""

    def __init__(self, there: int, *, idles: bool = True) -> None:
        self.there = there
        self._idles = idles

    def idles(self, batch_size: int) -> bool:
        assert batch_size == 5
        return self._idles

    def so_far(self) -> Features | None:
        return computed(self.there).features if self.there else None


PIXELS = np.zeros((10 * SIDE, 2 * SIDE), np.uint8)
WINDOWS = cover(*PIXELS.shape, patch_px=SIDE)  # 20, of which two may be looked at turned


def early_looks(ticking: Ticking, coming: Coming) -> EarlyLooks:
    ticking.manifest = replace(ticking.manifest, turned_look=TurnedLook(score_min=0.1, score_max=0.9, ratio_max=0.1))
    parts = cast(Backend, ticking), cast(Scheduler, ticking), cast(Queued, coming)
    return EarlyLooks(*parts, PIXELS, WINDOWS, deadline_at=1e9, clock=ticking.clock)


def wait(ticking: Ticking) -> None:
    """So long that a look was short beside it."""
    ticking.now += 100 * LOOK_S


def test_windows_in_doubt_are_looked_at_early_one_at_a_word_and_no_more_than_are_asked_for() -> None:
    ticking, coming = Ticking(0.5), Coming(20)
    early = early_looks(ticking, coming)
    for number in range(1, 4):
        wait(ticking)
        early.look(8 * SIDE)
        assert list(early.found.turned) == list(WINDOWS[:2][:number])
    assert ticking.looked == [((7 * SIDE, SIDE), 7)] * 2
    assert ticking.after == [coming] * 2  # on its device, before all that wait
    assert all(found.queue_s == 0.0 for found in early.found.turned.values())
    assert early.took_s == 2 * (REASON_S + LOOK_S)


def test_windows_at_a_border_are_looked_at_early_as_soon_as_their_lines_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = (Window(row, 0, row * SIDE + SIDE // 2, 0) for row in (2, 4))
    asked: list[tuple[Window, ...]] = []

    def look_again(windows: tuple[Window, ...], *_: object) -> tuple[Window, ...]:
        asked.append(windows)
        return first, second

    monkeypatch.setattr("service.early.look_again", look_again)
    ticking, coming = Ticking(0.0), Coming(10)
    ticking.manifest = replace(ticking.manifest, second_look=SecondLook(score_min=0.05, ratio_max=0.5))
    early = early_looks(ticking, coming)
    for lines, found in (
        (second.top + SIDE - 1, [first]),
        (second.top + SIDE - 1, [first]),
        (6 * SIDE, [first, second]),
    ):
        wait(ticking)
        early.look(lines)
        assert list(early.found.between) == found
    assert asked == [WINDOWS[:10]] * 3
    assert ticking.looked == [(PIXELS.shape, 1)] * 2


@pytest.mark.parametrize(("guard", "looks"), [(0.0, 1), (0.01, 0)])
def test_no_second_look_is_early_where_its_place_in_a_batch_counts(
    monkeypatch: pytest.MonkeyPatch, guard: float, looks: int
) -> None:
    monkeypatch.setattr("service.early.look_again", lambda *_: (Window(0, 0, SIDE // 2, 0),))
    ticking = Ticking(0.0)
    ticking.guard = {"one": guard}
    ticking.manifest = replace(ticking.manifest, second_look=SecondLook(score_min=0.05, ratio_max=0.5))
    early_looks(ticking, Coming(10)).look(5 * SIDE)
    assert len(ticking.looked) == looks


def test_each_kind_of_look_has_its_own_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    doubtful = iter(range(20))  # another window at each word
    monkeypatch.setattr("service.early.look_again", lambda *_: (Window(0, 0, SIDE // 2, 0),))
    monkeypatch.setattr("service.early.in_doubt", lambda *_: (next(doubtful),))
    ticking = Ticking(0.5)
    ticking.manifest = replace(ticking.manifest, second_look=SecondLook(score_min=0.05, ratio_max=0.5))
    early = early_looks(ticking, Coming(20))
    for _ in range(20):
        wait(ticking)
        early.look(5 * SIDE)
    assert ticking.looked == [(PIXELS.shape, 1)] + [((7 * SIDE, SIDE), 7)] * 2


def test_windows_of_a_second_look_are_looked_at_turned_early_too(monkeypatch: pytest.MonkeyPatch) -> None:
    between = Window(0, 0, SIDE // 2, 0)
    monkeypatch.setattr("service.early.look_again", lambda *_: (between,))
    monkeypatch.setattr("service.early.in_doubt", lambda probability, _: (len(probability) - 1,))
    ticking = Ticking(0.5)
    ticking.manifest = replace(ticking.manifest, second_look=SecondLook(score_min=0.05, ratio_max=0.5))
    early = early_looks(ticking, Coming(10))
    for _ in range(2):
        wait(ticking)
        early.look(5 * SIDE)
    assert list(early.found.between) == list(early.found.turned) == [between]
    assert ticking.looked == [(PIXELS.shape, 1), ((7 * SIDE, SIDE), 7)]


@pytest.mark.parametrize(("lines", "looks"), [(9 * SIDE, 1), (9 * SIDE + 1, 0)])
def test_none_is_begun_where_the_last_lines_would_wait_for_it(lines: int, looks: int) -> None:
    ticking = Ticking(0.5)
    early_looks(ticking, Coming(10)).look(lines)
    assert len(ticking.looked) == looks


@pytest.mark.parametrize(("pace", "looks"), [(0.9, 1), (1.1, 2)])
def test_after_the_first_the_pace_of_the_lines_tells_whether_there_is_time(pace: float, looks: int) -> None:
    ticking = Ticking(0.5)
    coming = Coming(0)
    early = early_looks(ticking, coming)
    early.look(SIDE)  # nothing to look at, which says nothing of how long a look takes
    coming.there = 20
    early.look(SIDE)
    left = SIDE // 2
    ticking.now = pace * 2 * LOOK_S * (len(PIXELS) - left) / left
    early.look(len(PIXELS) - left)
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
    assert (dict(early.found.turned), ticking.looked) == ({}, [])


@pytest.mark.parametrize("error", [InferenceError("failed"), DeadlineExceeded("too late")])
def test_one_that_fails_is_left_to_whoever_needs_it(error: Exception) -> None:
    ticking = Ticking(0.5)
    ticking.error = error
    early = early_looks(ticking, Coming(10))
    for _ in range(5):
        wait(ticking)
        early.look(SIDE)
    assert dict(early.found.turned) == {}
    assert len(ticking.after) == 1  # and not again and again
