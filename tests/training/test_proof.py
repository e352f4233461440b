"""What is said to be proven holds of other screens, whatever was chosen on those at hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.calibration import best_threshold
from training.costs import Costs
from training.frontier import Screens
from training.proof import FOLDS, choose
from training.zones import best_zones, tally

LABELS = 4


def drawn(seed: int, screens: int, *, apart: float) -> tuple[Screens, NDArray[np.bool_]]:
    """As many defective as clean ones, and which labels each has: one, in which it stands out by `apart`."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-3, 1.2, (2 * screens, LABELS))
    label = rng.integers(0, LABELS, screens)
    logit[np.arange(screens), label] += apart
    has = np.zeros((2 * screens, LABELS), np.bool_)
    has[np.arange(screens), label] = True
    return Screens(1 / (1 + np.exp(-logit)), np.asarray(has.any(axis=1))), has


def test_what_is_proven_is_so() -> None:
    """By the escapes among the screens that chose the limits, a sixth of what was called proven was not so."""
    costs, proven = Costs(escape_cap=0.02), {"left out": 0, "chosen on": 0}
    wrong = dict.fromkeys(proven, 0)
    others, _ = drawn(10_000, 20_000, apart=5.2)
    for seed in range(90):
        screens, has = drawn(seed, 200, apart=5.2)

        def fitted(
            numbers: NDArray[np.int64], highest: NDArray[np.float64] = screens.highest, has: NDArray[np.bool_] = has
        ) -> NDArray[np.float64]:
            return np.array([best_threshold(highest[numbers, j], has[numbers, j]) for j in range(LABELS)])

        found = choose(screens, costs, fitted)
        assert found.held_out is not None
        at_once = best_zones(screens, costs, fitted(np.arange(len(screens))))
        ways = {"left out": (found.held_out, found.zones), "chosen on": (tally(screens, at_once), at_once)}
        for way, (told, zones) in ways.items():
            if told.escape_bound <= costs.escape_cap:
                proven[way] += 1
                wrong[way] += tally(others, zones).escape > costs.escape_cap
    assert proven["left out"] >= 5
    assert wrong["left out"] <= 1
    assert wrong["chosen on"] > 0.1 * proven["chosen on"]  # so that this test can fail


def test_each_screen_is_judged_once_by_zones_that_have_not_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screens, _ = drawn(1, 13, apart=3.0)
    seen: list[set[float]] = []
    judged: list[set[float]] = []

    def noted(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        seen.append(set(screens.highest[numbers, 0].tolist()))
        return np.full(LABELS, 0.6)

    def counted(some: Screens, zones: object) -> object:
        judged.append(set(some.highest[:, 0].tolist()))
        return tally(some, zones)  # type: ignore[arg-type]

    monkeypatch.setattr("training.proof.tally", counted)
    found = choose(screens, Costs(escape_cap=0.9), noted)
    assert len(seen) == FOLDS + 1
    assert len(judged[:FOLDS]) == FOLDS
    assert set.union(*judged[:FOLDS]) == set(screens.highest[:, 0].tolist())
    assert all(not own & others for own, others in zip(judged[:FOLDS], seen[1:], strict=True))
    assert found.held_out is not None
    assert (found.held_out.defective, found.held_out.clean) == (13, 13)
    assert found.step == 0  # a cap of nine tenths needs no wider band


def test_the_fewer_screens_the_wider_the_band() -> None:
    costs, steps = Costs(), []
    rng = np.random.default_rng(1)
    for count in (400, 100, 10):
        scores = np.concatenate([rng.uniform(0.9, 0.99, (count, 1)), rng.uniform(0.01, 0.4, (count, 1))])
        screens = Screens(scores, np.arange(2 * count) < count)
        found = choose(screens, costs, lambda _: np.array([0.6]))
        assert found.held_out is not None
        assert found.held_out.escapes == 0
        assert found.held_out.review(costs) <= costs.review_capacity
        assert (found.step > 0) == (count < 400)
        steps.append(found.step)
    assert steps == sorted(steps)


@pytest.mark.parametrize("kinds", [(0, 5), (5, 0), (1, 5)])
def test_where_nothing_can_be_left_out_nothing_is_proven(kinds: tuple[int, int]) -> None:
    screens = Screens(np.full((sum(kinds), 2), 0.5), np.arange(sum(kinds)) < kinds[0])
    assert choose(screens, Costs(), lambda _: np.array([0.5, 0.5])).held_out is None
