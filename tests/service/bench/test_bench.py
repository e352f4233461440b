"""`python -m service bench`: what it measures, and the simulated device that it measures against."""

import json
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from engine import Batch, fake_manifest, self_test, stream
from service.bench import simulated
from service.bench.line import least_patches_per_s
from service.bench.simulated import SCORE, SimulatedDevice, golden_of

MANIFEST = fake_manifest(("bubble", "scratch"), patch_px=32, batch_size=4)
PATCHES = np.zeros((4, 1, 32, 32), np.uint8)


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(simulated, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=clock.sleep))
    return clock


def test_a_batch_takes_exactly_its_time(clock: Clock) -> None:
    device = SimulatedDevice(MANIFEST, batch_s=0.002, patch_s=0.003)
    device.features(PATCHES)
    assert clock.now == pytest.approx(100.014)
    device.features(PATCHES[:1])
    assert clock.now == pytest.approx(100.019)


def test_while_batches_wait_there_is_no_gap_between_them(clock: Clock) -> None:
    device = SimulatedDevice(MANIFEST, batch_s=0.002, patch_s=0.002)

    def slowly() -> Iterator[Batch]:
        for _ in range(5):
            clock.now += 0.009  # less than the batch before computes
            yield Batch(PATCHES)

    answers = list(stream(device, slowly()))
    assert len(answers) == 5
    assert clock.now == pytest.approx(100.009 + 5 * 0.010)


def test_a_device_that_waited_does_not_catch_up(clock: Clock) -> None:
    device = SimulatedDevice(MANIFEST, batch_s=0.01, patch_s=0.0)
    device.features(PATCHES)
    clock.now += 50
    device.features(PATCHES)
    assert clock.now == pytest.approx(150.02)


def test_a_simulated_device_is_proven_and_finds_nothing(clock: Clock) -> None:
    device = SimulatedDevice(MANIFEST, batch_s=0.0, patch_s=0.0)
    self_test(device, golden_of(MANIFEST))
    features = device.features(PATCHES)
    assert np.allclose(device.reason(features.label_features, features.stage1), SCORE)


@pytest.mark.parametrize(
    ("vectors", "least"),
    [(["fma", "avx2"], 156), (["avx2", "avx512f"], 312), (["avx2", "avx_vnni"], 312), (["amx_tile"], 312), ([], 156)],
)
def test_twice_the_rate_is_asked_for_where_vectors_are_wide(vectors: list[str], least: float) -> None:
    assert least_patches_per_s(vectors) == least


@pytest.mark.slow
def test_the_command_measures_its_parts_and_ends_by_itself() -> None:
    parts = ["--part", "line", "--part", "devices", "--part", "stream"]  # the others have tests of their own
    command = [sys.executable, "-m", "service", "bench", *parts, "--seconds", "1", "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert answer.returncode in (0, 1), answer.stderr
    report = json.loads(answer.stdout)
    assert report["cpu"]
    assert report["cpus"] in (1, 2)
    assert [row["name"] for row in report["rows"]] == [
        "bundle end to end",
        "bundle: a screen's time",
        "device that answers at once",
        "device that answers at once: a screen's time",
        "share of a device's rate",
        "p99 of a screen, times the ideal",
        "two devices, times one",
        "Poisson at 80% load",
        "bursts of 5 at 80% load",
        "from the last line to the verdict, of the time of a whole frame",
    ]
    for row in report["rows"]:
        assert row["figures"].get("failures", []) == []
    assert report["rows"][0]["figures"]["patches_per_s"] > 0
    assert (answer.returncode == 0) == all(row["passed"] is not False for row in report["rows"])
    assert "bundle end to end" in answer.stderr  # told while it goes on
