"""Thresholds and review bands from a validation part. Statistics are frozen here and stored in the manifest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine import LabelLimits

# Shares of screens on the wrong side of the review band that calibration aims at, per label: of those with the
# label, how many may score below `low` (escapes); of those without it, how many may reach `high` (overkill).
ESCAPE_AIM = 0.002
OVERKILL_AIM = 0.004
# Of the screens without the label, how many may reach `low` at most, whatever that does to escapes: one defect that
# the network does not see at all would otherwise send every screen to review.
REVIEW_CAP = 0.03
# A small validation part separates perfectly; a line needs some band all the same: at least this much above the
# threshold, and below it too unless that would take more than `REVIEW_CAP` of the good screens.
NARROWEST_BAND = 0.05


def calibrate(
    probability: NDArray[np.float32],
    target: NDArray[np.int8],
    screens: NDArray[np.int64],
    *,
    labels: Sequence[str],
) -> dict[str, LabelLimits]:
    """Limits of each label.

    The threshold gives the best F on the known patches, and where a range of thresholds does, its middle. The review
    band is placed on the highest score of each screen: from the score that nearly all screens with the label reach,
    to the score that nearly no screen without it reaches; `REVIEW_CAP` bounds how far down it goes.

    Args:
        probability: (N, L) of the validation part, patches reasoned by screen.
        target: (N, L); 1, 0 or -1.
        screens: (N,) number of each patch's screen.
        labels: L names.
    """
    limits = {}
    for column, label in enumerate(labels):
        known = target[:, column] >= 0
        threshold = best_threshold(probability[known, column], target[known, column] == 1)
        numbers = np.unique(screens)
        highest = np.array([probability[screens == n, column].max() for n in numbers])
        # a screen whose every sign of the label is "unknown" says nothing about the band
        truth = np.array([target[screens == n, column].max() for n in numbers])
        unsure = np.array([(target[screens == n, column] < 0).any() for n in numbers])
        limits[label] = _band(threshold, highest[truth == 1], highest[(truth == 0) & ~unsure])
    return limits


def best_threshold(score: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """The threshold with the best F, in the middle of the gap it lies in; 0.5 where there is no positive."""
    if not truth.any():
        return 0.5
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], np.cumsum(truth[order])
    f = 2 * hits / (np.arange(1, len(score) + 1) + truth.sum())
    ends = np.append(ranked[1:] < ranked[:-1], True)  # equal scores fall together
    best = int(np.argmax(np.where(ends, f, -1)))
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float(np.clip((float(ranked[best]) + float(below)) / 2, 0.01, 0.99))


def _cap(good: NDArray[np.float32]) -> float:
    """The score that no more than `REVIEW_CAP` of the screens without the label reach; 0 where all of them may."""
    falling = -np.sort(-good)
    allowed = math.ceil(REVIEW_CAP * len(good))
    return float(falling[allowed - 1 : allowed + 1].mean()) if allowed < len(falling) else 0.0


def _band(threshold: float, bad: NDArray[np.float32], good: NDArray[np.float32]) -> LabelLimits:
    low = float(np.quantile(bad, ESCAPE_AIM)) if len(bad) else threshold
    high = float(np.quantile(good, 1 - OVERKILL_AIM)) if len(good) else threshold
    low = max(min(low, threshold - NARROWEST_BAND), _cap(good))
    high = max(high, threshold + NARROWEST_BAND)
    return LabelLimits(
        threshold=round(threshold, 4),
        review=(round(float(np.clip(low, 0.005, threshold)), 4), round(float(np.clip(high, threshold, 0.995)), 4)),
    )
