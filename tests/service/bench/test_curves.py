from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bench.curves import Curve, Panel, curves_of, seconds

SIZES = (1, 2, 4, 8, 16, 32)


def curve(median_s: Sequence[float], sizes: Sequence[float] = SIZES) -> Curve:
    return Curve(sizes=sizes, low_s=median_s, median_s=median_s, high_s=median_s)


@given(st.floats(0, 3), st.floats(1e-5, 10))
def test_a_power_has_its_exponent_everywhere_and_no_bend(power: float, scale: float) -> None:
    found = curve([scale * size**power for size in SIZES])
    assert found.exponents == pytest.approx([power] * 5, abs=1e-6)
    if abs(power % 1 - 0.5) > 1e-6:  # between two words
        assert len(found.bends) == 1


def test_a_curve_bends_where_its_growth_rises_for_good() -> None:
    assert curve([1, 1, 1, 2, 4, 8]).bends == {1: "flat", 4: "linear"}
    assert curve([1, 2, 4, 16, 64, 256]).bends == {1: "linear", 4: "quadratic"}
    assert curve([1, 1, 2, 4, 16, 64]).bends == {1: "flat", 2: "linear", 8: "quadratic"}


def test_bends_are_told_in_whole_numbers() -> None:
    told = curve([1, 1, 4, 64], sizes=(0.5, 512, 1024, 4096)).describe_bends()
    assert told == "flat, quadratic from 512"


def test_what_comes_down_again_is_no_bend() -> None:
    assert curve([1, 1, 3, 1, 1, 1]).bends == {1: "flat"}
    assert curve([1, 2, 4, 16, 16, 32]).bends == {1: "linear"}
    assert curve([1, 1, 1, 2.2, 3.8, 8]).bends == {1: "flat", 4: "linear"}


@given(st.lists(st.floats(1e-6, 1e3), min_size=6, max_size=6))
def test_whatever_was_measured_the_words_only_rise(median_s: list[float]) -> None:
    order = ["flat", "linear", "quadratic", "cubic"]
    words = [order.index(word) for word in curve(median_s).bends.values()]
    assert words == sorted(set(words))
    assert next(iter(curve(median_s).bends)) == 1


@given(st.lists(st.floats(-2, 4), min_size=5, max_size=5))
def test_the_rising_exponents_are_the_nearest(exponents: list[float]) -> None:
    median_s = [1.0]
    for exponent in exponents:
        median_s.append(median_s[-1] * 2**exponent)
    found = curve(median_s)._rising_exponents()
    assert found == sorted(found)
    assert sum(found) == pytest.approx(sum(exponents), abs=1e-6)  # the whole growth is kept
    if exponents == sorted(exponents):
        assert found == pytest.approx(exponents, abs=1e-6)


def test_of_what_was_measured_the_median_and_the_quartiles_count() -> None:
    samples = {1.0: [{"wall": wall} for wall in (1.0, 2.0, 3.0, 4.0, 100.0)], 2.0: [{"wall": 7.0}]}
    found = curves_of(samples)["wall"]
    assert (list(found.low_s), list(found.median_s), list(found.high_s)) == ([2, 7], [3, 7], [4, 7])


def test_a_panel_tells_people_and_machines() -> None:
    panel = Panel(
        title="Labels",
        unit="labels",
        curves={"wall": curve([0.001, 0.001, 0.001, 0.002, 0.004, 0.008])},
        figures={"more": 1},
    )
    assert panel.describe() == "wall flat, linear from 4 (1 ms to 8 ms)"
    figures = panel.as_dict()
    assert figures["sizes"] == list(SIZES)
    assert figures["curves"]["wall"]["bends"] == {"1": "flat", "4": "linear"}
    assert figures["more"] == 1


@pytest.mark.parametrize(("value", "told"), [(2.5, "2.5 s"), (0.0125, "12.5 ms"), (0.00003, "30 µs")])
def test_a_time_has_its_unit(value: float, told: str) -> None:
    assert seconds(value) == told
