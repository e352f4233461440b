import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.costs import Costs
from training.frontier import Screens, frontier
from training.measures import enough, wilson
from training.zones import (
    NARROWEST_BAND,
    Tally,
    Zones,
    allowed_escapes,
    best_zones,
    lowered,
    outcomes,
    rounded,
    tally,
    worse,
    worth,
)

UNCAPPED = Costs(review_capacity=1, escape_cap=0.999)


def screens_of(defective: NDArray[np.float64], clean: NDArray[np.float64]) -> Screens:
    return Screens(np.concatenate([defective, clean]), np.arange(len(defective) + len(clean)) < len(defective))


def random_screens(seed: int, *, screens: int, labels: int) -> Screens:
    """Scores at a tenth, so that many are equal; a defective screen tends to score higher in one label."""
    rng = np.random.default_rng(seed)
    defective = np.arange(screens) % 2 == 0
    score = rng.integers(0, 7, (screens, labels))
    score[defective, rng.integers(0, labels, int(defective.sum()))] += rng.integers(0, 4, int(defective.sum()))
    return Screens(score / 10 + 0.05, defective)


def every_zone(labels: int, threshold: float) -> list[Zones]:
    """All zones that scores at a tenth tell apart."""
    limits = np.arange(11) / 10
    pairs = [
        (low, high)
        for low in (*limits[limits < threshold], threshold)
        for high in (threshold + NARROWEST_BAND, *limits[limits > threshold + NARROWEST_BAND])
    ]
    return [np.array(zones) for zones in itertools.product(pairs, repeat=labels)]


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("cap", [0.999, 0.4, 0.001])
def test_no_other_zones_cost_less(labels: int, cap: float) -> None:
    rng = np.random.default_rng(labels)
    for seed in range(12):
        screens = random_screens(seed, screens=10, labels=labels)
        escape, overkill, prevalence = rng.choice([3, 10, 60]), rng.choice([2, 10]), rng.choice([0.05, 0.5])
        costs = Costs(
            escape_cost=escape, overkill_cost=overkill, prevalence=prevalence, review_capacity=1, escape_cap=cap
        )
        threshold = 0.5
        allowed = allowed_escapes(costs, 5)
        best = min(worth(tally(screens, zones), costs, allowed) for zones in every_zone(labels, threshold))
        found = tally(screens, best_zones(screens, costs, np.full(labels, threshold)))
        assert worth(found, costs, allowed) == pytest.approx(best)


@given(seed=st.integers(0, 2**32 - 1), labels=st.integers(1, 3), screens=st.integers(2, 30), data=st.data())
def test_zones_hold_the_threshold_and_a_band(seed: int, labels: int, screens: int, data: st.DataObject) -> None:
    costs = Costs(
        escape_cap=data.draw(st.floats(0.001, 0.9)),
        review_capacity=data.draw(st.floats(0, 1)),
        prevalence=data.draw(st.floats(0.01, 0.99)),
    )
    threshold = st.one_of(st.floats(1e-6, 1 - 1e-6), st.floats(0.99, 1 - 1e-6))
    thresholds = rounded(np.array(data.draw(st.lists(threshold, min_size=labels, max_size=labels))), 4)
    zones = best_zones(random_screens(seed, screens=screens, labels=labels), costs, thresholds)
    assert (zones[:, 0] <= thresholds).all()  # as a manifest asks
    assert (thresholds <= zones[:, 1]).all()
    assert ((zones >= 0) & (zones <= 1)).all()
    assert (zones[:, 1] - zones[:, 0] >= NARROWEST_BAND - 1e-12).all()


def test_the_tally_is_what_a_loop_counts() -> None:
    screens = random_screens(3, screens=40, labels=3)
    zones = np.array([[0.3, 0.7], [0.2, 0.5], [0.55, 0.95]])
    counts = dict.fromkeys(("pass", "review", "fail"), 0)
    expected = {kind: dict(counts) for kind in (True, False)}
    for scores, defective in zip(screens.highest.tolist(), screens.defective.tolist(), strict=True):
        outcome = "pass"
        for score, (low, high) in zip(scores, zones.tolist(), strict=True):
            if score >= high:
                outcome = "fail"
            elif score >= low and outcome == "pass":
                outcome = "review"
        expected[defective][outcome] += 1
    found = tally(screens, zones)
    assert (found.escapes, found.reviewed_defective) == (expected[True]["pass"], expected[True]["review"])
    assert (found.overkills, found.reviewed_clean) == (expected[False]["fail"], expected[False]["review"])
    costs = Costs(prevalence=0.2, escape_cost=7, overkill_cost=3, review_cost=2)
    bad, good = sum(expected[True].values()), sum(expected[False].values())
    by_hand = 0.2 * (7 * found.escapes + 2 * found.reviewed_defective) / bad
    by_hand += 0.8 * (3 * found.overkills + 2 * found.reviewed_clean) / good
    assert found.cost(costs) == pytest.approx(by_hand)


