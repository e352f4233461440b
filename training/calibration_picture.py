"""The picture of a calibration: what the scores of screens are, where the zones lie, and whether probabilities hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.calibration import Calibration
from training.plots import require
from training.reliability import Bin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = Mapping[str, Mapping[str, Sequence[Bin]]]  # by label: curves by name

PANEL_IN, DOTS_PER_IN = 3.4, 120
# Okabe and Ito, which colour-blind people tell apart
CLEAN, WITH_IT, WITH_OTHERS = "#0072B2", "#D55E00", "#999999"
PASS, REVIEW, FAIL = "#009E73", "#E69F00", "#D55E00"
LINES = ("#999999", "#0072B2")
_EDGE = 7.0  # of a logit, beyond which scores are drawn at the edge
_TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


def draw(path: Path, *, calibration: Calibration | None, curves: Curves) -> None:
    """Draw a column for each label: its scores with the zones, if there is a calibration, and its reliability.

    Args:
        path: of the picture; its suffix decides the format.
        calibration: whose zones are drawn, or None.
        curves: reliability by label.

    Raises:
        ValueError: matplotlib is not installed.
        OSError: it cannot be written.
    """
    require()
    from matplotlib.figure import Figure

    rows = 1 if calibration is None else 2
    figure = Figure(figsize=(PANEL_IN * len(curves), PANEL_IN * rows), layout="constrained")
    grid = figure.subplots(rows, len(curves), squeeze=False)
    for column, (label, by_name) in enumerate(curves.items()):
        if calibration is not None:
            _scores(grid[0, column], calibration, column, label)
        _reliability(grid[rows - 1, column], by_name, label)
    for row in grid:
        row[0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path, dpi=DOTS_PER_IN)


def _scores(axes: "Axes", calibration: Calibration, column: int, label: str) -> None:
    """Histograms of the highest scores of screens, over the zones."""
    low, high = (_place(np.array([limit]))[0] for limit in calibration.limits[label].review)
    for left, right, colour in ((-_EDGE, low, PASS), (low, high, REVIEW), (high, _EDGE, FAIL)):
        axes.axvspan(left, right, color=colour, alpha=0.15, linewidth=0)
    score, has = _place(calibration.screens.highest[:, column]), calibration.has
    with_it = has[:, column]
    kinds = {
        "clean": (~has.any(axis=1), CLEAN),
        "with other labels": (has.any(axis=1) & ~with_it, WITH_OTHERS),
        "with it": (with_it, WITH_IT),
    }
    edges = np.linspace(-_EDGE, _EDGE, 29).tolist()
    for name, (which, colour) in kinds.items():
        axes.hist(score[which], edges, histtype="step", color=colour, linewidth=1.6, label=name)
    axes.set_title(label, loc="left", fontweight="bold")
    axes.set_xticks(_place(np.array(_TICKS)), [f"{tick:g}" for tick in _TICKS], fontsize=8)
    axes.set_xlim(-_EDGE, _EDGE)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xlabel("highest score of a screen")
    axes.set_ylabel("screens")


def _reliability(axes: "Axes", by_name: Mapping[str, Sequence[Bin]], label: str) -> None:
    """Share of patches with the label by probability; on the diagonal it is what it says."""
    axes.plot([0, 1], [0, 1], color="#CCCCCC", linewidth=1, zorder=0)
    for (name, bins), colour in zip(by_name.items(), LINES[-len(by_name) :], strict=True):
        axes.plot(
            [one.probability for one in bins], [one.share for one in bins], color=colour, marker="o", ms=3, label=name
        )
    axes.set_title(label, loc="left", fontweight="bold")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("probability of a patch")
    axes.set_ylabel("share of patches with it")


def _place(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where a score is drawn: its logit, so that neither end is crowded."""
    within = np.clip(probability, 1e-9, 1 - 1e-9)
    return np.asarray(np.clip(np.log(within / (1 - within)), -_EDGE, _EDGE))
