import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.architecture import NetworkConfig
from training.network import ReasoningGraph, TwoStageNetwork
from training.reliability import calibration_error, reliability
from training.temperature import COLDEST, HOTTEST, fit_temperature, fit_temperatures, log_loss, sigmoid


def patches(seed: int, *, count: int, temperature: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores that are `temperature` times too far from 0, and labels drawn by what they should have said."""
    rng = np.random.default_rng(seed)
    score = rng.normal(-1, 2, count)
    return score * temperature, rng.random(count) < sigmoid(score)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_the_scores_is_found(temperature: float) -> None:
    score, truth = patches(0, count=20_000, temperature=temperature)
    assert fit_temperature(score, truth) == pytest.approx(temperature, rel=0.05)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60))
def test_no_temperature_has_a_lower_loss(seed: int, count: int) -> None:
    """By a slow search, at the targets that are fitted: (n + 1) / (n + 2) and 1 / (m + 2)."""
    score, truth = patches(seed, count=count, temperature=2.0)
    target = np.where(truth, (truth.sum() + 1) / (truth.sum() + 2), 1 / ((~truth).sum() + 2))

    def loss(temperature: float) -> float:
        return float((np.logaddexp(0, score / temperature) - target * score / temperature).sum())

    found = fit_temperature(score, truth)
    assert COLDEST <= found <= HOTTEST
    assert loss(found) <= min(loss(t) for t in np.geomspace(COLDEST, HOTTEST, 200)) + 1e-6


def test_a_label_that_is_told_apart_is_not_made_certain() -> None:
    score = np.array([-3.0, -2.5, 2.5, 3.0])
    truth = score > 0
    assert sigmoid(score / fit_temperature(score, truth)).max() < 0.9


def test_too_sure_a_label_is_mended_and_another_left_alone() -> None:
    (wild, first), (calm, second) = (patches(seed, count=4000, temperature=t) for seed, t in ((1, 3.0), (2, 1.0)))
    target = np.stack([first, second], axis=1).astype(np.int8)
    target[:100] = -1
    score = np.stack([wild, calm], axis=1)
    score[:100] = 1000.0  # unknown, so it says nothing
    found = fit_temperatures(score, target, np.arange(4000) // 4, labels=["wild", "calm"])
    assert found["wild"].temperature == pytest.approx(3, rel=0.1)
    assert found["wild"].error_after < 0.4 * found["wild"].error_before
    assert found["wild"].loss_after < found["wild"].loss_before
    assert found["calm"].temperature == pytest.approx(1, rel=0.1)
    assert found["calm"].error_after == pytest.approx(found["calm"].error_before, abs=0.01)


def test_one_screen_leaves_none_to_tell_by() -> None:
    score, truth = np.array([[9.0], [-9.0], [-8.0], [7.0]]), np.array([[0], [1], [0], [1]], np.int8)
    (found,) = fit_temperatures(score, truth, np.zeros(4, np.int64), labels=["dot"]).values()
    assert found.temperature == 1
    assert found.loss_after == found.loss_before


def test_few_patches_keep_what_was_learnt() -> None:
    """The label is present on one screen alone: the temperatures of the others know nothing of it."""
    score = np.array([[4.0], [-4.0], [-4.1], [-3.9], [-4.2], [-4.0]])
    target = np.array([[1], [0], [0], [0], [0], [0]], np.int8)
    found = fit_temperatures(score, target, np.arange(6), labels=["dot"])["dot"]
    assert found.loss_after <= found.loss_before
    if found.loss_after == found.loss_before:
        assert found.temperature == 1.0
        assert found.after == found.before


def test_what_is_after_was_not_fitted_on_it() -> None:
    score, truth = patches(4, count=200, temperature=3.0)
    target = truth[:, None].astype(np.int8)
    found = fit_temperatures(score[:, None], target, np.arange(200), labels=["dot"])["dot"]
    best = min(log_loss(score / t, truth) for t in np.geomspace(COLDEST, HOTTEST, 100))
    assert best < found.loss_after < found.loss_before


def test_the_calibration_error_of_a_few_patches() -> None:
    """By hand: of 15 bins the first, the second and the last have two patches each."""
    probability = np.array([0.0, 0.05, 1 / 15, 0.1, 0.98, 1.0])
    truth = np.array([False, False, True, False, True, True])
    bins = reliability(probability, truth)  # what lies between two belongs to the upper, and 1 to the last
    assert [one.probability for one in bins] == pytest.approx([0.025, 1 / 12, 0.99])
    assert [(one.share, one.patches) for one in bins] == [(0.0, 2), (0.5, 2), (1.0, 2)]
    assert calibration_error(probability, truth) == pytest.approx((0.025 + (0.5 - 1 / 12) + 0.01) / 3)
    assert calibration_error(probability[:0], truth[:0]) == 0.0


@given(
    rows=st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=80),
)
def test_the_curve_has_every_patch(rows: list[tuple[float, bool]]) -> None:
    probability = np.array([value for value, _ in rows], np.float32)
    truth = np.array([flag for _, flag in rows])
    bins = reliability(probability, truth)
    assert sum(one.patches for one in bins) == len(rows)
    assert sum(one.share * one.patches for one in bins) == pytest.approx(truth.sum())
    assert sum(one.probability * one.patches for one in bins) == pytest.approx(probability.sum(), abs=1e-4)
    assert [one.probability for one in bins] == sorted(one.probability for one in bins)
    assert 0 <= calibration_error(probability, truth) <= 1


def test_a_tempered_network_divides_its_scores() -> None:
    torch.manual_seed(0)
    network = TwoStageNetwork(3, NetworkConfig(trunk="light", feature_width=8, projection_width=8)).eval()
    feature, cosine = torch.randn(5, 3, 8), torch.rand(5, 3) * 2 - 1
    temperature = torch.tensor([0.5, 1.0, 4.0])
    graph = ReasoningGraph(network)
    with torch.inference_mode():
        before = torch.logit(graph(feature, cosine))
        network.temper(temperature)
        after = torch.logit(graph(feature, cosine))
    torch.testing.assert_close(after, before / temperature, atol=1e-4, rtol=1e-4)
