"""Screens whose lines are still coming, and devices that have batches of several screens at a time."""

import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from structlog.testing import capture_logs

from engine import Batch, DeviceLost, FakeBackend, Features, InferenceError, Window, cover, cut
from service.errors import DeadlineExceeded, NotReady
from tests.service.devices import (
    BATCH,
    GUARD_S,
    PATCH_PX,
    Device,
    held_at,
    line,
    score_of,
    until,
)

WIDTH = 5 * PATCH_PX  # a row of windows is a batch


def tall(number: int, rows: int) -> NDArray[np.uint8]:
    """A frame of so many rows of windows, whose patches carry the screen's number and their own."""
    frame = np.full((rows * PATCH_PX, WIDTH), number, np.uint8)
    for index, window in enumerate(cover(*frame.shape, patch_px=PATCH_PX)):
        frame[window.top, window.left] = index
    return frame


class Pipelined(FakeBackend):
    """A runtime that has two batches under way, as a GPU's; each is computed as it is collected."""

    def __init__(self, device: Device) -> None:
        super().__init__(device.backend().manifest, device)

    def features_many(self, batches: Iterable[Batch]) -> Generator[Features]:
        running: deque[Batch] = deque()
        for batch in batches:
            running.append(batch)
            if len(running) == 2:
                yield self._computed(running.popleft())
        while running:
            yield self._computed(running.popleft())

    def _computed(self, batch: Batch) -> Features:
        return self.features(batch.pixels, glance=batch.glance)


def test_a_batch_is_computed_as_soon_as_its_lines_are_there() -> None:
    device = Device()
    frame = tall(1, 3)
    with line(device) as here:
        windows = cover(*frame.shape, patch_px=PATCH_PX)
        with here.scheduler.queue(frame, windows, deadline_at=time.monotonic() + GUARD_S) as queued:
            queued.arrived(PATCH_PX - 1)
            time.sleep(0.02)
            assert device.screens == []
            queued.arrived(PATCH_PX)
            until(lambda: len(device.screens) == 1)
            queued.arrived(3 * PATCH_PX - 1)
            until(lambda: len(device.screens) == 2)
            time.sleep(0.02)
            assert len(device.screens) == 2
            queued.arrived(3 * PATCH_PX)
            computed = queued.features()
    assert len(computed.features.stage1) == 15
    assert computed.queue_s < GUARD_S
    assert [patches for _, patches in device.screens] == [list(range(k, k + 5)) for k in (0, 5, 10)]


def test_a_screen_that_is_still_coming_does_not_hold_the_device_and_goes_first_when_it_is_there() -> None:
    device, gate = held_at(2)
    slow = tall(1, 2)
    with (
        line(device) as here,
        here.scheduler.queue(
            slow, cover(*slow.shape, patch_px=PATCH_PX), deadline_at=time.monotonic() + GUARD_S
        ) as queued,
    ):
        queued.arrived(PATCH_PX)
        until(lambda: len(device.screens) == 1)
        second, third = here.send(2, 5), here.send(3, 5)
        gate.wait_for()  # the device has gone on
        queued.arrived(2 * PATCH_PX)
        gate.opened.set()
        queued.features()
        for answer in (second, third):
            answer.result(GUARD_S)
    assert [number for number, _ in device.screens] == [1, 2, 1, 3]


def test_a_screen_whose_lines_stop_is_withdrawn_and_leaves_nothing_behind() -> None:
    device = Device()
    frame = tall(1, 2)
    with line(device, max_patches=10) as here:
        with here.scheduler.queue(frame, cover(*frame.shape, patch_px=PATCH_PX), deadline_at=1e12) as queued:
            queued.arrived(PATCH_PX)
            until(lambda: len(device.screens) == 1)
        until(lambda: here.scheduler.waiting_patches == 0)
        here.compute(2, 10)


