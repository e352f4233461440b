import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import Window
from service.aggregation import aggregate
from service.verdict import Box
from tests.service.strategies import LABELS, PATCH_PX, Screen, manifest, screen, screens

ANY_HEAT = st.floats(width=32) | st.sampled_from([1e6, 1e6 + 0.0625, 1e6 + 0.125])


@given(screens(heat=ANY_HEAT), st.data())
def test_present_counted_and_located_agree(screen: Screen, data: st.DataObject) -> None:
    # thresholds that float32 does not hold, and the float32 next to them
    threshold = data.draw(st.floats(0, 1) | st.sampled_from([0.1, 0.7, 0.9]))
    screen.seen.probability[0, 0] = threshold
    judgement = aggregate(screen.seen, manifest(overlap_px=screen.manifest.overlap_px, threshold=threshold))
    for label, found in judgement.labels.items():
        assert found.present == (found.score >= found.threshold)
        assert found.present == (found.count >= 1)
        assert found.count == sum(defect.label == label for defect in judgement.defects)
        strongest = [defect.score for defect in judgement.defects if defect.label == label]
        assert not found.present or max(strongest) == found.score


@given(screens())
def test_the_score_of_a_label_is_its_highest_over_the_windows(screen: Screen) -> None:
    highest = screen.seen.probability.max(0).tolist()
    assert [found.score for found in screen.judge().labels.values()] == highest


@given(screens(scores=st.sampled_from([0.0, 0.5, 1.0])))
def test_defects_are_the_groups_of_warm_cells(screen: Screen) -> None:
    """Against the slow and simple way: every pair of cells is looked at."""
    seen = screen.seen
    across = max(seen.activation.shape[2:])
    gap_px = PATCH_PX // across if across > 1 else 0
    for index, label in enumerate(LABELS):
        boxes = [
            box
            for k, window in enumerate(seen.windows)
            if seen.probability[k, index] >= 0.5
            for box in warm_boxes(seen.activation[k, index], window)
        ]
        assert sorted(
            (d.box.left, d.box.top, d.box.right, d.box.bottom) for d in screen.judge().defects if d.label == label
        ) == sorted(hulls(boxes, gap_px))


