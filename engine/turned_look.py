"""Where to look turned: windows of which the network is in doubt, seen in all eight positions of a square.

A network that has learnt from patches turned and mirrored is still surer of one position than of another. The mean of
all eight errs less than any one (Simonyan and Zisserman, "Very deep convolutional networks", ICLR 2015, who average
mirrored crops), and is asked for only where a score is neither near to nil nor near to one: most windows are looked at
once. What is averaged are the features, before the screen's patches are reasoned together. Geometry and a rule; pure.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.backend import Features
from engine.looks import TurnedLook

POSITIONS = 8  # of a square: four quarter turns, and as many of its mirror image


def in_doubt(probability: NDArray[np.float32], look: TurnedLook) -> tuple[int, ...]:
    """The windows of a screen to look at in all positions, in their order; none where the bundle does not ask for it.

    A window is doubtful of a label whose score is `score_min` or more, and less than `score_max`. Those with a score
    nearest to the middle come first, up to `ratio_max` of the windows of the screen, and one at least.

    Args:
        probability: (K, C) scores of its windows; what is no number is no doubt.
        look: what the bundle asks for.
    """
    scores = probability.astype(np.float64)
    doubtful = (scores >= look.score_min) & (scores < look.score_max)
    distance = np.where(doubtful, np.abs(scores - (look.score_min + look.score_max) / 2), np.inf).min(axis=1)
    nearest = np.argsort(distance, kind="stable")[: look.most(len(scores))]
    return tuple(sorted(nearest[np.isfinite(distance[nearest])].tolist()))


def turned(patch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The seven other positions of a patch (P, P), (7, 1, P, P).

    Mirrored left to right, top to bottom and then along the diagonal, by a bit of the position each.
    """
    import cv2  # several times as fast as NumPy; a process that looks at nothing turned does without

    mirrored = [patch, *(cv2.flip(patch, axis) for axis in (1, 0, -1))]
    return np.stack([*mirrored[1:], *map(cv2.transpose, mirrored)])[:, None]


def averaged(features: Features, window: int, others: Features) -> Features:
    """Features of a screen, those of one window the mean over its positions; maps are turned back before.

    Args:
        features: of all K windows, as they lie.
        window: which of them.
        others: of its other positions, in the order of `turned`.
    """
    activation = np.stack([_turn_back(heat, position) for position, heat in enumerate(others.activation, start=1)])
    return Features(
        label_features=_with_mean(features.label_features, window, others.label_features),
        stage1=_with_mean(features.stage1, window, others.stage1),
        activation=_with_mean(features.activation, window, activation),
        doubt=features.doubt,
    )


def look_turned(features: Features, doubtful: Sequence[int], see_turned: Callable[[int], Features]) -> Features:
    """Features of a screen whose doubtful windows are looked at in all positions, one after the other.

    Args:
        features: of all K windows, as they lie.
        doubtful: some of them, see `in_doubt`.
        see_turned: features of a window's other positions, in the order of `turned`.
    """
    for window in doubtful:
        features = averaged(features, window, see_turned(window))
    return features


def _with_mean(values: NDArray[np.float32], window: int, others: NDArray[np.float32]) -> NDArray[np.float32]:
    found = values.copy()
    found[window] = (values[window] + others.sum(axis=0)) / POSITIONS
    return found


def _turn_back(heat: NDArray[np.float32], position: int) -> NDArray[np.float32]:
    """Maps of a position as they lay before it was mirrored left to right, top to bottom and along the diagonal."""
    if position & 4:
        heat = np.swapaxes(heat, -1, -2)
    if position & 1:
        heat = heat[..., ::-1]
    return heat[..., ::-1, :] if position & 2 else heat
