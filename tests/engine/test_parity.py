"""Every precision: finite at the extremes, and blind to its neighbours in the batch."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from engine import (
    Backend,
    BundleError,
    FakeBackend,
    Features,
    InferenceError,
    Manifest,
    ParityError,
    check_finite,
    fake_manifest,
    infer,
    load,
    read_golden,
    self_test,
)
from engine.half import rounded_copy
from engine.parity import extreme_patches
from tests.engine.precisions import BATCH, PATCH_PX, PATCHES, PRECISIONS


@pytest.fixture(scope="module", params=[*PRECISIONS, "fp16 rounded"])
def backend(request: pytest.FixtureRequest, precise: Path) -> Iterator[Backend]:
    """A backend of each precision, and of fp16 as a GPU rounds it."""
    precision, _, rounding = request.param.partition(" ")
    if rounding:
        with rounded_copy(precise) as copy:
            loaded = load(copy, "onnxruntime", precision=precision, threads=1)
    else:
        loaded = load(precise, "onnxruntime", precision=precision, threads=1)
    assert (loaded.runtime, loaded.precision) == ("onnxruntime", precision)
    yield loaded
    loaded.close()


@st.composite
def blocks(draw: st.DrawFn) -> NDArray[np.uint8]:
    """One patch (1, 1, P, P) of blocks, each of one grey level, mostly black or white."""
    side = draw(st.sampled_from([1, 2, 8, 32, PATCH_PX]))
    levels = st.sampled_from([0, 255, 1, 254, 128])
    coarse = draw(hnp.arrays(np.uint8, (PATCH_PX // side,) * 2, elements=levels))
    return np.kron(coarse, np.ones((side, side), np.uint8))[None, None]


@settings(deadline=None, max_examples=20)
@given(patch=blocks())
def test_every_output_is_finite_on_blocks_of_any_size(backend: Backend, patch: NDArray[np.uint8]) -> None:
    features, probability = infer(backend, patch)
    for output in (features.label_features, features.stage1, features.activation, probability):
        assert np.isfinite(output).all()


@settings(deadline=None, max_examples=20)
@given(patch=blocks(), neighbours=st.lists(blocks(), min_size=0, max_size=BATCH - 1), slot=st.integers(0, BATCH - 1))
def test_a_patch_gives_the_same_bits_whatever_else_is_in_the_batch(
    backend: Backend, patch: NDArray[np.uint8], neighbours: list[NDArray[np.uint8]], slot: int
) -> None:
    slot = min(slot, len(neighbours))
    alone = backend.features(patch)
    crowded = backend.features(np.concatenate([*neighbours[:slot], patch, *neighbours[slot:]]))
    for field in fields(Features):
        np.testing.assert_array_equal(getattr(crowded, field.name)[slot], getattr(alone, field.name)[0])


def test_extreme_patches_hold_on_every_precision(backend: Backend) -> None:
    check_finite(backend)


def test_the_golden_patches_are_held_to_the_tolerance_of_what_runs(backend: Backend, precise: Path) -> None:
    golden = read_golden(precise, backend.precision)
    assert golden.tolerance == Manifest.read(precise).parity_tolerance[backend.precision]
    assert self_test(backend, golden) <= golden.tolerance


def test_another_tolerance_would_refuse_int8(precise: Path) -> None:
    int8 = load(precise, "onnxruntime", precision="int8", threads=1)
    golden = read_golden(precise, "int8")
    strict = replace(golden, tolerance=self_test(int8, golden) / 2)
    with pytest.raises(InferenceError, match="golden patches differ by"):
        self_test(int8, strict)


def test_extreme_patches_are_what_they_are_called() -> None:
    black, white, *_ = patches = extreme_patches(PATCH_PX)
    assert patches.shape[1:] == (1, PATCH_PX, PATCH_PX)
    assert patches.dtype == np.uint8
    assert (black.max(), white.min()) == (0, 255)
    assert len({patch.tobytes() for patch in patches}) == len(patches)


@pytest.mark.parametrize("patch_px", [1, 3, 8])
def test_there_are_extreme_patches_of_any_size(patch_px: int) -> None:
    assert extreme_patches(patch_px).shape[1:] == (1, patch_px, patch_px)


def test_a_number_that_is_not_finite_is_told_by_name() -> None:
    def scores(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.where(pixels.max((2, 3)) == 0, np.nan, 0.5)  # black patches alone

    backend = FakeBackend(fake_manifest(("bubble",), patch_px=8), scores)
    with pytest.raises(ParityError, match="fp32 graph gives label_features that are not finite"):
        check_finite(backend)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-trt", "fp64", ""])
def test_a_precision_that_was_not_exported_is_refused(bundle: Path, precision: str) -> None:
    wanted = rf"files: was not exported as {precision}; there are fp32"
    with pytest.raises(BundleError, match=wanted):
        read_golden(bundle, precision)
    with pytest.raises(BundleError, match=wanted):
        load(bundle, "onnxruntime", precision=precision)


def test_without_a_precision_float32_runs(precise: Path) -> None:
    default, float32 = (
        load(precise, "onnxruntime", threads=1),
        load(precise, "onnxruntime", precision="fp32", threads=1),
    )
    assert default.precision == "fp32"
    np.testing.assert_array_equal(default.features(PATCHES[:3]).stage1, float32.features(PATCHES[:3]).stage1)
    int8 = load(precise, "onnxruntime", precision="int8", threads=1)
    assert (int8.features(PATCHES[:3]).stage1 != float32.features(PATCHES[:3]).stage1).any()
