import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from structlog.testing import capture_logs

from engine import Features, InferenceError, cover, cut, infer, load, read_golden
from service.errors import DeadlineExceeded, ImageTooLarge, QueueFull, ServiceError
from service.scheduler import Scheduler
from tests.bundles import BACKGROUND, LABELS, grey_of, tiny_bundle
from tests.service.devices import (
    BATCH,
    GOLDEN_NUMBER,
    GUARD_S,
    NEVER_S,
    Device,
    Gate,
    held_at,
    line,
    score_of,
    until,
)


def scores(features: Features) -> NDArray[np.float32]:
    """(K,) of a device's single label."""
    return np.asarray(1 / (1 + np.exp(-features.stage1[:, 0])))


@pytest.mark.parametrize("patches", [1, BATCH - 1, BATCH, BATCH + 1, 12])
def test_a_screen_comes_back_whole_and_in_the_order_of_its_windows(patches: int) -> None:
    with line(Device()) as here:
        computed = here.compute(1, patches)
    np.testing.assert_allclose(scores(computed.features), score_of(np.arange(patches)), rtol=1e-5)
    assert len(computed.features.label_features) == len(computed.features.activation) == patches
    assert computed.self_test.ok
    assert computed.features_s > 0
    assert computed.queue_s >= 0


def test_batches_hold_one_screen_in_row_order_whatever_else_is_sent() -> None:
    device = Device()
    with line(device) as here, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: here.compute(number, 12), range(8)))
    for number in range(8):
        assert [patches for given, patches in device.screens if given == number] == [
            [0, 1, 2, 3, 4],
            [5, 6, 7, 8, 9],
            [10, 11],
        ]
    # and one screen is done before the next begins
    assert [number for number, _ in device.screens] == [number for number in device.order for _ in range(3)]


def test_every_device_is_waited_for_until_it_was_tested_and_the_worst_is_told() -> None:
    gate = Gate()
    right, slow = Device(), Device(lambda number: gate.stop() if number == GOLDEN_NUMBER else None)
    slow.golden_score = 0.9
    with line(right, slow) as here:
        tested = here.pool.submit(here.scheduler.tested)
        gate.wait_for()
        until(lambda: (GOLDEN_NUMBER, [GOLDEN_NUMBER, GOLDEN_NUMBER]) in right.given)
        assert not tested.done()
        gate.opened.set()
        report = tested.result(GUARD_S)
    assert not report.ok
    assert "differ by 0.4" in report.detail


def test_first_come_first_served() -> None:
    device, gate = held_at(7)
    with line(device) as here:
        answers = [here.send(number) for number in (7, 3, 5, 1)]
        gate.opened.set()
        for answer in answers:
            answer.result(GUARD_S)
    assert device.order == [7, 3, 5, 1]


def test_a_screen_that_does_not_fit_whole_is_refused_whole() -> None:
    device, gate = held_at(1)
    with line(device, max_patches=20) as here:
        running, waiting = here.send(1, 10), here.send(2, 8)
        with pytest.raises(QueueFull, match="18 of 20 places are taken") as caught:
            here.compute(3, 3)
        assert caught.value.retry_after_s > 0
        assert here.scheduler.waiting_patches == 18
        fits = here.send(4, 2)
        gate.opened.set()
        for answer in (running, waiting, fits):
            answer.result(GUARD_S)
        assert here.scheduler.waiting_patches == 0
        here.compute(5, 20)
    assert device.order == [1, 2, 4, 5]


def test_more_patches_than_there_are_places_is_no_matter_of_waiting() -> None:
    device = Device()
    with line(device, max_patches=20) as here:
        with pytest.raises(ImageTooLarge, match="21 patches are over the limit of 20"):
            here.compute(1, 21)
        assert here.scheduler.waiting_patches == 0
        here.compute(2, 20)
    assert device.order == [2]


def test_the_wait_that_is_told_follows_the_speed_of_the_devices() -> None:
    def told(patch_s: float, devices: int) -> float:
        """What a screen of 10 patches hears while 10 others run on devices of that speed."""
        now_s, gate = [0.0], Gate()

        def spend(number: int) -> None:
            now_s[0] += patch_s * BATCH
            if number == 99:
                gate.stop()

        with line(*(Device(spend) for _ in range(devices)), max_patches=10, clock=lambda: now_s[0]) as here:
            for number in range(30):
                here.compute(number, 10, within_s=NEVER_S)
            answer = here.send(99, 10, within_s=NEVER_S)
            with pytest.raises(QueueFull) as caught:
                here.compute(100, 10, within_s=NEVER_S)
            gate.opened.set()
            answer.result(GUARD_S)
        return caught.value.retry_after_s

    assert told(0.5, devices=1) == pytest.approx(5, rel=0.05)
    assert told(0.002, devices=1) == pytest.approx(0.02, rel=0.05)
    assert told(0.5, devices=2) == pytest.approx(2.5, rel=0.05)


