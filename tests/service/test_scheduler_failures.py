import gc
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from engine import FakeBackend, Features, InferenceError
from service.errors import DeadlineExceeded, NotReady
from tests.service.devices import GUARD_S, PATCH_PX, Device, Gate, Line, frame_of, held_at, line, until, windows_of


class Losing(FakeBackend):
    """A runtime that loses a row of one of its outputs for screen 1."""

    def __init__(self, output: str) -> None:
        super().__init__(Device().backend().manifest, Device())
        self._output = output

    def features(self, pixels: NDArray[np.uint8], *, glance: bool = True) -> Features:
        whole = super().features(pixels)
        if pixels[0, 0, 1, 1] != 1:
            return whole
        return replace(whole, **{self._output: getattr(whole, self._output)[:-1]})


class Growing(FakeBackend):
    """A runtime whose maps have another size at each batch: they fit no screen together."""

    def __init__(self) -> None:
        super().__init__(Device().backend().manifest, Device())
        self._side = 1

    def features(self, pixels: NDArray[np.uint8], *, glance: bool = True) -> Features:
        self._side += 1
        return replace(super().features(pixels), activation=np.zeros((len(pixels), 1, self._side, 1), np.float32))


def failing(error: Exception) -> FakeBackend:
    """Fails at the second batch of screen 1."""
    device = Device()

    def fail(number: int) -> None:
        if device.given[-1] == (1, [5, 6]):
            raise error

    device.on_batch = fail
    return device.backend()


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        # what a runtime says when a batch failed
        (failing(InferenceError("out of memory")), "out of memory"),
        # what no runtime should: its text may hold paths and data, and stays in the log
        (failing(OSError("/dev/nvidia0")), "in a way that nobody expected"),
        (failing(MemoryError()), "in a way that nobody expected"),
        (Losing("stage1"), "4 answers for 5 patches"),
        (Losing("label_features"), "4 answers for 5 patches"),
        (Losing("activation"), "4 answers for 5 patches"),
        (Growing(), "in a way that nobody expected"),
    ],
)
def test_a_failed_batch_fails_its_own_screen_and_the_next_is_served(backend: FakeBackend, message: str) -> None:
    with capture_logs(), line(backend) as here:
        with pytest.raises(InferenceError, match=message):
            here.compute(1, 7)
        assert here.scheduler.waiting_patches == 0
        assert len(here.compute(2, 5).features.stage1) == 5


def test_a_failure_that_nobody_expected_is_logged_with_its_cause() -> None:
    with (
        capture_logs() as lines,
        line(failing(OSError("/dev/nvidia0"))) as here,
        pytest.raises(InferenceError) as caught,
    ):
        here.compute(1, 7)
    assert isinstance(caught.value.__cause__, OSError)
    assert [entry["log_level"] for entry in lines] == ["error"]


@pytest.mark.parametrize(
    ("error", "within_s"),
    [
        (InferenceError, GUARD_S),
        (OSError, GUARD_S),
        # given up while the device was at it
        (None, 0.01),
    ],
)
def test_a_screen_that_failed_is_not_held_in_memory(error: type[Exception] | None, within_s: float) -> None:
    # by the collector alone it would be freed at some time, and a frame of 50 MB should not wait for that
    given_up = threading.Event()

    def fail(number: int) -> None:
        if number == 1 and error is not None:
            raise error("out of memory")
        if number == 1:
            assert given_up.wait(GUARD_S)

    with capture_logs(), line(Device(fail)) as here:
        frame = frame_of(1, 7)
        held = weakref.ref(frame)
        gc.disable()
        try:
            try:
                here.scheduler.compute(frame, windows_of(frame), deadline_at=time.monotonic() + within_s)
            except (InferenceError, DeadlineExceeded):
                del frame
            given_up.set()
            here.compute(2)  # by now the device has left the first
            assert held() is None
        finally:
            gc.enable()


def test_a_screen_that_is_done_is_not_held_in_memory_while_the_device_goes_on() -> None:
    """Nor is the first one since the device last had nothing to do, which began all that it does now."""
    gates = {1: Gate(), 2: Gate()}
    held: list[weakref.ref[NDArray[np.uint8]]] = []

    def first(here: Line) -> None:
        frame = frame_of(1, 7)
        held.append(weakref.ref(frame))
        here.scheduler.compute(frame, windows_of(frame), deadline_at=time.monotonic() + GUARD_S)

    def stop(number: int) -> None:
        if number in gates:
            gates[number].stop()

    with line(Device(stop)) as here:
        gc.disable()
        try:
            begun = here.pool.submit(first, here)
            gates[1].wait_for()
            second = here.send(2)
            gates[1].opened.set()
            begun.result(GUARD_S)
            gates[2].wait_for()
            until(lambda: held[0]() is None)
            assert not second.done()
        finally:
            gc.enable()
            for gate in gates.values():
                gate.opened.set()
        second.result(GUARD_S)


