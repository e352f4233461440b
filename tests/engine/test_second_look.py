"""Where windows are added: in the frame, between windows, never one that is there, never more than were asked for."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from engine import LabelLimits, Manifest, SecondLook, Window, cover, fake_manifest, look_again

LABELS = ("bubble", "scratch")
PATCH_PX = 16
CELLS = 4
Maps = NDArray[np.float32]


def asking(*, score_min: float = 0.1, ratio_max: float = 0.5, overlap_px: int = 0) -> Manifest:
    return replace(
        fake_manifest(LABELS, patch_px=PATCH_PX, overlap_px=overlap_px),
        labels={label: LabelLimits(threshold=0.5, review=(0.3, 0.7)) for label in LABELS},
        second_look=SecondLook(score_min=score_min, ratio_max=ratio_max),
    )


def grid(rows: int, columns: int) -> tuple[Window, ...]:
    return cover(rows * PATCH_PX, columns * PATCH_PX, patch_px=PATCH_PX)


def clean(windows: tuple[Window, ...]) -> tuple[Maps, Maps]:
    form = (len(windows), len(LABELS))
    return np.zeros(form, np.float32), np.zeros((*form, CELLS, CELLS), np.float32)


def places(windows: tuple[Window, ...]) -> list[tuple[int, int]]:
    return [(window.top, window.left) for window in windows]


def looks(
    windows: tuple[Window, ...], *seen: tuple[int, float, tuple[int, int]], asked: Manifest
) -> tuple[Window, ...]:
    """A second look where each of `seen` (window, score, warm cell) is of the first label."""
    probability, activation = clean(windows)
    for window, score, cell in seen:
        probability[window, 0] = score
        activation[window, 0][cell] = 1.0
    return look_again(windows, probability, activation, asked)


# --- the rule ----------------------------------------------------------------------------------------

SIDES = [
    ((1, 3), [(16, 24)]),  # right: on the border with the neighbour
    ((1, 0), [(16, 8)]),
    ((0, 1), [(8, 16)]),
    ((3, 2), [(24, 16)]),
    ((0, 0), [(8, 8), (8, 16), (16, 8)]),  # a corner: four windows meet there
    ((3, 3), [(16, 24), (24, 16), (24, 24)]),
    ((1, 1), []),  # inside: the first look saw it whole
]


@pytest.mark.parametrize(("cell", "expected"), SIDES)
def test_doubt_at_a_border_adds_the_windows_centred_there(
    cell: tuple[int, int], expected: list[tuple[int, int]]
) -> None:
    found = looks(grid(3, 3), (4, 0.3, cell), asked=asking())
    assert places(found) == expected


def test_an_added_window_is_named_by_the_upper_left_of_its_windows() -> None:
    assert looks(grid(3, 3), (4, 0.3, (1, 0)), asked=asking()) == (Window(row=1, column=0, top=16, left=8),)


@pytest.mark.parametrize(
    ("score", "added"), [(0.0, 0), (0.0999, 0), (0.1, 1), (0.4999, 1), (0.5, 0), (1.0, 0), (np.nan, 0), (np.inf, 0)]
)
def test_only_a_score_that_is_neither_nil_nor_enough_is_doubtful(score: float, added: int) -> None:
    assert len(looks(grid(3, 3), (4, score, (1, 0)), asked=asking(score_min=float(np.float32(0.1))))) == added


def test_the_frames_own_edge_is_no_border() -> None:
    assert looks(grid(2, 2), (0, 0.3, (0, 2)), (0, 0.3, (2, 0)), asked=asking()) == ()


def test_the_most_doubtful_come_first_where_not_all_may() -> None:
    windows = grid(3, 3)
    seen = (0, 0.2, (1, 3)), (3, 0.4, (1, 3)), (6, 0.3, (1, 3))
    wanted = {0: [], 1: [(16, 8)], 2: [(16, 8), (32, 8)], 4: [(0, 8), (16, 8), (32, 8)]}
    for most, expected in wanted.items():
        assert places(looks(windows, *seen, asked=asking(ratio_max=most / 9 + 1e-9))) == expected


def test_a_bundle_that_does_not_ask_gets_none() -> None:
    assert looks(grid(3, 3), (4, 0.3, (1, 0)), asked=asking(ratio_max=0)) == ()


@pytest.mark.parametrize("level", [0.0, np.nan, np.inf])
def test_a_map_that_says_nothing_adds_nothing(level: float) -> None:
    windows = grid(3, 3)
    probability, activation = clean(windows)
    probability[:] = 0.3
    activation[:] = level
    assert look_again(windows, probability, activation, asking()) == ()


def test_a_network_without_maps_has_no_second_look() -> None:
    windows = grid(3, 3)
    probability, activation = clean(windows)
    probability[:] = 0.3
    assert look_again(windows, probability, activation[:, :, :1, :1], asking()) == ()


# --- any screen --------------------------------------------------------------------------------------

SCORES = st.sampled_from([0.0, 0.05, 0.2, 0.3, 0.45, 0.6]) | st.floats(0, 1, width=32)
HEAT = st.sampled_from([0.0, 0.0, 0.0, 1.0, 0.4])


@st.composite
def screens(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[Window, ...], Maps, Maps, Manifest]:
    """(height, width), windows, scores, maps and what the bundle asks for; windows often shift at the far edges."""
    size = draw(st.tuples(*[st.integers(PATCH_PX, 5 * PATCH_PX)] * 2))
    asked = asking(
        score_min=draw(st.sampled_from([0.0, 0.1, 0.4])),
        ratio_max=draw(st.sampled_from([0.1, 0.3, 0.5])),
        overlap_px=draw(st.sampled_from([0, 0, 3, 8, 15])),
    )
    windows = cover(*size, patch_px=PATCH_PX, overlap_px=asked.overlap_px)
    form = (len(windows), len(LABELS))
    probability = draw(hnp.arrays(np.float32, form, elements=SCORES))
    activation = draw(hnp.arrays(np.float32, (*form, *draw(st.tuples(*[st.integers(1, 4)] * 2))), elements=HEAT))
    return size, windows, probability, activation, asked


@given(screens())
def test_added_windows_lie_between_windows_and_are_few(
    screen: tuple[tuple[int, int], tuple[Window, ...], Maps, Maps, Manifest],
) -> None:
    (height, width), windows, probability, activation, asked = screen
    found = look_again(windows, probability, activation, asked)
    assert len(found) <= asked.second_look.ratio_max * len(windows)
    assert list(found) == sorted(set(found))
    # neither where a window is already nor twice, so that none can be taken for one that is expected
    assert len({*places(windows), *places(found)}) == len(windows) + len(found)
    tops, lefts = sorted({window.top for window in windows}), sorted({window.left for window in windows})
    middle_tops = {(one + other) // 2 for one, other in pairwise(tops)}
    middle_lefts = {(one + other) // 2 for one, other in pairwise(lefts)}
    for window in found:
        assert 0 <= window.top <= height - PATCH_PX
        assert 0 <= window.left <= width - PATCH_PX
        assert window.top in middle_tops or window.left in middle_lefts
        assert window.top in {*tops, *middle_tops}
        assert window.left in {*lefts, *middle_lefts}


@given(screens())
def test_the_same_screen_gets_the_same_windows_in_whatever_order_they_come(
    screen: tuple[tuple[int, int], tuple[Window, ...], Maps, Maps, Manifest],
) -> None:
    _, windows, probability, activation, asked = screen
    found = look_again(windows, probability, activation, asked)
    turned = look_again(windows[::-1], probability[::-1], activation[::-1], asked)
    assert found == turned


@given(screens(), st.floats(0, 1))
def test_asking_for_less_gives_some_of_the_same(
    screen: tuple[tuple[int, int], tuple[Window, ...], Maps, Maps, Manifest], share: float
) -> None:
    _, windows, probability, activation, asked = screen
    less = replace(asked, second_look=replace(asked.second_look, ratio_max=asked.second_look.ratio_max * share))
    found = set(look_again(windows, probability, activation, less))
    assert found <= set(look_again(windows, probability, activation, asked))