def test_a_screen_that_is_still_coming_as_the_service_stops_is_told() -> None:
    device = Device()
    frame = tall(1, 2)
    with (
        line(device) as here,
        here.scheduler.queue(
            frame, cover(*frame.shape, patch_px=PATCH_PX), deadline_at=time.monotonic() + GUARD_S
        ) as queued,
    ):
        queued.arrived(PATCH_PX)
        until(lambda: len(device.screens) == 1)
        here.scheduler.close()
        queued.arrived(2 * PATCH_PX)
        with pytest.raises(NotReady):
            queued.features()
        assert here.scheduler.waiting_patches == 0


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=5), st.randoms())
def test_in_whatever_order_lines_come_every_screen_gets_its_own_features(
    plan: Sequence[tuple[int, int]], random: object
) -> None:
    device = Device()
    frames = [tall(number, rows) for number, (rows, _) in enumerate(plan)]
    with line(Pipelined(device), max_patches=1000) as here:

        def send(number: int) -> Features:
            frame, step = frames[number], plan[number][1]
            with here.scheduler.queue(
                frame, cover(*frame.shape, patch_px=PATCH_PX), deadline_at=time.monotonic() + GUARD_S
            ) as queued:
                for lines in range(0, len(frame), step):
                    queued.arrived(lines)
                queued.arrived(len(frame))
                return queued.features().features

        for frame, features in zip(frames, here.pool.map(send, range(len(plan))), strict=True):
            count = BATCH * len(frame) // PATCH_PX
            np.testing.assert_allclose(1 / (1 + np.exp(-features.stage1[:, 0])), score_of(np.arange(count)), rtol=1e-5)
        assert here.scheduler.waiting_patches == 0


@pytest.mark.parametrize("error", [InferenceError("out of memory"), OSError("/dev/nvidia0")])
def test_a_batch_that_fails_beside_those_of_other_screens_fails_its_own_alone(error: Exception) -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise error

    device, gate = held_at(9)
    held = device.on_batch

    def on_batch(number: int) -> None:
        held(number)
        fail(number)

    device.on_batch = on_batch
    with capture_logs(), line(Pipelined(device)) as here:
        first = here.send(9, 5)
        gate.wait_for()  # by then the others wait, and go to the device one behind the other
        answers = {number: here.send(number, 10) for number in (1, 2, 3)}
        gate.opened.set()
        first.result(GUARD_S)
        for number in (1, 3):
            assert len(answers[number].result(GUARD_S).features.stage1) == 10
        assert isinstance(answers[2].exception(GUARD_S), InferenceError)
        assert here.scheduler.waiting_patches == 0
        assert len(here.compute(4, 5).features.stage1) == 5


def test_a_batch_that_cannot_be_cut_fails_its_own_screen_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_others(frame: NDArray[np.uint8], windows: Sequence[Window], patch_px: int) -> NDArray[np.uint8]:
        if frame[1, 1] == 2:
            raise MemoryError
        return cut(frame, windows, patch_px)

    monkeypatch.setattr("service.scheduler.cut", cut_others)
    device, gate = held_at(9)
    with capture_logs(), line(Pipelined(device)) as here:
        first = here.send(9, 5)
        gate.wait_for()
        answers = {number: here.send(number, 10) for number in (1, 2, 3)}
        gate.opened.set()  # while the first batches are at the device, those of screen 2 are cut
        first.result(GUARD_S)
        for number in (1, 3):
            assert len(answers[number].result(GUARD_S).features.stage1) == 10
        assert isinstance(answers[2].exception(GUARD_S), InferenceError)
        assert here.scheduler.waiting_patches == 0
        # and where nothing is at the device
        assert isinstance(here.pool.submit(here.compute, 2).exception(GUARD_S), InferenceError)
        assert len(here.compute(4, 5).features.stage1) == 5


def test_all_that_is_at_a_device_is_lost_with_it_and_what_waits_is_not() -> None:
    device, gate = held_at(9)
    held = device.on_batch
    lost: list[int] = []

    def lose(number: int) -> None:
        held(number)
        if number == 1 and not lost:
            lost.append(number)
            raise DeviceLost("an illegal memory access")

    class Recovering(Pipelined):
        def recover(self) -> None:
            """The device is there again."""

    device.on_batch = lose
    with capture_logs(), line(Recovering(device)) as here:
        first = here.send(9, 5)
        gate.wait_for()
        answers = {number: here.send(number, 5) for number in (1, 2, 3)}
        gate.opened.set()
        first.result(GUARD_S)
        assert isinstance(answers[1].exception(GUARD_S), DeviceLost)
        assert isinstance(answers[2].exception(GUARD_S), DeviceLost)  # was at the device as well
        assert len(answers[3].result(GUARD_S).features.stage1) == 5


def test_a_deadline_that_passes_before_the_last_line_ends_the_screen() -> None:
    device = Device()
    frame = tall(1, 2)
    with (
        line(device) as here,
        here.scheduler.queue(
            frame, cover(*frame.shape, patch_px=PATCH_PX), deadline_at=time.monotonic() + 0.05
        ) as queued,
    ):
        queued.arrived(PATCH_PX)
        with pytest.raises(DeadlineExceeded):
            queued.features()