def test_a_screen_that_cannot_be_cut_fails_and_is_not_held_in_memory_until_the_next_one_comes() -> None:
    with capture_logs() as lines, line(Device()) as here:
        frame = frame_of(1, 7)
        held = weakref.ref(frame)
        windows = windows_of(frame_of(1, 8))  # of which the last leaves the frame
        gc.disable()
        try:
            try:
                here.scheduler.compute(frame, windows, deadline_at=time.monotonic() + GUARD_S)
            except InferenceError:
                del frame
            until(lambda: held() is None)
        finally:
            gc.enable()
        assert here.scheduler.waiting_patches == 0
        here.compute(2)
    assert [entry["log_level"] for entry in lines] == ["error"]


def test_a_deadline_that_passes_in_the_queue_drops_the_screen_unseen() -> None:
    device, gate = held_at(1)
    with line(device) as here:
        running = here.send(1, 7)
        with pytest.raises(DeadlineExceeded):
            here.compute(2, 7, within_s=0.01)
        # its places are free while the device is still held
        assert here.scheduler.waiting_patches == 7
        gate.opened.set()
        running.result(GUARD_S)
        here.compute(3)
    assert device.order == [1, 3]


def test_a_deadline_that_passes_while_running_stops_the_screen_at_its_next_batch() -> None:
    device, gate = held_at(1)
    with capture_logs() as lines, line(device) as here:
        # where the device was too slow to begin with it, the screen has left the queue: once more
        while not gate.reached.is_set():
            with pytest.raises(DeadlineExceeded):
                here.compute(1, 12, within_s=0.01)
        assert here.scheduler.waiting_patches == 12
        gate.opened.set()
        here.compute(2, 3)
        assert here.scheduler.waiting_patches == 0
    assert device.screens == [(1, [0, 1, 2, 3, 4]), (2, [0, 1, 2])]
    assert [entry["event"] for entry in lines] == ["nobody waits for the screen any more"]


def test_a_deadline_on_the_clock_of_the_device_is_kept_between_batches() -> None:
    now_s = [0.0]
    device = Device()

    def tick(number: int) -> None:
        now_s[0] += 100.0

    device.on_batch = tick
    with line(device, clock=lambda: now_s[0]) as here:
        here.scheduler.tested()  # takes its time by that clock too
        with pytest.raises(DeadlineExceeded, match="before all patches"):
            here.compute(1, 50, within_s=250)
    assert len(device.screens) == 3


@pytest.mark.parametrize("within_s", [0.0, -5.0])
def test_a_screen_that_comes_after_its_deadline_is_not_computed(within_s: float) -> None:
    device = Device()
    with line(device) as here:
        with pytest.raises(DeadlineExceeded):
            here.compute(1, within_s=within_s)
        here.compute(2)
    assert device.order == [2]


def test_closing_fails_those_who_wait_and_stops_what_runs_at_its_next_batch() -> None:
    device, gate = held_at(1)
    with capture_logs(), line(device) as here:
        running, waiting = here.send(1, 7), here.send(2)
        gate.wait_for()
        closing = here.pool.submit(here.scheduler.close)
        # while the device is still at its batch
        assert isinstance(waiting.exception(GUARD_S), NotReady)
        with pytest.raises(NotReady, match="stopping"):
            here.compute(3)
        assert not closing.done()
        gate.opened.set()
        assert isinstance(running.exception(GUARD_S), NotReady)
        closing.result(GUARD_S)
        assert here.scheduler.waiting_patches == 0
    assert device.screens == [(1, [0, 1, 2, 3, 4])]


def test_a_screen_at_its_last_batch_is_answered_although_the_service_stops() -> None:
    device, gate = held_at(1)
    with line(device) as here:
        answer = here.send(1, 5)
        gate.wait_for()
        closing = here.pool.submit(here.scheduler.close)
        until(lambda: refuses(here))
        gate.opened.set()
        assert len(answer.result(GUARD_S).features.stage1) == 5
        closing.result(GUARD_S)


def refuses(here: Line) -> bool:
    """Whether the scheduler has heard that it is to stop."""
    try:
        here.compute(9, within_s=0.0)
    except NotReady:
        return True
    except DeadlineExceeded:
        return False
    raise AssertionError("it was computed")


def test_closing_ends_the_threads_and_closes_the_backends_and_twice_is_harmless() -> None:
    backends = [Device().backend(), Device().backend()]
    before = set(threading.enumerate())
    with line(*backends) as here:
        until(lambda: here.scheduler.report().ok)
        assert len(set(threading.enumerate()) - before) == 2
        here.scheduler.close()
        assert set(threading.enumerate()) <= before
        here.scheduler.close()
    for backend in backends:
        with pytest.raises(InferenceError, match="closed"):
            backend.features(np.zeros((1, 1, PATCH_PX, PATCH_PX), np.uint8))
