"""A device that is lost: no screen is answered from it, the service says so at once, and it comes back."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from engine import DeviceLost, FakeBackend, Features
from service.errors import NotReady
from service.scheduler import HANGS_AFTER_S
from service.settings import Settings
from tests.service import apps
from tests.service.devices import BATCH, GOLDEN_NUMBER, GUARD_S, NEVER_S, Device, Gate, Line, held_at, line, until
from tests.service.losing import SERVICE, ends_by_itself


class Losable(FakeBackend):
    """Lost at a screen of this number, until `recover` is allowed to help.

    Attributes:
        mendable: whether `recover` helps.
        on_recover: called before it tries.
        recoveries: how often it was tried.
    """

    def __init__(self, device: Device, *, lost_at: int, mendable: bool) -> None:
        super().__init__(device.backend().manifest, device)
        self.mendable = mendable
        self.on_recover: Callable[[], None] = lambda: None
        self.recoveries = 0
        self._lost = False
        self._lost_at = lost_at

    def features(self, pixels: NDArray[np.uint8], *, glance: bool = True) -> Features:
        if pixels[0, 0, 1, 1] == self._lost_at:
            self._lost = True
        if self._lost:
            raise DeviceLost("an illegal memory access was encountered")
        return super().features(pixels)

    def recover(self) -> None:
        self.recoveries += 1
        self.on_recover()
        if not self.mendable:
            raise DeviceLost("a new context fails as well")
        self._lost = False


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_lost_device_is_recovered_before_the_next_screen() -> None:
    backend = Losable(Device(), lost_at=1, mendable=True)
    with capture_logs() as logs, line(backend) as here:
        until(lambda: here.scheduler.report().ok)
        with pytest.raises(DeviceLost):
            here.compute(1)
        assert len(here.compute(2, BATCH + 1).features.stage1) == BATCH + 1
        assert here.scheduler.report().ok
    assert backend.recoveries == 1
    assert [entry["event"] for entry in logs].count("device recovered") == 1


def test_a_device_that_stays_lost_is_not_ready_from_the_first_failure_on() -> None:
    clock = Clock()
    backend = Losable(Device(), lost_at=1, mendable=False)
    with capture_logs() as logs, line(backend, interval_s=60, clock=clock) as here:
        until(lambda: here.scheduler.report().ok)
        with pytest.raises(DeviceLost):
            here.compute(1)
        assert not here.scheduler.report().ok  # no self-test had to come round
        for number in (2, 3):
            with pytest.raises(NotReady, match="lost for good"):
                here.compute(number)
        assert "a new context fails as well" in here.scheduler.report().detail
        assert here.scheduler.report().gone
        backend.mendable = True
        clock.now_s += 61  # and not with the next self-test either: it is a new process that has the device again
        with pytest.raises(NotReady):
            here.compute(4)
        assert backend.recoveries == 1
    assert [entry["event"] for entry in logs if entry["log_level"] == "critical"] == ["device lost for good"]


def test_a_device_that_nobody_can_recover_stays_lost() -> None:
    device = Device()

    def lose(number: int) -> None:
        if number == 1 or len(device.screens) > 0:
            raise DeviceLost("gone")

    device.on_batch = lose
    with capture_logs(), line(device) as here:
        until(lambda: here.scheduler.report().ok)
        with pytest.raises(DeviceLost):
            here.compute(1)
        until(lambda: here.scheduler.report().gone)
        assert "fake cannot recover a device" in here.scheduler.report().detail


def test_a_device_that_is_lost_again_at_once_is_gone() -> None:
    backend = Losable(Device(), lost_at=GOLDEN_NUMBER, mendable=True)
    with capture_logs(), line(backend) as here:
        until(lambda: here.scheduler.report().gone)
    assert backend.recoveries == 1


def test_one_lost_device_of_two_makes_the_service_not_ready() -> None:
    held, gate = held_at(2)
    backend = Losable(Device(), lost_at=1, mendable=False)
    with capture_logs(), line(backend, held) as here:
        until(lambda: here.scheduler.report().ok)
        gate.opened.set()
        while here.scheduler.report().ok:  # until the losable one has taken a screen 1
            try:
                here.compute(1)
            except DeviceLost:
                break
        assert not here.scheduler.report().ok
        until(lambda: here.scheduler.report().gone)


def passes(seconds: float, clock: Clock, here: Line) -> None:
    """Time, in which somebody looks every second."""
    for _ in range(round(seconds)):
        clock.now_s += 1
        here.scheduler.report()


def test_a_process_that_stood_still_has_no_device_that_hangs() -> None:
    device, gate = held_at(1)
    clock = Clock()
    with line(device, clock=clock) as here:
        until(lambda: here.scheduler.report().ok)
        screen = here.send(1, within_s=NEVER_S)
        gate.wait_for()
        passes(5, clock, here)
        clock.now_s += 10 * HANGS_AFTER_S  # in which nobody looked, the device's thread as little
        assert not here.scheduler.report().gone
        passes(HANGS_AFTER_S, clock, here)
        assert here.scheduler.report().gone
        gate.opened.set()
        screen.result(GUARD_S)


def test_a_device_that_hangs_is_as_good_as_gone() -> None:
    device, gate = held_at(1)
    clock = Clock()
    with line(device, clock=clock) as here:
        here.compute(2)
        passes(HANGS_AFTER_S, clock, here)  # waiting for screens is no hanging
        assert here.scheduler.report().ok
        screen = here.send(1, within_s=NEVER_S)
        gate.wait_for()
        passes(HANGS_AFTER_S - 1, clock, here)
        assert not here.scheduler.report().gone
        passes(1, clock, here)
        report = here.scheduler.report()
        assert (report.ok, report.gone) == (False, True)
        assert report.detail == "the device has not answered for 120 s: it hangs"
        gate.opened.set()
        screen.result(GUARD_S)
        until(lambda: here.scheduler.report().ok)


def test_a_device_that_hangs_at_its_self_test_is_as_good_as_gone() -> None:
    device, gate = held_at(GOLDEN_NUMBER)
    clock = Clock()
    with line(device, clock=clock) as here:
        gate.wait_for()
        passes(HANGS_AFTER_S, clock, here)
        assert here.scheduler.report().gone
        gate.opened.set()
        until(lambda: here.scheduler.report().ok)


def test_once_a_device_is_gone_screens_are_refused_and_the_one_on_another_device_ends() -> None:
    gate, recovering = Gate(), Gate()
    backends = [
        Losable(Device(lambda number: gate.stop() if number == 2 else None), lost_at=1, mendable=False)
        for _ in range(2)  # whichever takes screen 2, the other takes screen 1 and is lost
    ]
    for backend in backends:
        backend.on_recover = recovering.stop
    with capture_logs(), line(*backends) as here:
        running = here.send(2, BATCH + 1)
        gate.wait_for()
        with pytest.raises(DeviceLost):
            here.compute(1)
        recovering.wait_for()
        waiting = here.send(3)
        recovering.opened.set()
        assert isinstance(waiting.exception(GUARD_S), NotReady)
        with pytest.raises(NotReady, match="lost for good"):
            here.compute(4)
        gate.opened.set()
        assert len(running.result(GUARD_S).features.stage1) == BATCH + 1
        assert here.scheduler.waiting_patches == 0


def test_the_line_is_told_to_ask_again_where_a_device_is_gone(tmp_path: Path) -> None:
    device = apps.Device()

    def lose() -> None:
        raise DeviceLost("an illegal memory access was encountered")

    with capture_logs(), apps.serve_device(device, Settings(state_dir=tmp_path)) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        device.screen_gate.go_through = device.golden_gate.go_through = lose  # type: ignore[method-assign]
        assert apps.is_problem(apps.post(client, "one", apps.frame()), 500, "inference_failed")
        answer = apps.post(client, "two", apps.frame())
        assert apps.is_problem(answer, 503, "not_ready")
        assert answer.headers["retry-after"] == "5"


def test_the_line_reads_it_in_the_answer_and_in_the_readiness(tmp_path: Path) -> None:
    device = apps.Device()
    with capture_logs(), apps.serve_device(device, Settings(state_dir=tmp_path)) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        device.golden_gate.hold()  # so that no self-test finds it well again meanwhile
        device.failure = DeviceLost("an illegal memory access was encountered")
        assert apps.is_problem(apps.post(client, "one", apps.frame()), 500, "inference_failed")
        answer = client.get("/readyz")
        assert apps.is_problem(answer, 503, "not_ready")
        assert "illegal memory access" in answer.json()["detail"]
        device.failure = None
        device.golden_gate.open()
        until(lambda: client.get("/readyz").status_code == 200)
        assert apps.post(client, "one", apps.frame()).json()["verdict"] == "pass"


def test_a_process_whose_device_is_gone_ends_by_itself_so_that_a_new_one_is_started(
    bundle: Path, tmp_path: Path
) -> None:
    ends_by_itself(SERVICE.format(more=""), bundle, tmp_path, INSPECT_RUNTIME="fake")
