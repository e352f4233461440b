"""Temperatures: how sure the network is, made as sure as it is right; one for each label.

A temperature divides the score before the sigmoid (Guo et al., "On calibration of modern neural networks", ICML 2017).
It changes no order of scores, so limits that move with it give the same verdicts, and 0.5 stays 0.5. It is given to the
network itself, as a factor of the weights of classifier 2: the graphs, the golden patches and the module then agree
without a further step in any runtime, and what `calibrate` changes later are limits alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine import Manifest
from training.reliability import Bin, calibration_error, reliability

HOTTEST = 10.0
COLDEST = 0.25
FOLDS = 5
_STEPS = 60

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sureness:
    """How sure a network is of a label on known patches, as it was trained and with its temperature.

    What is `after` was measured on patches that the temperature was not fitted on: in turn on each of `FOLDS` parts of
    the screens with that of the others.

    Attributes:
        temperature: of all patches; 1 where it does not lower the loss of patches that it was not fitted on.
        loss_before: mean negative log likelihood.
        loss_after: the same.
        error_before: expected calibration error.
        error_after: the same.
        before: the reliability curve.
        after: the same.
    """

    temperature: float
    loss_before: float
    loss_after: float
    error_before: float
    error_after: float
    before: tuple[Bin, ...]
    after: tuple[Bin, ...]


def fit_temperatures(
    score: Scores, target: NDArray[np.int8], screens: NDArray[np.int64], *, labels: Sequence[str]
) -> dict[str, Sureness]:
    """Temperature and sureness of each label.

    Args:
        score: (N, L) before the sigmoid.
        target: (N, L); 1, 0 or -1 for unknown, which takes no part.
        screens: (N,) number of each patch's screen: the patches of one are never in two parts.
        labels: L names.
    """
    fold = folds_by_screen(screens)
    found = {}
    for column, label in enumerate(labels):
        known = target[:, column] >= 0
        found[label] = _sureness(score[known, column], target[known, column] == 1, fold[known])
    return found


def folds_by_screen(screens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fold (N,) below `FOLDS` of each patch, by the number of its screen: the patches of one are in one fold."""
    numbers, of_patch = np.unique(screens, return_inverse=True)
    return np.random.default_rng(0).permutation(len(numbers))[of_patch] % FOLDS


def temperature_facts(found: Mapping[str, Sureness]) -> dict[str, float | str]:
    """For the manifest."""
    return {f"temperature_{label}": one.temperature for label, one in found.items()}


def temperatures_of(manifest: Manifest) -> list[float]:
    """Of a bundle's labels; 1 of those that were exported without."""
    return [float(manifest.training.get(f"temperature_{label}", 1.0)) for label in manifest.labels]


def _sureness(score: Scores, truth: NDArray[np.bool_], fold: NDArray[np.int64]) -> Sureness:
    temperature, cooled = round(fit_temperature(score, truth), 4), score.copy()
    if len(np.unique(fold)) > 1:  # of one screen, no patch is left out to tell by
        for part in range(FOLDS):
            cooled[fold == part] /= fit_temperature(score[fold != part], truth[fold != part])
    if log_loss(cooled, truth) >= log_loss(score, truth):  # few patches, or nothing to mend
        temperature, cooled = 1.0, score
    before, after = sigmoid(score), sigmoid(cooled)
    return Sureness(
        temperature=temperature,
        loss_before=log_loss(score, truth),
        loss_after=log_loss(cooled, truth),
        error_before=calibration_error(before, truth),
        error_after=calibration_error(after, truth),
        before=reliability(before, truth),
        after=reliability(after, truth),
    )


def fit_temperature(score: Scores, truth: NDArray[np.bool_]) -> float:
    """The temperature with the least negative log likelihood, within `COLDEST` to `HOTTEST`.

    The likelihood is convex in 1/T, so the sign of its slope leads to it. The targets are Platt's (1999): with few
    patches nothing is certain, and a label that is told apart without an error would else ask for T = 0.

    Args:
        score: (N,) before the sigmoid.
        truth: (N,).
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    target = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        slope = float(((sigmoid(score * middle) - target) * score).sum())
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 2 / (low + high)


def sigmoid(score: Scores) -> Scores:
    """Probabilities of scores; nothing overflows."""
    return np.asarray(np.where(score >= 0, 1.0, np.exp(-np.abs(score))) / (1 + np.exp(-np.abs(score))))


def log_loss(score: Scores, truth: NDArray[np.bool_]) -> float:
    """Mean negative log likelihood of scores (N,) before the sigmoid."""
    return float(np.logaddexp(0, np.where(truth, -score, score)).mean()) if len(score) else 0.0