@given(seed=st.integers(0, 2**32 - 1))
def test_the_worse_of_two_verdicts_is_that_of_a_whole_screen(seed: int) -> None:
    one, other = (random_screens(number, screens=20, labels=2) for number in (seed, seed + 1))
    zones = np.array([[0.4, 0.7], [0.5, 0.9]])
    both = [outcomes(screens, zones) for screens in (one, other)]
    expected = np.where(one.defective, np.minimum(*both), np.maximum(*both))
    np.testing.assert_array_equal(outcomes(worse(one, other.highest, zones), zones), expected)


def test_a_label_need_not_see_what_another_sees() -> None:
    """Each defective screen stands out in one label alone, and is low in the other like the clean ones."""
    rng = np.random.default_rng(0)
    clean = rng.uniform(0, 0.3, (30, 2))
    defective = rng.uniform(0, 0.3, (20, 2))
    defective[np.arange(20), np.arange(20) % 2] = rng.uniform(0.8, 0.9, 20)
    screens = screens_of(defective, clean)
    zones = best_zones(screens, UNCAPPED, np.array([0.5, 0.5]))
    found = tally(screens, zones)
    assert (found.escapes, found.overkills, found.reviewed_clean, found.reviewed_defective) == (0, 0, 0, 0)
    assert (zones[:, 0] > 0.3).all()


def test_dearer_escapes_let_fewer_escape() -> None:
    screens = random_screens(8, screens=60, labels=2)
    escapes = []
    for cost in (2, 9, 1000):
        costs = Costs(escape_cost=cost, prevalence=0.2, review_capacity=1, escape_cap=0.9)
        escapes.append(tally(screens, best_zones(screens, costs, np.full(2, 0.6))).escapes)
    assert escapes == sorted(escapes, reverse=True)
    assert escapes[0] > escapes[-1] == 0


def test_the_cap_goes_before_cost_and_capacity() -> None:
    """Half of the defective screens score like the clean ones: only a review of nearly everything keeps them."""
    scores = np.linspace(0.1, 0.3, 40)[:, None]
    screens = screens_of(np.concatenate([scores, scores + 0.6]), scores)
    costs = Costs(escape_cost=2, escape_cap=0.05, review_capacity=0.1)
    found = tally(screens, best_zones(screens, costs, np.array([0.5])))
    assert found.escape <= 0.05
    assert found.review(costs) > 0.1
    cheap = Costs(escape_cost=2, escape_cap=0.9, review_capacity=0.1)
    assert tally(screens, best_zones(screens, cheap, np.array([0.5]))).escapes == 40


def test_few_screens_keep_the_cap_where_the_capacity_allows_it() -> None:
    """Of ten defective screens a cap of 2 % allows none to escape, and less than the capacity keeps the faint one."""
    faint = screens_of(np.array([[0.31], *[[0.9]] * 9]), np.linspace(0.01, 0.4, 100)[:, None])
    costs = Costs(escape_cost=10)  # so that to let it pass would cost less
    for capacity, escapes in ((0.3, 0), (0.05, 1)):
        bounded = costs.model_copy(update={"review_capacity": capacity})
        found = tally(faint, best_zones(faint, bounded, np.array([0.6])))
        assert found.escapes == escapes
        assert found.review(bounded) <= capacity


def test_so_many_may_escape_as_the_cap_says() -> None:
    assert allowed_escapes(Costs(escape_cap=0.29), 100) == 29  # though 0.29 * 100 is a little less
    assert allowed_escapes(Costs(escape_cap=0.02), 99) == 1


def test_those_that_may_escape_do_where_the_capacity_cannot_be_kept() -> None:
    """Two of ten may: a third below nearly all clean ones has these looked at, but not the least of them as well."""
    defective, clean = np.array([[0.02], [0.03], [0.04], *[[0.9]] * 7]), np.array([[0.035], *[[0.1]] * 9])
    costs = Costs(escape_cap=0.2, review_capacity=0.1)
    screens = screens_of(defective, clean)
    found = tally(screens, best_zones(screens, costs, np.array([0.5])))
    assert (found.escapes, found.reviewed_clean) == (2, 9)


@pytest.mark.parametrize("threshold", [0.93, 0.96, 0.99])
def test_the_band_of_a_threshold_without_room_above_lies_below_it(threshold: float) -> None:
    screens = screens_of(np.array([[0.9991], [0.9993], [0.9995]]), np.array([[0.955], [0.97], [0.985]]))
    ((low, high),) = best_zones(screens, Costs(escape_cap=0.9), np.array([threshold]))
    assert low <= threshold <= high
    assert high - low >= NARROWEST_BAND - 1e-9