def test_the_self_test_runs_before_the_first_screen() -> None:
    device, gate = held_at(GOLDEN_NUMBER)
    with line(device) as here:
        gate.wait_for()
        assert not here.scheduler.report().ok
        answer = here.send(1)
        gate.opened.set()
        assert answer.result(GUARD_S).self_test.ok
    assert [number for number, _ in device.given] == [GOLDEN_NUMBER, 1]


def test_a_self_test_that_is_due_runs_ahead_of_the_batches_that_wait() -> None:
    now_s = [0.0]
    device, gate = held_at(1)
    with line(device, interval_s=60, clock=lambda: now_s[0]) as here:
        answers = [here.send(1, 7, within_s=NEVER_S), here.send(2, within_s=NEVER_S)]
        gate.wait_for()
        now_s[0] = 60.0
        gate.opened.set()
        for answer in answers:
            assert answer.result(GUARD_S).self_test.age_s == 0
    golden = (GOLDEN_NUMBER, [GOLDEN_NUMBER] * 2)
    assert device.given == [golden, (1, [0, 1, 2, 3, 4]), golden, (1, [5, 6]), (2, [0])]


def test_a_self_test_that_fails_proves_nothing_more_until_it_succeeds_again() -> None:
    now_s = [0.0]
    device = Device()
    with capture_logs(), line(device, interval_s=60, clock=lambda: now_s[0]) as here:
        assert here.compute(1).self_test.ok
        device.golden_score = 0.9
        assert here.compute(2).self_test.ok  # not due yet
        now_s[0] = 60.0
        report = here.compute(3).self_test
        assert (report.ok, report.age_s) == (False, 60.0)
        assert "differ by 0.4" in here.scheduler.report().detail
        device.golden_score, now_s[0] = 0.5, 120.0
        assert here.compute(4).self_test.ok
        assert here.scheduler.report().ok


@pytest.mark.parametrize("error", [InferenceError("out of memory"), OSError("/dev/nvidia0")])
def test_a_device_whose_self_test_raises_goes_on_without_a_proof(error: Exception) -> None:
    def fail(number: int) -> None:
        if number == GOLDEN_NUMBER:
            raise error

    with capture_logs(), line(Device(fail)) as here:
        computed = here.compute(1, 7)
        assert len(computed.features.stage1) == 7
        assert not computed.self_test.ok
        assert computed.self_test.age_s is None


def test_an_idle_device_tests_itself_at_its_interval() -> None:
    device = Device()
    with line(device, interval_s=0.001) as here:
        until(lambda: len(device.given) >= 5)
        here.compute(1)
    assert device.order == [1]


def test_the_report_is_that_of_the_device_that_is_worst_off() -> None:
    now_s = [0.0]
    (one, gate_of_one), (other, gate_of_other) = held_at(1), held_at(1)
    with capture_logs(), line(one, other, interval_s=40, clock=lambda: now_s[0]) as here:
        until(lambda: here.scheduler.report().ok)
        # one of them stays with a screen, and its last success grows old
        held = here.send(1, within_s=NEVER_S)
        until(lambda: gate_of_one.reached.is_set() or gate_of_other.reached.is_set())
        free = other if gate_of_one.reached.is_set() else one
        now_s[0] = 40.0
        assert here.compute(2).self_test.age_s == 0
        assert here.scheduler.report().age_s == 40
        # a failure is worse than age
        now_s[0], free.golden_score = 110.0, 0.9
        here.compute(3)
        report = here.scheduler.report()
        assert (report.ok, report.age_s) == (False, 70)
        gate_of_one.opened.set()
        gate_of_other.opened.set()
        held.result(GUARD_S)


def test_one_device_without_a_proof_leaves_the_service_without_one() -> None:
    proven, (held, gate) = Device(), held_at(GOLDEN_NUMBER)
    for devices in ((proven, held), (held, proven)):
        gate.opened.clear()
        with line(*devices) as here:
            assert here.compute(1).self_test.ok  # the other one is held before its first screen
            assert not here.scheduler.report().ok
            gate.opened.set()
            until(lambda: here.scheduler.report().ok)


