import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import fake_manifest
from tests.training.small import heard_network
from tests.training.small import patches as pixels
from training.network import ReasoningGraph
from training.reliability import calibration_error, reliability
from training.temperature import (
    COLDEST,
    FOLDS,
    HOTTEST,
    Sureness,
    fit_temperature,
    fit_temperatures,
    folds_by_screen,
    log_loss,
    sigmoid,
    temperature_facts,
    temperatures_of,
)


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


def test_temperatures_end_at_a_quarter_and_at_ten() -> None:
    truth = np.arange(400) % 2 == 0
    wrong, timid = np.where(truth, -50.0, 50.0), np.where(truth, 0.01, -0.01)
    assert (fit_temperature(wrong, truth), fit_temperature(timid, truth)) == pytest.approx((10, 0.25))


def test_the_loss_is_the_mean_of_what_each_patch_costs() -> None:
    score, truth = np.array([2.0, -1.0, 1000.0, -1000.0]), np.array([True, False, True, True])
    assert log_loss(score, truth) == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + 1000) / 4)
    assert log_loss(score[:0], truth[:0]) == 0
    assert sigmoid(score) == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1)), 1, 0])


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


@pytest.mark.parametrize("seed", range(4))
def test_what_is_after_was_not_fitted_on_it(seed: int) -> None:
    """Each patch is told by the temperature of the screens of other folds, written out patch by patch."""
    score, truth = patches(seed, count=45, temperature=3.0)
    screens = np.random.default_rng(seed).permutation(np.arange(45) // 3)
    found = fit_temperatures(score[:, None], truth[:, None].astype(np.int8), screens, labels=["dot"])["dot"]
    fold = folds_by_screen(screens)
    cooled = np.zeros(45)
    for patch in range(45):
        others = [k for k in range(45) if fold[k] != fold[patch]]
        cooled[patch] = score[patch] / fit_temperature(score[others], truth[others])
    on_itself = log_loss(score / fit_temperature(score, truth), truth)
    assert abs(log_loss(cooled, truth) - on_itself) > 1e-4  # else nobody could tell which of both it is
    assert found.loss_after == pytest.approx(log_loss(cooled, truth), abs=1e-9)
    assert found.loss_before == pytest.approx(log_loss(score, truth), abs=1e-9)
    assert found.loss_after < found.loss_before
    assert found.temperature == round(fit_temperature(score, truth), 4)
    assert found.before == reliability(sigmoid(score), truth)
    assert found.after == reliability(sigmoid(cooled), truth)
    assert found.error_before == calibration_error(sigmoid(score), truth)
    assert found.error_after == calibration_error(sigmoid(cooled), truth)


@given(seed=st.integers(0, 2**32 - 1), screens=st.integers(1, 30), patches=st.integers(1, 90))
def test_the_patches_of_a_screen_are_in_one_fold_and_folds_are_as_large(seed: int, screens: int, patches: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, screens, patches) * 7
    fold = folds_by_screen(numbers)
    of_screen = {int(number): set(fold[numbers == number].tolist()) for number in numbers}
    assert all(len(folds) == 1 for folds in of_screen.values())
    sizes = np.bincount([next(iter(folds)) for folds in of_screen.values()], minlength=FOLDS)
    assert len(sizes) == FOLDS
    assert sizes.max() - sizes.min() <= 1


def test_a_temperature_that_helps_only_what_it_was_fitted_on_is_not_kept() -> None:
    """Right on all screens but one, which is wrong and surer: what that asks for, the others ask for only with it."""
    score = np.array([*[3.0, -3.0] * 6, -9.0])
    truth = np.array([*[True, False] * 6, True])
    found = fit_temperatures(score[:, None], truth[:, None].astype(np.int8), np.arange(13), labels=["dot"])["dot"]
    temperature = fit_temperature(score, truth)
    assert temperature > 1.1
    assert log_loss(score / temperature, truth) < log_loss(score, truth) - 0.1
    assert (found.temperature, found.loss_after, found.after) == (1.0, found.loss_before, found.before)


def test_each_label_is_told_by_its_own_scores() -> None:
    first, second = (patches(seed, count=200, temperature=t) for seed, t in ((6, 3.0), (7, 0.5)))
    score, target = (np.stack(pair, axis=1) for pair in zip(first, second, strict=True))
    target = target.astype(np.int8)
    target[::5, 1] = -1
    screens = np.arange(200) // 5
    both = fit_temperatures(score, target, screens, labels=["a", "b"])
    for column, label in enumerate("ab"):
        one = slice(column, column + 1)
        assert both[label] == fit_temperatures(score[:, one], target[:, one], screens, labels=["x"])["x"]
    assert both["a"].temperature > 2 > 1 > both["b"].temperature


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
    """What is seen of a patch, and what is heard of the others."""
    network = heard_network()
    temperature = torch.tensor([0.5, 1.0, 4.0])
    with torch.inference_mode():
        before = network(pixels(5))
        alone = network(pixels(5), group_N=torch.arange(5))
        network.temper(temperature)
        after = network(pixels(5))
        probability = ReasoningGraph(network)(before.feature_NLF, before.cosine_NL)
    assert before.score_NL is not None
    assert (before.score_NL - alone.score_NL).abs().max() > 0.01
    torch.testing.assert_close(after.score_NL, before.score_NL / temperature, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probability, torch.sigmoid(before.score_NL / temperature), atol=1e-5, rtol=1e-5)
    assert torch.equal(after.logit_NL, before.logit_NL)  # stage 1 is left alone


def test_a_bundle_tells_the_temperatures_of_its_labels() -> None:
    found = {"dot": sureness(2.5), "line": sureness(0.8)}
    facts = temperature_facts(found)
    manifest = fake_manifest(("dot", "line", "blot"), patch_px=64, batch_size=1)
    assert temperatures_of(replace(manifest, training={**manifest.training, **facts})) == [2.5, 0.8, 1.0]


def sureness(temperature: float) -> Sureness:
    nothing = {"loss_before": 0.0, "loss_after": 0.0, "error_before": 0.0, "error_after": 0.0}
    return Sureness(temperature=temperature, before=(), after=(), **nothing)
