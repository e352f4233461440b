"""Outcomes by size, contrast and distance to a border: where a network is weak, which one figure hides. No torch."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from training.measures import Share, wilson
from training.visible import CROSSED, Visible

Bands = Mapping[str, tuple[float, float]]  # from the first to the second, the second exclusive

SIZE_BANDS: Bands = {"0-8 px": (0, 8), "8-32 px": (8, 32), "32-128 px": (32, 128), "from 128 px": (128, math.inf)}
# which `CONTRAST` says the meaning of
CONTRAST_BANDS: Bands = {"0-6": (0, 6), "6-12": (6, 12), "12-24": (12, 24), "24-inf": (24, math.inf)}
CONTRAST = (
    "in multiples of the local noise: what conditions.csv tells, of rendered defects their strongest pixel; where it "
    "tells nothing, the mean of the strongest nine pixels"
)
# of a defect's box to the nearest border inside the frame
BORDER_BANDS: Bands = {
    "crossed": (CROSSED, 0),
    "0-16 px": (0, 16),
    "16-64 px": (16, 64),
    "from 64 px": (64, sys.maxsize),
}


def by_band(outcomes: Iterable[tuple[bool, float | None]], bands: Bands) -> dict[str, Share]:
    """The share of true outcomes in each band that has any; an outcome without a value is in none."""
    listed = [(outcome, value) for outcome, value in outcomes if value is not None]
    inside = {
        name: [outcome for outcome, value in listed if low <= value < high] for name, (low, high) in bands.items()
    }
    return {name: wilson(sum(found), len(found)) for name, found in inside.items() if found}


def recall_by_band(
    predicted: NDArray[np.bool_],
    target: NDArray[np.int8],
    visible: Sequence[Sequence[Visible]],
    *,
    labels: Sequence[str],
) -> dict[str, dict[str, dict[str, Share]]]:
    """Recall by `size`, `contrast` and `border`, then label, then band.

    Of several defects of its label in a patch the easiest counts: the largest, the strongest, the one farthest from a
    border. So each patch with the label is in one band of each kind, unless the data does not tell its value.

    Args:
        predicted: (N, L) whether a patch was said to have a label.
        target: (N, L); 1, 0 or -1.
        visible: what lies in each of the N patches.
        labels: L names.
    """
    found: dict[str, dict[str, dict[str, Share]]] = {"size": {}, "contrast": {}, "border": {}}
    for column, label in enumerate(labels):
        rows = np.flatnonzero(target[:, column] == 1).tolist()
        present = [[one for one in visible[row] if one.label == label and one.presence == 1] for row in rows]
        hits = predicted[rows, column].tolist()
        for kind, bands, values in (
            ("size", SIZE_BANDS, [_most(one.size_px for one in seen) for seen in present]),
            ("contrast", CONTRAST_BANDS, [_most(one.contrast for one in seen) for seen in present]),
            ("border", BORDER_BANDS, [_most(one.border_px for one in seen) for seen in present]),
        ):
            found[kind][label] = by_band(zip(hits, values, strict=True), bands)
    return found


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