def test_two_devices_work_at_the_same_time_and_each_screen_stays_on_one() -> None:
    devices, gates = zip(*(held_at(0, 1) for _ in range(2)), strict=True)
    with line(*devices) as here:
        answers = [here.send(number, 12) for number in range(6)]
        for gate in gates:
            gate.wait_for()
        for gate in gates:
            gate.opened.set()
        for answer in answers:
            answer.result(GUARD_S)
    first, second = (set(device.order) for device in devices)
    assert not first & second
    assert first | second == set(range(6))
    for device in devices:
        assert [number for number, _ in device.screens] == [number for number in device.order for _ in range(3)]


OUTCOMES = {
    "answered": type(None),
    "failed": InferenceError,
    "unexpected": InferenceError,
    "late": DeadlineExceeded,
    "abandoned": DeadlineExceeded,
}


@given(
    st.lists(st.tuples(st.sampled_from(sorted(OUTCOMES)), st.integers(1, 12)), min_size=1, max_size=10),
    st.integers(1, 2),
)
def test_whatever_becomes_of_the_screens_all_places_are_free_in_the_end(
    plan: list[tuple[str, int]], devices: int
) -> None:
    given_up = [threading.Event() for _ in plan]

    def on_batch(number: int) -> None:
        outcome = plan[number][0] if number < len(plan) else "answered"
        if outcome == "failed":
            raise InferenceError("out of memory")
        if outcome == "unexpected":
            raise OSError("/dev/nvidia0")
        if outcome == "abandoned":
            assert given_up[number].wait(GUARD_S)

    with capture_logs(), line(*(Device(on_batch) for _ in range(devices)), max_patches=1000) as here:

        def send(number: int) -> Exception | None:
            outcome, patches = plan[number]
            within_s = {"late": 0.0, "abandoned": 0.002}.get(outcome, GUARD_S)
            try:
                computed = here.compute(number, patches, within_s=within_s)
            except (ServiceError, InferenceError) as error:
                return error
            finally:
                given_up[number].set()
            np.testing.assert_allclose(scores(computed.features), score_of(np.arange(patches)), rtol=1e-5)
            return None

        for (outcome, _), error in zip(plan, here.pool.map(send, range(len(plan))), strict=True):
            assert type(error) is OUTCOMES[outcome]
        until(lambda: here.scheduler.waiting_patches == 0)
        # and the devices are there for the next
        here.compute(len(plan))
        assert here.scheduler.waiting_patches == 0


def test_under_load_every_screen_gets_the_features_that_it_gets_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
    alone, shared = load(bundle, threads=1), load(bundle, threads=1)
    side = shared.manifest.patch_px

    def frame(number: int) -> NDArray[np.uint8]:
        """Noise with a spot; 1 to 12 patches, often no multiple of the patch."""
        rng = np.random.default_rng(number)
        pixels = rng.integers(BACKGROUND - 20, BACKGROUND + 21, rng.integers(side, (3 * side, 4 * side)))
        pixels[5:9, 5:9] = grey_of(number % len(LABELS))
        return pixels.astype(np.uint8)

    def compute(number: int) -> tuple[Features, NDArray[np.float32]]:
        pixels = frame(number)
        features = scheduler.compute(pixels, cover(*pixels.shape, patch_px=side), deadline_at=1e9).features
        return features, shared.reason(features.label_features, features.stage1)

    with (
        Scheduler([shared], read_golden(bundle), max_patches=1000, self_test_interval_s=0.01) as scheduler,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(compute, range(64)))
    for number, (features, probability) in enumerate(answers):
        pixels = frame(number)
        expected, expected_probability = infer(alone, cut(pixels, cover(*pixels.shape, patch_px=side), side))
        for field in fields(Features):
            np.testing.assert_array_equal(getattr(features, field.name), getattr(expected, field.name))
        np.testing.assert_array_equal(probability, expected_probability)
    alone.close()


def test_the_time_of_a_self_test_between_batches_is_not_the_screens() -> None:
    now_s = 0.0

    def spend(number: int) -> None:
        nonlocal now_s
        now_s += 100.0 if number == GOLDEN_NUMBER else 1.0

    device = Device(spend)
    with line(device, interval_s=1.5, clock=lambda: now_s) as here:
        until(lambda: here.scheduler.report().ok)
        computed = here.compute(1, 4 * BATCH, within_s=NEVER_S)
    numbers = [number for number, _ in device.given]
    assert GOLDEN_NUMBER in numbers[numbers.index(1) :]  # one was due between two batches
    assert computed.features_s == 4.0
