import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import (
    DEFAULT_BUNDLE,
    FakeBackend,
    InferenceError,
    Manifest,
    RuntimeUnavailable,
    fake_manifest,
    infer,
    load,
    read_golden,
    self_test,
)
from engine.manifest import NAME


def scoring(scores: NDArray[np.float64]) -> FakeBackend:
    """A backend that gives these (n, C) scores for any n patches."""
    labels = [f"label_{index}" for index in range(scores.shape[1])]
    return FakeBackend(fake_manifest(labels, patch_px=8), lambda pixels: scores)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_the_score_of_the_function_is_the_probability(values: list[float]) -> None:
    _, probability = infer(scoring(np.array([values])), np.zeros((1, 1, 8, 8), np.uint8))
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability[0], values, atol=1e-6)


def test_certain_scores_stay_certain() -> None:
    _, probability = infer(scoring(np.array([[0.0, 1.0, 0.5]])), np.zeros((1, 1, 8, 8), np.uint8))
    assert probability.tolist() == [[0.0, 1.0, 0.5]]


def test_a_score_that_is_no_number_stays_so() -> None:
    _, probability = infer(scoring(np.array([[float("nan"), 0.5]])), np.zeros((1, 1, 8, 8), np.uint8))
    assert np.isnan(probability).tolist() == [[True, False]]


def test_it_has_the_form_of_a_one_stage_network() -> None:
    features = scoring(np.array([[0.9, 0.2]])).features(np.zeros((1, 1, 8, 8), np.uint8))
    assert features.label_features.shape == (1, 2, 1)
    np.testing.assert_array_equal(features.label_features[:, :, 0], features.stage1)
    assert features.activation.shape == (1, 2, 1, 1)
    assert not features.activation.any()


def test_the_function_sees_the_patches_and_no_padding() -> None:
    seen: list[NDArray[np.uint8]] = []

    def brightness(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        seen.append(pixels)
        return np.asarray(pixels.mean((2, 3)) / 255)

    backend = FakeBackend(fake_manifest(["bright"], patch_px=8, batch_size=2), brightness)
    patches = np.arange(0, 250, 50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    _, probability = infer(backend, patches)
    np.testing.assert_allclose(probability[:, 0] * 255, [0, 50, 100, 150, 200], atol=1e-3)
    assert [len(batch) for batch in seen] == [2, 2, 1]


def test_an_error_of_the_function_goes_through() -> None:
    def broken(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        raise InferenceError("no device")

    with pytest.raises(InferenceError, match="no device"):
        FakeBackend(fake_manifest(patch_px=8), broken).features(np.zeros((1, 1, 8, 8), np.uint8))


def test_a_function_that_loses_a_row_is_found_out() -> None:
    with pytest.raises(InferenceError, match=r"scores of shape \(1, 2\)"):
        scoring(np.zeros((1, 2))).features(np.zeros((2, 1, 8, 8), np.uint8))


def test_behind_a_bundle_it_passes_the_self_test(bundle: Path) -> None:
    golden = read_golden(bundle)
    assert self_test(load(bundle, "fake"), golden) <= golden.tolerance
    assert self_test(load(DEFAULT_BUNDLE, "fake"), read_golden(DEFAULT_BUNDLE)) <= 1e-6


def test_behind_a_bundle_pixels_decide_and_most_patches_are_clean(bundle: Path) -> None:
    backend = load(bundle, "fake")
    pixels = np.random.default_rng(0).integers(0, 256, (6000, 1, 64, 64), np.uint8)
    _, probability = infer(backend, pixels)
    marked = (probability > 0).any(axis=1)
    assert 0 < marked.sum() < 30  # twelve on average
    assert ((probability > 0).sum(axis=1) <= 1).all()
    _, again = infer(load(bundle, "fake", batch_size=2), pixels[marked])
    np.testing.assert_array_equal(again, probability[marked])


@pytest.mark.parametrize(("name", "told"), [("tiny", "fake-tiny"), ("n" * 64, f"fake-{'n' * 59}")])
def test_behind_a_bundle_no_verdict_can_be_taken_for_one_of_its_network(
    bundle: Path, tmp_path: Path, name: str, told: str
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    replace(Manifest.read(copy), name=name).write(copy)
    manifest = load(copy, "fake").manifest
    assert (manifest.name, manifest.version) == (told, "1.0.0")  # two bundles stay two
    assert NAME.fullmatch(manifest.name)


def test_it_has_no_precision_but_float32(bundle: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="int8"):
        load(bundle, "fake", precision="int8")