def test_limits_have_six_digits() -> None:
    screens = screens_of(np.full((3, 1), 0.7), np.full((3, 1), 0.123456789))
    ((low, _),) = best_zones(screens, Costs(escape_cap=0.9), np.array([0.5]))
    assert low == float(f"{low:.6g}") != float(f"{low:.5g}")


def test_rounding_lets_nothing_pass() -> None:
    """Three defective screens and a clean one between two numbers of six digits."""
    scores = np.concatenate([np.full(3, np.float32(0.4200008)), np.full(117, 0.9)])[:, None]
    clean = np.concatenate([[np.float32(0.4200006)], np.full(50, 0.1)])[:, None]
    screens = screens_of(scores, clean)
    assert tally(screens, best_zones(screens, Costs(escape_cap=0.01), np.array([0.6]))).escapes == 0


def test_a_capacity_is_kept_where_it_can_be() -> None:
    screens = random_screens(5, screens=200, labels=2)
    free, tight = (Costs(escape_cap=0.9, review_capacity=share) for share in (1, 0.1))
    thresholds = np.full(2, 0.6)
    assert tally(screens, best_zones(screens, free, thresholds)).review(free) > 0.1
    assert tally(screens, best_zones(screens, tight, thresholds)).review(tight) <= 0.1


@pytest.mark.parametrize("cap", [0.005, 0.02, 0.1])
def test_no_escape_among_few_screens_proves_nothing(cap: float) -> None:
    assert 3 / cap < enough(0, cap) < 4 / cap


@given(escapes=st.integers(0, 50), cap=st.floats(0.001, 0.9))
def test_one_screen_less_is_not_enough(escapes: int, cap: float) -> None:
    needed = enough(escapes, cap)
    assert escapes <= needed
    assert wilson(escapes, needed).high <= cap + 1e-9
    if needed - 1 >= max(escapes, 1):
        assert wilson(escapes, needed - 1).high > cap - 1e-9


def separate(screens: int) -> Screens:
    """As many defective ones as clean ones, far apart."""
    rng = np.random.default_rng(1)
    return screens_of(rng.uniform(0.9, 0.99, (screens, 1)), rng.uniform(0.01, 0.4, (screens, 1)))


@given(seed=st.integers(0, 2**32 - 1), step=st.floats(0, 8))
def test_lower_lows_let_nothing_more_escape(seed: int, step: float) -> None:
    screens = random_screens(seed, screens=20, labels=2)
    zones = np.array([[0.4, 0.7], [0.5, 0.9]])
    before, after = tally(screens, zones), tally(screens, lowered(zones, step))
    assert after.escapes <= before.escapes
    assert after.overkills == before.overkills
    assert lowered(zones, 0).tolist() == zones.tolist()


@pytest.mark.parametrize("kind", [True, False])
def test_of_one_kind_of_screens_nothing_can_be_weighed(kind: bool) -> None:
    screens = Screens(np.full((5, 2), 1 - 1e-7), np.full(5, kind))
    found = tally(screens, best_zones(screens, Costs(), np.array([0.5, 0.5])))
    assert found.reviewed_clean + found.reviewed_defective == 5


def test_shares_are_those_of_the_line() -> None:
    found = Tally(defective=10, clean=100, escapes=1, overkills=5, reviewed_defective=2, reviewed_clean=10)
    assert found.review(Costs(prevalence=0.01)) == pytest.approx(0.01 * 0.2 + 0.99 * 0.1)


@given(
    seed=st.integers(0, 2**32 - 1),
    screens=st.integers(2, 40),
    labels=st.integers(1, 3),
    floor=st.floats(0, 0.9),
    room=st.floats(0.05, 1),
    place=st.sampled_from([0.25, 0.75]),
)
def test_a_box_holds_what_its_limits_say(
    seed: int, screens: int, labels: int, floor: float, room: float, place: float
) -> None:
    rng = np.random.default_rng(seed)  # any score beside any other: a screen may stand out below the floor
    some = Screens(rng.integers(0, 10, (screens, labels)) / 10 + 0.05, rng.random(screens) < 0.7)
    lowest, highest = np.full(labels, floor), np.full(labels, min(1.0, floor + room))
    boxes = frontier(some, lowest, highest, place=place)
    for box in boxes:
        assert ((lowest <= box.limits) & (box.limits <= highest)).all()
        inside = (some.highest < box.limits).all(axis=1)
        assert (inside & some.defective).sum() == box.defective
        assert (inside & ~some.defective).sum() == box.clean
    assert [box.clean for box in boxes] == sorted({box.clean for box in boxes})
    assert [box.defective for box in boxes] == sorted({box.defective for box in boxes})
