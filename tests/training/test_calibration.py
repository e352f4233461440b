from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.calibration import REVIEW_CAP, best_threshold, calibrate


def f_at(score: np.ndarray[tuple[int], np.dtype[np.float32]], truth: list[bool], threshold: float) -> float:
    predicted = score >= threshold
    tp = int((predicted & np.array(truth)).sum())
    return 2 * tp / (int(predicted.sum()) + sum(truth)) if tp else 0.0


@given(rows=st.lists(st.tuples(st.integers(2, 98), st.booleans()), min_size=1, max_size=40))
def test_no_threshold_has_a_better_f(rows: list[tuple[int, bool]]) -> None:
    score = np.array([value / 100 for value, _ in rows], np.float32)
    truth = [flag for _, flag in rows]
    chosen = f_at(score, truth, best_threshold(score, np.array(truth)))
    assert chosen >= max(f_at(score, truth, t / 200) for t in range(2, 199)) - 1e-6


def test_a_separable_label_is_cut_in_the_middle_of_the_gap() -> None:
    score = np.array([0.1, 0.2, 0.8, 0.9], np.float32)
    assert best_threshold(score, np.array([False, False, True, True])) == pytest.approx(0.5)


def test_no_positive_leaves_the_default() -> None:
    assert best_threshold(np.array([0.1, 0.9], np.float32), np.array([False, False])) == 0.5


def test_the_band_lies_on_the_highest_score_of_screens_and_skips_unknown_ones() -> None:
    """Screens 0-1 have the label, 2-3 have not, 4 has only an unknown part with a high score."""
    probability = np.array([[0.9], [0.1], [0.7], [0.05], [0.3], [0.2], [0.1], [0.99]], np.float32)
    target = np.array([[1], [0], [1], [0], [0], [0], [0], [-1]], np.int8)
    screens = np.array([0, 0, 1, 1, 2, 2, 3, 4])
    limits = calibrate(probability, target, screens, labels=["dot"])["dot"]
    assert limits.threshold == pytest.approx(0.5)
    low, high = limits.review
    assert low < limits.threshold < high
    assert low == pytest.approx(0.45)  # both screens score over it, so the narrowest band decides
    assert high == pytest.approx(0.55)


def test_overlapping_screens_widen_the_band() -> None:
    probability = np.array([[0.9], [0.35], [0.6], [0.1]], np.float32)
    target = np.array([[1], [1], [0], [0]], np.int8)
    low, high = calibrate(probability, target, np.arange(4), labels=["dot"])["dot"].review
    assert low < 0.36
    assert high > 0.59


def test_a_defect_that_was_not_seen_does_not_send_every_screen_to_review() -> None:
    good = np.linspace(0.01, 0.2, 100, dtype=np.float32)
    probability = np.concatenate([good, [0.95, 0.9, 0.005]]).astype(np.float32)[:, None]
    target = np.array([0] * 100 + [1] * 3, np.int8)[:, None]
    low, _ = calibrate(probability, target, np.arange(103), labels=["dot"])["dot"].review
    assert (good >= low).sum() == math.ceil(REVIEW_CAP * len(good))
