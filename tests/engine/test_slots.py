import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from engine import FakeBackend, RuntimeUnavailable, fake_manifest, load, read_golden
from engine.parity import extreme_patches
from engine.slots import measure_slots, slot_patches
from tests.bundles import tiny_bundle
from tests.engine.test_onnxruntime import edit, fix_rows

LABELS = ("bubble", "scratch")


def backend(scores: Callable[[NDArray[np.uint8]], NDArray[np.floating]]) -> FakeBackend:
    return FakeBackend(fake_manifest(LABELS, patch_px=8, batch_size=4), scores)


def patches(*greys: int) -> NDArray[np.uint8]:
    return np.stack([np.full((1, 8, 8), grey, np.uint8) for grey in greys])


def steepest(low: float, high: float) -> float:
    """How far the middle of the sigmoid moves, if its logit moves as between these."""
    half = (math.log(high / (1 - high)) - math.log(low / (1 - low))) / 2
    return 1 / (1 + math.exp(-half)) - 1 / (1 + math.exp(half))


@pytest.mark.parametrize("score", [0.0003, 0.02, 0.5, 0.98, 0.9997])
def test_noise_counts_as_where_the_sigmoid_is_steepest(score: float) -> None:
    """The same noise of the logit, whatever score the patches have that it is measured on; a limit may lie anywhere."""
    logit = math.log(score / (1 - score))

    def noisy(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.array([[1 / (1 + math.exp(-logit - noise))] * 2 for noise in (0.0, 0.02, 0.0, 0.01)])

    found = measure_slots(backend(noisy), patches(1)).guard
    assert found == {label: pytest.approx(0.005, rel=0.02) for label in LABELS}


def test_steps_of_a_float_beside_1_are_no_noise() -> None:
    def full(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.array([[1.0, 1e-30], [1 - 6e-8, 1e-12], [1.0, 0.0], [1.0, 1e-20]])

    assert max(measure_slots(backend(full), patches(1)).guard.values()) < 1e-7


def test_the_spread_is_the_widest_over_slots_and_patches() -> None:
    def uneven(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The last slots see more of the second label, and more in a bright patch."""
        scores = np.full((len(pixels), 2), 0.5)
        scores[2, 1] += pixels[0, 0, 0, 0] / 1000
        scores[3, 1] -= pixels[0, 0, 0, 0] / 2000
        return scores

    found = measure_slots(backend(uneven), patches(100, 200, 50))
    assert found.probability == {"bubble": 0.0, "scratch": pytest.approx(0.3, abs=1e-6)}
    assert found.guard == {"bubble": 0.0, "scratch": pytest.approx(steepest(0.4, 0.7), abs=1e-6)}
    assert not found.same_bits


def test_features_that_differ_without_moving_a_probability_are_told() -> None:
    def saturated(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return 1e-30 * np.arange(1, len(pixels) + 1)[:, None] * np.ones(2)

    found = measure_slots(backend(saturated), patches(1))
    assert max(found.probability.values()) < 1e-20
    assert not found.same_bits


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_that_takes_a_batch_as_one_has_its_guard_band_measured(tmp_path: Path, runtime: str) -> None:
    def uneven(model: onnx.ModelProto) -> None:
        """Its gain grows with the slot."""
        fix_rows(model, 5)
        (gain,) = (value for value in model.graph.initializer if value.name == "gain")
        gain.CopyFrom(onnx.numpy_helper.from_array(np.linspace(19, 20, 5, dtype=np.float32)[:, None], "gain"))

    bundle = tiny_bundle(tmp_path / "bundle", labels=LABELS)
    try:
        with closing(load(bundle, runtime, threads=1)) as free:
            assert free.guard == {}
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    edit(bundle, "features.onnx", uneven)
    with closing(load(bundle, runtime, threads=1)) as fixed:
        measured = measure_slots(fixed, slot_patches(read_golden(bundle).pixels)).guard
        assert fixed.guard == measured
        assert min(measured.values()) > 0


class Watched(FakeBackend):
    """Remembers the screens that it reasoned over, each a tuple of the first label's scores."""

    def __init__(self, scores: Callable[[NDArray[np.uint8]], NDArray[np.floating]]) -> None:
        super().__init__(fake_manifest(LABELS, patch_px=8, batch_size=4), scores)
        self.seen: list[tuple[float, ...]] = []

    def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
        probability = super().reason(label_features, stage1)
        self.seen.append(tuple(round(score, 3) for score in probability[:, 0].tolist()))
        return probability


class Related(Watched):
    """As the network's relation term: on a screen of its own a patch's neighbours are nothing, else they move it."""

    def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
        own = super().reason(label_features, stage1)
        if len(own) == 1:
            return np.full_like(own, 0.5)
        others = (own.sum(axis=0) - own) / (len(own) - 1)
        return np.asarray(0.5 + 0.5 * (others - own[:, ::-1]), np.float32)


def in_slots(pixels: NDArray[np.uint8], by_slot: list[float]) -> NDArray[np.float64]:
    """0.5, but for the first label of a bright patch, which depends on the slot."""
    assert len(pixels) == 4
    assert (pixels == pixels[0]).all()
    scores = np.full((4, 2), 0.5)
    if pixels.max() > 100:
        scores[:, 0] = by_slot
    return scores


def test_each_patch_is_reasoned_alone_and_all_of_them_together_with_their_slots_changed() -> None:
    watched = Watched(lambda pixels: in_slots(pixels, [0.1, 0.2, 0.1, 0.4]))
    found = measure_slots(watched, patches(1, 200, 2))
    alone, together = watched.seen[:12], watched.seen[12:]
    assert {len(screen) for screen in alone} == {1}
    assert together == [
        *[(0.5, score, 0.5) for score in (0.1, 0.2, 0.1, 0.4)],  # all in the same slot
        *[(0.5, score, 0.5) for score in (0.2, 0.4)],  # the one whose slots differ, where they do
    ]
    assert found.probability == {"bubble": pytest.approx(0.3, abs=1e-6), "scratch": 0.0}
    assert found.guard == {"bubble": pytest.approx(steepest(0.1, 0.4), abs=1e-6), "scratch": 0.0}
    assert not found.same_bits


def test_noise_that_moves_a_patch_of_the_same_screen_is_seen() -> None:
    related = Related(lambda pixels: in_slots(pixels, [0.2, 0.2, 0.2, 0.8]))
    found = measure_slots(related, patches(1, 200))
    # the dark patch's first label by its neighbour, the bright one's second by its own first
    assert found.probability == {label: pytest.approx(0.3) for label in LABELS}
    assert found.guard == {label: pytest.approx(steepest(0.35, 0.65), abs=1e-6) for label in LABELS}


def test_noise_that_adds_up_over_the_patches_of_a_screen_is_seen() -> None:
    class Summed(Watched):
        def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
            own = super().reason(label_features, stage1)
            return (np.repeat(own.sum(axis=0, keepdims=True), len(own), axis=0) / 10).astype(np.float32)

    summed = Summed(lambda pixels: in_slots(pixels, [0.2, 0.2, 0.2, 0.8]))
    found = measure_slots(summed, patches(200, 220, 240))
    assert found.probability["bubble"] == pytest.approx(3 * 0.06)  # one moves by 0.06


def test_slots_of_the_same_bits_cost_one_screen_each() -> None:
    watched = Watched(lambda pixels: np.full((4, 2), 0.5))
    assert measure_slots(watched, patches(1, 2)).same_bits
    assert [len(screen) for screen in watched.seen] == [1] * 8 + [2] * 4


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