def warm_boxes(heat: NDArray[np.float32], window: Window) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of the warm cells; the whole window where the map is flat."""
    height, width = heat.shape
    middle, highest = float(np.median(heat)), float(heat.max())
    if highest == middle:
        return [(window.left, window.top, window.left + PATCH_PX, window.top + PATCH_PX)]
    return [
        (
            window.left + math.floor(column * PATCH_PX / width),
            window.top + math.floor(row * PATCH_PX / height),
            window.left + math.ceil((column + 1) * PATCH_PX / width),
            window.top + math.ceil((row + 1) * PATCH_PX / height),
        )
        for row in range(height)
        for column in range(width)
        if heat[row, column] > (middle + highest) / 2
    ]


def hulls(boxes: Sequence[tuple[int, int, int, int]], gap_px: int) -> list[tuple[int, int, int, int]]:
    """The box around each group of boxes of which each is near another."""

    def near(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
        return all(max(a[i], b[i]) - min(a[i + 2], b[i + 2]) <= gap_px for i in (0, 1))

    groups: list[list[tuple[int, int, int, int]]] = []
    for box in boxes:
        touched = [group for group in groups if any(near(box, other) for other in group)]
        groups = [group for group in groups if group not in touched] + [[box, *(b for g in touched for b in g)]]
    return [(min(b[0] for b in g), min(b[1] for b in g), max(b[2] for b in g), max(b[3] for b in g)) for g in groups]


@given(screens(scores=st.sampled_from([0.0, 0.5, 1.0]), heat=ANY_HEAT))
def test_boxes_lie_inside_the_frame(screen: Screen) -> None:
    height, width = screen.seen.brightness.size
    for defect in screen.judge().defects:
        box = defect.box
        assert 0 <= box.left < box.right <= width
        assert 0 <= box.top < box.bottom <= height


def spotted(blank: Screen, *spots: Box, score: float = 0.9) -> Screen:
    """The scratches that a network would see: cells over a spot are hot, windows that have one are sure."""
    rows, columns = blank.seen.activation.shape[2:]
    heat = np.zeros(blank.seen.brightness.size, np.float32)
    for spot in spots:
        heat[spot.top : spot.bottom, spot.left : spot.right] = 1
    for k, window in enumerate(blank.seen.windows):
        patch = heat[window.top : window.top + PATCH_PX, window.left : window.left + PATCH_PX]
        blank.seen.activation[k, 1] = patch.reshape(rows, PATCH_PX // rows, columns, -1).max((1, 3))
        blank.seen.probability[k, 1] = score * patch.max()
    return blank


def test_a_scratch_over_five_patches_is_one_defect() -> None:
    (defect,) = spotted(screen(), Box(left=2, top=20, right=78, bottom=22)).judge().defects
    assert defect.label == "scratch"
    assert defect.patches == 5
    assert (defect.row, defect.column) == (1, 0)
    # as coarse as the map, whose cells are 4 pixels
    assert defect.box == Box(left=0, top=20, right=80, bottom=24)


def test_a_slanting_scratch_that_crosses_corners_is_one_defect() -> None:
    steps = [Box(left=4 * step, top=4 * step, right=4 * step + 4, bottom=4 * step + 4) for step in range(1, 11)]
    (defect,) = spotted(screen(), *steps).judge().defects
    assert defect.patches == 3
    assert defect.box == Box(left=4, top=4, right=44, bottom=44)


@pytest.mark.parametrize(
    ("second", "count"),
    [
        # next to the first
        (Box(left=8, top=4, right=12, bottom=8), 1),
        # one cold cell between them
        (Box(left=12, top=4, right=16, bottom=8), 1),
        (Box(left=12, top=12, right=16, bottom=16), 1),
        # two cold cells
        (Box(left=16, top=4, right=20, bottom=8), 2),
        (Box(left=4, top=16, right=8, bottom=20), 2),
        # at the other end of the screen
        (Box(left=70, top=40, right=74, bottom=44), 2),
    ],
)
def test_two_spots_are_two_defects_when_they_are_apart(second: Box, count: int) -> None:
    judgement = spotted(screen(), Box(left=4, top=4, right=8, bottom=8), second).judge()
    assert judgement.labels["scratch"].count == len(judgement.defects) == count


def test_a_spot_that_two_shifted_windows_see_is_one_defect() -> None:
    # two windows across 24 pixels: the second shifts inwards and shares 8 of them with the first
    shared = screen(PATCH_PX, 24)
    assert [window.left for window in shared.seen.windows] == [0, 8]
    (defect,) = spotted(shared, Box(left=9, top=5, right=11, bottom=7)).judge().defects
    assert defect.patches == 2
    assert defect.box == Box(left=8, top=4, right=12, bottom=8)


def test_windows_off_the_grid_of_cells_still_join() -> None:
    # the second window starts at pixel 5, between two cells of the first
    odd = screen(PATCH_PX, 21)
    assert [window.left for window in odd.seen.windows] == [0, 5]
    (defect,) = spotted(odd, Box(left=0, top=4, right=21, bottom=6)).judge().defects
    assert defect.box == Box(left=0, top=4, right=21, bottom=8)


def test_without_a_map_the_box_is_the_window_and_a_clean_window_keeps_two_apart() -> None:
    # the last window shifts inwards, to 24
    blank = screen(PATCH_PX, 40, cells=(1, 1))
    assert [window.left for window in blank.seen.windows] == [0, 16, 24]
    blank.seen.probability[[0, 2], 1] = (0.8, 0.9)
    assert [defect.box for defect in blank.judge().defects] == [
        Box(left=24, top=0, right=40, bottom=16),
        Box(left=0, top=0, right=16, bottom=16),
    ]


@pytest.mark.parametrize(
    "heat",
    [
        # the same everywhere
        np.full((4, 4), 3.5),
        # noise of the last bit
        np.linspace(0, 5e-7, 16).reshape(4, 4),
        # no numbers, or hardly any
        np.full((4, 4), np.nan),
        np.where(np.eye(4), np.nan, 0.0),
        np.where(np.eye(4), np.inf, 0.0),
        np.where(np.tri(4), -np.inf, np.inf),
        np.full((4, 4), -np.inf),
    ],
)
def test_a_map_that_does_not_say_where_gives_the_window(heat: NDArray[np.float64]) -> None:
    clean = screen()
    clean.seen.probability[6, 0] = 0.9
    clean.seen.activation[6, 0] = heat
    (defect,) = clean.judge().defects
    assert defect.box == Box(left=16, top=16, right=32, bottom=32)
    assert defect.patches == 1


@pytest.mark.parametrize(("heat", "right"), [(0.5, 20), (0.51, 24)])
def test_a_cell_is_warm_above_half_of_the_way_to_the_maximum(heat: float, right: int) -> None:
    judged = spotted(screen(), Box(left=16, top=16, right=20, bottom=20))
    judged.seen.activation[6, 1, 0, 1] = heat
    (defect,) = judged.judge().defects
    assert defect.box == Box(left=16, top=16, right=right, bottom=20)


def test_a_map_has_no_absolute_level() -> None:
    spot = Box(left=20, top=20, right=24, bottom=24)
    plain, moved = spotted(screen(), spot), spotted(screen(), spot)
    moved.seen.activation[:] = moved.seen.activation * 7 - 100
    assert plain.judge() == moved.judge()


def test_a_defect_carries_the_place_of_its_strongest_patch() -> None:
    scratch = spotted(screen(), Box(left=2, top=20, right=78, bottom=22))
    scratch.seen.probability[8, 1] = 0.95
    (defect,) = scratch.judge().defects
    assert (defect.row, defect.column, defect.score) == (1, 3, float(np.float32(0.95)))


def test_the_strongest_defect_stands_first() -> None:
    spots = [Box(left=left, top=4, right=left + 4, bottom=8) for left in (4, 36, 68)]
    judged = spotted(screen(), *spots)
    judged.seen.probability[[0, 2, 4], 1] = (0.6, 0.9, 0.8)
    assert [defect.column for defect in judged.judge().defects] == [2, 4, 0]


def test_a_window_under_the_threshold_has_no_defect_however_hot_its_map() -> None:
    judged = spotted(screen(), Box(left=4, top=4, right=8, bottom=8), score=0.49)
    judgement = judged.judge()
    assert judgement.defects == ()
    assert not judgement.labels["scratch"].present
    assert judgement.verdict == "review"
