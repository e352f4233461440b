"""How far limits and what they do spread over draws of the screens, and what is said of it."""

import io
import json

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from tests.training.test_calibration import many
from training import intervals
from training.calibration import calibrate, whole_screens
from training.costs import Costs
from training.intervals import TOO_FEW, Interval, bootstrap_zones, span
from training.measures import wilson
from training.tables import SPREAD, print_calibration
from training.zones import tally


def test_intervals_are_of_screens_that_were_left_out() -> None:
    """The share on the screens at hand flatters; that of ten thousand others lies in the interval."""
    costs = Costs(escape_cap=0.9, review_capacity=1)
    found = calibrate(*many(1, screens=120), labels=["a", "b"], costs=costs)
    assert found.intervals is not None
    others, *_ = whole_screens(*many(2, screens=10_000))
    zones = np.array([limits.review for limits in found.limits.values()])
    to_come = tally(others, zones)
    assert found.tally.cost(costs) < to_come.cost(costs)
    low, high = found.intervals.cost.low, found.intervals.cost.high
    assert low < to_come.cost(costs) < high
    assert found.intervals.escape.low <= to_come.escape <= found.intervals.escape.high
    for (low, high), lows, highs in zip(zones, found.intervals.lows, found.intervals.highs, strict=True):
        assert lows is not None
        assert highs is not None
        assert lows.low <= low <= lows.high
        assert highs.low <= high <= highs.high


def test_replicates_know_nothing_of_the_screens_that_judge_them() -> None:
    whole, _, rows = whole_screens(*many(4, screens=60))
    seen: list[set[int]] = []

    def thresholds_of(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        seen.append(set(numbers.tolist()))
        assert len(numbers) == len(rows)  # as many as there are, some of them several times
        return np.array([0.5, 0.5])

    usual = bootstrap_zones(whole, Costs(), thresholds_of, replicates=20)
    assert usual is not None
    assert len(seen) == 20
    assert all(0.5 < len(some) / len(rows) < 0.8 for some in seen)  # a share of 1/e of them is left out
    lower = bootstrap_zones(whole, Costs(), thresholds_of, step=1.0, replicates=20)
    assert lower is not None
    for one, other in zip(usual.lows, lower.lows, strict=True):  # by a step of the logit
        assert one is not None
        assert other is not None
        assert other.mean < one.mean
        assert other.high < one.high


def same(count: int) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.int64]]:
    """So many defective screens of one score, and as many clean ones of another: every draw of them is the same."""
    score = np.repeat(np.array([[0.9], [0.1]], np.float32), count, axis=0)
    return score, (score > 0.5).astype(np.int8), np.arange(2 * count)


def test_draws_that_do_not_differ_give_no_interval_without_width() -> None:
    """Shares are no surer than so many screens make them, and of a limit it is said that nothing is known."""
    found = calibrate(*same(20), labels=["dot"], costs=Costs(escape_cap=0.9))
    intervals, held_out = found.intervals, found.held_out
    assert intervals is not None
    assert held_out is not None
    assert (held_out.reviewed_defective, held_out.reviewed_clean) == (0, 0)
    assert (intervals.review.mean, intervals.review.low) == (0, 0)
    assert intervals.review.high == pytest.approx(wilson(0, 20).high)
    worst = found.costs.of(escape=intervals.escape.high, overkill=intervals.overkill.high, review=intervals.review.high)
    assert intervals.cost.high == pytest.approx(worst)
    assert intervals.lows == intervals.highs == [None]
    assert json.loads(json.dumps(found.as_dict()))["intervals"]["labels"] == {"dot": {"low": None, "high": None}}
    console = Console(record=True, width=160, file=io.StringIO())
    print_calibration(found, console)
    row, _ = (line for line in console.export_text().splitlines() if "dot" in line)
    assert row.count(TOO_FEW) == 2


def test_the_spread_of_limits_is_not_called_an_interval_of_confidence() -> None:
    """And the bound on escapes, one end of an interval of 95 %, is passed with 2.5 %."""
    console = Console(record=True, width=200, file=io.StringIO())
    print_calibration(calibrate(*same(20), labels=["dot"], costs=Costs()), console)
    text = console.export_text()
    (heads,) = (line for line in text.splitlines() if "pass below" in line)
    assert heads.count(SPREAD) == 2
    assert "95 %" not in heads
    (heads,) = (line for line in text.splitlines() if "chosen on them" in line)
    assert "at most (97.5 %)" in heads
    assert "prove no more than 16.1% (97.5 %)" in text


def test_the_ends_of_an_interval_are_told_apart() -> None:
    assert span(Interval(0.1, 0.0871, 0.25), "-") == "0.087-0.250"
    assert span(Interval(0.1, 0.00871, 0.00893), " - ") == "0.0087 - 0.0089"
    assert span(Interval(0.1, 0.0087, 0.00870000001), "-") == span(None, "-") == TOO_FEW


def test_an_interval_of_the_width_of_its_rounding_is_none() -> None:
    assert intervals._spread(np.array([0.01569, 0.01575] * 50)) is None
    assert intervals._spread(np.array([0.9985, 0.99851] * 50)) is None
    assert intervals._spread(np.array([0.0150, 0.0160] * 50)) is not None
