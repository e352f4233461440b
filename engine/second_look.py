"""Where to look a second time: windows centred on a border of windows that may cut a defect in two.

A defect on a border shows half of itself to either window, and neither may take it for one. Windows that overlap by
half see each defect whole, and cost 3.4 times as much. A second look adds a window where the first was in doubt alone:
a score that is neither nil nor enough, of a label whose map is warm at the very edge. Geometry and one rule; pure.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.manifest import Manifest
from engine.warmth import warm_cells
from engine.windows import Window

Side = tuple[int, int]  # (down, right), each -1, 0 or 1: towards which neighbour


def look_again(
    windows: Sequence[Window],
    probability: NDArray[np.float32],
    activation: NDArray[np.float32],
    manifest: Manifest,
) -> tuple[Window, ...]:
    """The windows to add to those of a screen, in row order; none where the bundle does not ask for it.

    A window that does not have a label, but scores `score_min` or more, is doubtful of it. If its map is warm in the
    outermost cells of a side, a window centred on the border with the neighbour there is added; warm in a corner, also
    the one centred where four windows meet. The most doubtful come first, up to `ratio_max` of the windows that there
    are. A label without a map is seen nowhere, and so at no border.

    Args:
        windows: K windows of `cover`. An added one has the row and column of the upper left of those between which it
            lies.
        probability: (K, C) scores of those windows, labels in the manifest's order; what is no number is no doubt.
        activation: (K, C, h, w) where each label was seen.
        manifest: of the bundle that scored them.
    """
    room = manifest.second_look.most(len(windows))
    if room == 0:
        return ()
    grid = {(window.row, window.column): window for window in windows}
    taken = {(window.top, window.left) for window in windows}
    found: dict[Window, float] = {}
    for k, c, doubt in _doubts(probability, manifest):
        for side in _warm_sides(activation[k, c]):
            between = _between(grid, windows[k], side)
            # where windows overlap by nearly all, their middle is one of them
            if between is not None and (between.top, between.left) not in taken:
                found[between] = max(doubt, found.get(between, 0.0))
    order = sorted(found, key=lambda window: (-found[window], window))
    return tuple(sorted(order[:room]))


def _doubts(probability: NDArray[np.float32], manifest: Manifest) -> Iterator[tuple[int, int, float]]:
    """Window, label and doubt in [0, 1]: how near to its threshold the score of a window is that lacks the label."""
    scores = probability.astype(np.float64)
    thresholds = np.array([limits.threshold for limits in manifest.labels.values()])
    for k, c in np.argwhere((scores >= manifest.second_look.score_min) & (scores < thresholds)).tolist():
        yield k, c, float(scores[k, c] / thresholds[c])


def _warm_sides(heat: NDArray[np.float32]) -> Iterator[Side]:
    """The sides and corners at which a map (h, w) is warm in its outermost cell."""
    warm = warm_cells(heat)
    edges = {-1: slice(0, 1), 0: slice(None), 1: slice(-1, None)}
    for down, rows in edges.items():
        for right, columns in edges.items():
            if (down, right) != (0, 0) and warm[rows, columns].any():
                yield down, right


def _between(grid: dict[tuple[int, int], Window], window: Window, side: Side) -> Window | None:
    """The window half way to the neighbour on one side, or None where the frame ends."""
    neighbour = grid.get((window.row + side[0], window.column + side[1]))
    if neighbour is None:
        return None
    return Window(
        row=min(window.row, neighbour.row),
        column=min(window.column, neighbour.column),
        top=(window.top + neighbour.top) // 2,
        left=(window.left + neighbour.left) // 2,
    )
