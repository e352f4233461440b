"""The boxes worth having, against all boxes that there are."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.frontier import Box, Screens, frontier


def random_screens(seed: int, *, screens: int, labels: int) -> Screens:
    """Scores at odd twentieths, so that many are equal; half are defective."""
    rng = np.random.default_rng(seed)
    defective = np.arange(screens) % 2 == 0
    score = rng.integers(0, 7, (screens, labels))
    score[defective, rng.integers(0, labels, int(defective.sum()))] += rng.integers(0, 4, int(defective.sum()))
    return Screens((score / 10 + 0.05).round(2), defective)


def inside(screens: Screens, limits: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[int, int]:
    """Clean and defective screens in a box."""
    within = (screens.highest < limits).all(axis=1)
    return int((within & ~screens.defective).sum()), int((within & screens.defective).sum())


def counts(boxes: list[Box]) -> list[tuple[int, int]]:
    return [(box.clean, box.defective) for box in boxes]


@given(
    seed=st.integers(0, 2**32 - 1),
    screens=st.integers(1, 14),
    floor=st.integers(0, 9),
    ceiling=st.integers(10, 20),
    place=st.sampled_from([0.25, 0.75]),
)
def test_they_are_the_best_of_all(seed: int, screens: int, floor: int, ceiling: int, place: float) -> None:
    """With ends of the limits on scores and between them."""
    at = random_screens(seed, screens=screens, labels=2)
    limits = (np.arange(floor, ceiling + 1) / 20).round(2)
    lowest, highest = np.full(2, limits[0]), np.full(2, limits[-1])
    every = [inside(at, np.array(pair)) for pair in itertools.product(limits, repeat=2)]
    most: list[tuple[int, int]] = []  # clean ones, by the number of defective ones
    for defective in range(screens + 1):
        clean = max((c for c, d in every if d == defective), default=-1)
        if clean > (most[-1][0] if most else -1):
            most.append((clean, defective))
    found = frontier(at, lowest, highest, place=place)
    assert counts(found) == most
    for box in found:
        assert ((lowest <= box.limits) & (box.limits <= highest)).all()
        assert inside(at, box.limits) == (box.clean, box.defective)


@pytest.mark.parametrize("seed", [1, 3])
def test_a_wide_search_finds_what_a_narrow_one_misses(seed: int) -> None:
    screens = random_screens(seed, screens=24, labels=2)
    narrow, wide, all_of_them = (
        counts(frontier(screens, np.zeros(2), np.ones(2), place=0.5, width=width)) for width in (1, 32, 10**6)
    )
    assert narrow != wide == all_of_them
    # no box of the narrow search is better than that of the wide one with as many defective screens
    assert all(max(clean for clean, d in wide if d <= defective) >= of_narrow for of_narrow, defective in narrow)


@pytest.mark.parametrize("place", [0.25, 0.75])
def test_a_limit_stands_at_its_place_in_the_gap(place: float) -> None:
    screens = Screens(np.array([[0.2], [0.3], [0.7], [0.9]]), np.array([False, False, True, True]))
    first, *_ = frontier(screens, np.zeros(1), np.ones(1), place=place)
    assert (first.clean, first.defective) == (2, 0)
    assert first.limits == pytest.approx([0.3 + place * 0.4])


def test_what_no_limit_can_keep_outside_ends_no_gap() -> None:
    """The defective screen at 0.4 is below the lowest limit there may be."""
    screens = Screens(np.array([[0.2], [0.4], [0.9]]), np.array([False, True, True]))
    (box, *_) = frontier(screens, np.full(1, 0.5), np.ones(1), place=0.75)
    assert (box.clean, box.defective) == (1, 1)
    assert box.limits == pytest.approx([0.2 + 0.75 * 0.7])


def test_a_screen_is_kept_outside_by_the_label_in_which_it_stands_out() -> None:
    """The other label's limit is then free to stand where its own gap is, which here ends at 1."""
    screens = Screens(np.array([[0.2, 0.5], [0.9, 0.6]]), np.array([False, True]))
    (box, *_) = frontier(screens, np.zeros(2), np.ones(2), place=0.5)
    assert box.limits == pytest.approx([0.55, 0.75])


def test_a_screen_stands_out_by_the_odds_of_its_score() -> None:
    """From 0.9 to 0.99 is further than from 0.4 to 0.6, though the difference is smaller."""
    screens = Screens(np.array([[0.9, 0.4], [0.99, 0.6]]), np.array([False, True]))
    (box, *_) = frontier(screens, np.zeros(2), np.ones(2), place=0.5)
    assert box.limits == pytest.approx([0.945, 0.7])
