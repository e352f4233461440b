import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from engine import DeviceLost, FakeBackend, Golden, InferenceError, fake_manifest
from service.selftest import SelfTest

GOLDEN = Golden(
    pixels=np.zeros((7, 1, 8, 8), np.uint8),
    probability=np.full((7, 1), 0.5, np.float32),
    activation=np.zeros((7, 1, 1, 1), np.float32),
    tolerance=0.01,
)


class Bench:
    """A self-test on a clock that stands still, and a device that answers as it is told."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.answer: float | Exception = 0.5
        self.backend = FakeBackend(fake_manifest(["bubble"], patch_px=8), self._scores)
        self.self_test = SelfTest(GOLDEN, interval_s=60.0, clock=lambda: self.now_s)

    def run(self) -> None:
        with capture_logs():
            self.self_test.run(self.backend)

    def _scores(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return np.full((len(pixels), 1), self.answer)


def test_before_the_first_run_nothing_is_proven_and_one_is_due() -> None:
    bench = Bench()
    report = bench.self_test.report()
    assert not report.ok
    assert not report.fresh
    assert (report.age_s, report.difference, report.detail) == (None, None, "has not run yet")
    assert bench.self_test.due_in_s() == 0


def test_a_run_that_gives_the_known_answers_is_fresh_for_two_minutes() -> None:
    bench = Bench()
    bench.answer = 0.505
    bench.run()
    report = bench.self_test.report()
    assert report.ok
    assert report.difference == pytest.approx(0.005, abs=1e-6)
    assert report.detail == ""
    for age_s, fresh in ((0.0, True), (119.0, True), (120.0, False), (5000.0, False)):
        bench.now_s = 1000.0 + age_s
        assert bench.self_test.report().age_s == age_s
        assert bench.self_test.report().fresh == fresh


def test_the_next_run_is_due_an_interval_after_the_last_whatever_came_out() -> None:
    for answer in (0.5, 0.9, InferenceError("no device"), OSError("no device")):
        bench = Bench()
        bench.answer = answer
        bench.run()
        assert bench.self_test.due_in_s() == 60.0
        bench.now_s += 59.0
        assert bench.self_test.due_in_s() == 1.0
        bench.now_s += 2.0
        assert bench.self_test.due_in_s() == 0.0


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        # another answer than the known one
        (0.9, "the golden patches differ by 0.4, over the tolerance of 0.01"),
        (float("nan"), "the golden patches differ by nan, over the tolerance of 0.01"),
        # no answer
        (InferenceError("the device is gone"), "the device is gone"),
        # what no runtime should raise: its text may hold paths and stays in the log
        (OSError("/dev/nvidia0"), "failed in a way that nobody expected"),
    ],
)
def test_a_failed_run_is_told_and_does_not_renew_the_last_success(answer: float | Exception, detail: str) -> None:
    bench = Bench()
    bench.run()
    bench.now_s += 60
    bench.answer = answer
    with capture_logs() as lines:
        bench.self_test.run(bench.backend)
    report = bench.self_test.report()
    assert not report.ok
    assert report.detail == detail
    assert report.age_s == 60
    assert [line["log_level"] for line in lines] == ["error"]


def test_a_run_that_succeeds_after_a_failure_proves_again() -> None:
    bench = Bench()
    bench.answer = InferenceError("the device is gone")
    bench.run()
    assert bench.self_test.report().age_s is None
    bench.answer = 0.5
    bench.run()
    report = bench.self_test.report()
    assert report.ok
    assert (report.age_s, report.detail) == (0, "")


@pytest.mark.parametrize("answer", [0.5, 0.9])
def test_a_device_that_is_lost_is_tested_at_once_whatever_the_last_run_gave(answer: float) -> None:
    bench = Bench()
    bench.answer = answer
    bench.run()
    with capture_logs():
        bench.self_test.lost(DeviceLost("an illegal memory access was encountered"))
    assert bench.self_test.due_in_s() == 0
    assert not bench.self_test.report().ok
    assert bench.self_test.report().detail == "an illegal memory access was encountered"


def test_a_device_that_is_gone_is_tested_no_more() -> None:
    bench = Bench()
    bench.answer = DeviceLost("an illegal memory access was encountered")
    bench.run()
    with capture_logs():
        bench.self_test.lost(DeviceLost("an illegal memory access was encountered"))
    assert bench.self_test.due_in_s() > 1e6
    assert bench.self_test.report().gone
    assert bench.self_test.report().detail == "fake cannot recover a device"
