"""A device that is lost: no screen is answered from it, the service says so at once, and it comes back by itself."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from engine import DeviceLost, FakeBackend, Features, InferenceError
from service.settings import Settings
from tests.service import apps
from tests.service.devices import BATCH, Device, held_at, line, until


class Losable(FakeBackend):
    """Lost at a screen of this number, until `recover` is allowed to help.

    Attributes:
        mendable: whether `recover` helps.
        recoveries: how often it was tried.
    """

    def __init__(self, device: Device, *, lost_at: int, mendable: bool) -> None:
        super().__init__(device.backend().manifest, device)
        self.mendable = mendable
        self.recoveries = 0
        self._lost = False
        self._lost_at = lost_at

    def features(self, pixels: NDArray[np.uint8]) -> Features:
        if pixels[0, 0, 1, 1] == self._lost_at:
            self._lost = True
        if self._lost:
            raise DeviceLost("an illegal memory access was encountered")
        return super().features(pixels)

    def recover(self) -> None:
        self.recoveries += 1
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
    with capture_logs(), line(backend, interval_s=60, clock=clock) as here:
        until(lambda: here.scheduler.report().ok)
        with pytest.raises(DeviceLost):
            here.compute(1)
        assert not here.scheduler.report().ok  # no self-test had to come round
        until(lambda: backend.recoveries == 1)
        for number in (2, 3):
            with pytest.raises(InferenceError):
                here.compute(number)
        assert "a new context fails as well" in here.scheduler.report().detail
        assert backend.recoveries == 1  # not once for every screen
        backend.mendable = True
        clock.now_s += 61  # with the next self-test at the latest
        assert len(here.compute(4).features.stage1) == 1
        assert here.scheduler.report().ok


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
        until(lambda: "fake cannot recover a device" in here.scheduler.report().detail)


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
