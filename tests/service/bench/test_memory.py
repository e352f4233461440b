"""The memory part on a bundle of small patches; whether the limits hold at full size, the bench itself says."""

import json
from pathlib import Path

import numpy as np
import pytest

from service.bench import memory
from service.bench.memory import MIB, Posted, grown
from service.bench.work import Work
from tests.bundles import BACKGROUND, tiny_bundle

FRAME = np.random.default_rng(3).integers(BACKGROUND - 20, BACKGROUND + 21, (192, 128), np.uint8)


def samples(by_tenth: list[int], *, tenth: int = 100) -> list[tuple[int, int]]:
    """One of each screen, in MiB, with a frame more or less under way."""
    return [
        (number * tenth + screen, (resident + (50, -50, 0)[screen % 3]) * MIB)
        for number, resident in enumerate(by_tenth)
        for screen in range(tenth)
    ]


def test_memory_that_stays_passes_and_memory_that_grows_does_not() -> None:
    posted = Posted(answered=1000, elapsed_s=150)
    steady = grown(samples([300, *[400] * 9]), posted, whole=True)  # the first tenth is warming up
    assert steady.passed
    assert steady.figures["growth_ratio"] == 0
    leaking = grown(samples([400 + 2 * number for number in range(10)]), posted, whole=True)
    assert leaking.passed is False
    assert leaking.found.startswith("+4.0%")


def test_a_screen_that_failed_is_no_pass() -> None:
    posted = Posted(answered=1000, failures=["memory-7: 503"], elapsed_s=150)
    assert grown(samples([400] * 10), posted, whole=True).passed is False


@pytest.mark.parametrize("answered", [1, 5, 10, 15, 37, 999])
def test_a_shorter_run_says_so_and_judges_nothing(answered: int) -> None:
    posted = Posted(answered=answered, elapsed_s=5)
    row = grown(samples([400, 900] * 5), posted, whole=False)
    assert row.passed is None
    assert "too short" in row.found
    assert 1 <= len(row.figures["resident_bytes_by_tenth"]) <= 10


def test_a_service_is_watched_while_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BODIES", {"colour TIFF": memory._tiff})
    monkeypatch.setattr(memory, "SCREENS", 40)
    work = Work(bundle=tiny_bundle(tmp_path / "bundle"), frames=[FRAME], seconds=memory.FULL_S)
    peak, growth = memory.measure(work)
    assert peak.passed
    assert (peak.figures["screens"], growth.figures["screens"]) == (40, 40)
    assert peak.figures["peak_bytes"] >= peak.figures["resting_bytes"] > 20 * MIB
    assert growth.passed is not None
    assert len(growth.figures["resident_bytes_by_tenth"]) == 10
    assert json.dumps([peak.figures, growth.figures])
