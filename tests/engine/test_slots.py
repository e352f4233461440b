from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import FakeBackend, RuntimeUnavailable, fake_manifest, load, read_golden
from engine.parity import extreme_patches
from engine.slots import measure_slots, slot_patches

LABELS = ("bubble", "scratch")


def backend(scores: Callable[[NDArray[np.uint8]], NDArray[np.floating]]) -> FakeBackend:
    return FakeBackend(fake_manifest(LABELS, patch_px=8, batch_size=4), scores)


def patches(*greys: int) -> NDArray[np.uint8]:
    return np.stack([np.full((1, 8, 8), grey, np.uint8) for grey in greys])


def test_the_spread_is_the_widest_over_slots_and_patches() -> None:
    def uneven(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The last slots see more of the second label, and more in a bright patch."""
        scores = np.full((len(pixels), 2), 0.5)
        scores[2, 1] += pixels[0, 0, 0, 0] / 1000
        scores[3, 1] -= pixels[0, 0, 0, 0] / 2000
        return scores

    found = measure_slots(backend(uneven), patches(100, 200, 50))
    assert found.probability == {"bubble": 0.0, "scratch": pytest.approx(0.3, abs=1e-6)}
    assert not found.same_bits


def test_features_that_differ_without_moving_a_probability_are_told() -> None:
    def saturated(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return 1e-30 * np.arange(1, len(pixels) + 1)[:, None] * np.ones(2)

    found = measure_slots(backend(saturated), patches(1))
    assert max(found.probability.values()) < 1e-20
    assert not found.same_bits


def test_every_slot_is_reasoned_alone_in_a_full_batch() -> None:
    seen: list[int] = []

    class Watched(FakeBackend):
        def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
            seen.append(len(stage1))
            return super().reason(label_features, stage1)

    def scores(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        assert len(pixels) == 4
        assert (pixels == pixels[0]).all()
        return np.full((4, 2), 0.5)

    found = measure_slots(Watched(fake_manifest(LABELS, patch_px=8, batch_size=4), scores), patches(1, 2))
    assert seen == [1] * 8
    assert found.same_bits


def test_the_patches_are_the_golden_extreme_ones_and_grain() -> None:
    golden = patches(7, 9)
    chosen = slot_patches(golden)
    assert chosen.dtype == np.uint8
    assert (chosen[:2] == golden).all()
    extreme = extreme_patches(8)
    assert (chosen[2 : 2 + len(extreme)] == extreme).all()
    grain = chosen[2 + len(extreme) :]
    assert len(grain) > 1
    assert len({patch.tobytes() for patch in grain}) == len(grain)
    assert 8 <= grain.min() <= grain.max() < 40


def test_no_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one patch"):
        measure_slots(backend(lambda pixels: np.zeros((len(pixels), 2))), patches(1)[:0])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_cpu_runs_each_patch_alone_and_no_slot_matters(bundle: Path, runtime: str) -> None:
    try:
        loaded = load(bundle, runtime, threads=2)
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    with closing(loaded):
        found = measure_slots(loaded, read_golden(bundle).pixels)
    assert found.same_bits
    assert set(found.probability.values()) == {0.0}
