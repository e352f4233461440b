import io
import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console

from engine import fake_manifest
from engine.manifest import parse
from training.calibration import best_threshold, calibrate
from training.card import recalibrated_card
from training.costs import Costs, read_costs
from training.measures import wilson
from training.tables import print_calibration
from training.zones import Tally, Zones

ROOT = Path(__file__).parents[2]


def f_at(score: np.ndarray[tuple[int], np.dtype[np.float32]], truth: list[bool], threshold: float) -> float:
    predicted = score >= threshold
    tp = int((predicted & np.array(truth)).sum())
    return 2 * tp / (int(predicted.sum()) + sum(truth)) if tp else 0.0


@given(rows=st.lists(st.tuples(st.integers(1, 999), st.booleans()), min_size=1, max_size=40))
def test_no_threshold_has_a_better_f(rows: list[tuple[int, bool]]) -> None:
    score = np.array([value / 1000 for value, _ in rows], np.float32)
    truth = [flag for _, flag in rows]
    chosen = f_at(score, truth, best_threshold(score, np.array(truth)))
    assert chosen >= max(f_at(score, truth, t / 2000) for t in range(1, 2000)) - 1e-6


def test_a_separable_label_is_cut_in_the_middle_of_the_gap() -> None:
    score = np.array([0.1, 0.2, 0.8, 0.9], np.float32)
    assert best_threshold(score, np.array([False, False, True, True])) == pytest.approx(0.5)


def test_no_positive_leaves_the_default() -> None:
    assert best_threshold(np.array([0.1, 0.9], np.float32), np.array([False, False])) == 0.5


def test_the_band_lies_on_the_highest_score_of_screens_and_skips_unknown_ones() -> None:
    """Screens 0-1 have the label, 2-3 have not, 4 has only an unknown part with a high score."""
    probability = np.array([[0.9], [0.1], [0.7], [0.05], [0.3], [0.2], [0.1], [0.99]], np.float32)
    target = np.array([[1], [0], [1], [0], [0], [0], [0], [-1]], np.int8)
    screens = np.array([0, 0, 1, 1, 2, 2, 3, 4])
    found = calibrate(probability, target, screens, labels=["dot"], costs=Costs(review_capacity=0))
    limits = found.limits["dot"]
    assert limits.threshold == pytest.approx(0.5)
    assert limits.review == pytest.approx((0.4, 0.6))  # the outer quarters of the gap from 0.3 to 0.7
    assert (found.tally.defective, found.tally.clean) == (2, 2)
    assert found.has.tolist() == [[True], [True], [False], [False]]


def test_screens_that_chose_the_weights_are_said_to_flatter() -> None:
    probability, target = np.array([[0.9], [0.7], [0.3], [0.1]], np.float32), np.array([[1], [1], [0], [0]], np.int8)
    all_chose, clean_are_fresh = np.ones(4, np.bool_), np.array([True, True, False, False])
    for chose, said in ((None, False), (all_chose, True), (clean_are_fresh, True)):
        found = calibrate(probability, target, np.arange(4), labels=["dot"], costs=Costs(), chose_weights=chose)
        assert any("chose the epoch" in one and "--calibrate" in one for one in found.warnings()) == said


def test_where_other_screens_are_there_those_that_chose_the_weights_prove_nothing() -> None:
    """They choose limits with the others, but what is told of screens left out is of the others alone."""
    probability, target, screens = many(0, screens=200)
    chose = screens < 120
    found = calibrate(probability, target, screens, labels=["a", "b"], costs=Costs(), chose_weights=chose)
    assert found.held_out is not None
    assert (found.held_out.defective, found.held_out.clean) == (40, 40)
    assert (found.tally.defective, found.tally.clean) == (100, 100)
    assert not any("chose the epoch" in said for said in found.warnings())
    assert found.escape_bound >= wilson(0, 40).high
    sure = calibrate(probability, target, screens, labels=["a", "b"], costs=Costs())
    assert sure.escape_bound < wilson(0, 40).high
    assert found.intervals is not None
    assert found.intervals.escape.high >= wilson(0, 40).high


def test_a_score_that_is_no_number_chooses_no_limits() -> None:
    probability, target = np.array([[0.9], [np.nan], [0.3], [0.1]], np.float32), np.array([[1], [1], [0], [0]], np.int8)
    with pytest.raises(ValueError, match="is no number"):
        calibrate(probability, target, np.arange(4), labels=["dot"], costs=Costs())


def test_screens_of_several_sizes_are_said_to_be_judged_together() -> None:
    probability, target, screens = many(0, screens=40)
    said = "the screens have 2 to 8 windows each"
    found = calibrate(probability, target, screens, labels=["a", "b"], costs=Costs())
    assert not any(said in one for one in found.warnings())
    larger = np.where(screens < 4, 0, screens)
    found = calibrate(probability, target, larger, labels=["a", "b"], costs=Costs())
    assert any(said in one for one in found.warnings())


def test_a_threshold_beside_1_is_one_that_a_manifest_takes() -> None:
    rng = np.random.default_rng(0)
    score = np.concatenate([rng.uniform(0.9985, 0.9999, 20), np.full(5, 0.997), rng.uniform(0, 0.5, 40)])[:, None]
    target = np.array([[1]] * 20 + [[0]] * 45, np.int8)
    found = calibrate(score.astype(np.float32), target, np.arange(65), labels=["dot"], costs=Costs())
    assert found.limits["dot"].threshold > 0.997
    assert found.tally.overkills == 0
    one_label = replace(fake_manifest(("dot",)), labels=found.limits)
    assert parse(json.dumps(asdict(one_label)).encode()).labels == found.limits


def test_the_widest_bands_keep_the_capacity() -> None:
    """They are wider than what the screens left out were judged by, and were once wider than people can look at."""
    for seed in range(6):
        found = calibrate(*many(seed, screens=120), labels=["a", "b"], costs=Costs())
        assert not found.proven
        assert found.tally.review(found.costs) <= found.costs.review_capacity


def test_scores_that_crowd_at_an_end_are_still_told_apart() -> None:
    """Clean screens at a hundred-millionth, a faint one at a millionth: no rounding may put them on one side."""
    rng = np.random.default_rng(0)
    logit = np.concatenate([rng.normal(-18, 0.6, 30), rng.normal(8, 2, 29), [-14.8]])
    target = np.array([[0]] * 30 + [[1]] * 30, np.int8)
    found = calibrate(
        1 / (1 + np.exp(-logit[:, None])), target, np.arange(60), labels=["dot"], costs=Costs(escape_cap=0.2)
    )
    assert found.limits["dot"].review[0] > 0
    assert found.tally.reviewed_clean < 5


def test_two_screens_prove_nothing_and_it_is_said() -> None:
    probability = np.array([[0.9], [0.7], [0.3], [0.1]], np.float32)
    target = np.array([[1], [1], [0], [0]], np.int8)
    found = calibrate(probability, target, np.arange(4), labels=["dot"], costs=Costs(review_capacity=1))
    assert found.limits["dot"].review[0] < 0.3  # a clean screen is looked at
    assert not found.proven
    said = found.warnings()[-1]
    assert "of 2 defective screens, each judged by limits chosen without it, prove no more than" in said
    assert "such screens with as many escapes" in said


def test_a_cap_that_is_exceeded_is_said_to_be() -> None:
    """Of 20 defective screens one is not seen at all: the cap allows none, and one escapes all the same."""
    target = np.array([[1]] * 20 + [[0]] * 20, np.int8)
    score = np.where(target == 1, 0.9, 0.1).astype(np.float32)
    score[0] = 0.01
    found = calibrate(score, target, np.arange(40), labels=["dot"], costs=Costs(escape_cap=0.02))
    assert found.tally.escapes == 1
    assert any("1 of 20 defective screens escape, 5.0%: over the cap of 2.00%" in said for said in found.warnings())


def many(seed: int, *, screens: int) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.int64]]:
    """Two patches a screen, every other screen defective, with scores that overlap."""
    rng = np.random.default_rng(seed)
    target = np.zeros((2 * screens, 2), np.int8)
    target[np.arange(0, 2 * screens, 4), rng.integers(0, 2, len(range(0, 2 * screens, 4)))] = 1
    score = rng.normal(-3, 1.2, target.shape) + 5.5 * target
    return (1 / (1 + np.exp(-score))).astype(np.float32), target, np.arange(2 * screens) // 2


def test_many_screens_prove_the_cap() -> None:
    found = calibrate(*many(0, screens=600), labels=["a", "b"], costs=Costs(escape_cap=0.05))
    assert found.proven
    assert found.warnings() == []
    assert found.held_out is not None
    assert found.held_out.escapes >= found.tally.escapes
    assert found.escape_bound == found.held_out.escape_bound <= 0.05


def test_the_share_of_review_is_no_surer_than_both_kinds_of_screens() -> None:
    found = Tally(defective=50, clean=30, escapes=0, overkills=0, reviewed_defective=5, reviewed_clean=3)
    low, high = found.review_interval(Costs(prevalence=0.2))
    assert low == pytest.approx(0.2 * wilson(5, 50).low + 0.8 * wilson(3, 30).low)
    assert high == pytest.approx(0.2 * wilson(5, 50).high + 0.8 * wilson(3, 30).high)


def test_limits_that_are_no_better_than_a_review_of_every_screen_are_said_to_be() -> None:
    """Scores that say nothing; and one faint defect below all clean screens, for which all of them are looked at."""
    rng = np.random.default_rng(0)
    nothing, target = rng.uniform(0.01, 0.99, (40, 1)).astype(np.float32), np.array([[1], [0]] * 20, np.int8)
    faint = np.where(target == 1, 0.9, 0.1).astype(np.float32)
    faint[0] = 0.01
    for score, costs, told in (
        (nothing, Costs(), "these limits do no better than to review every screen: of 20 clean ones 3 pass, 9 fail"),
        (faint, Costs(review_capacity=1), "these limits do little better than to review every screen: of 20 clean"),
    ):
        found = calibrate(score, target, np.arange(40), labels=["dot"], costs=costs)
        assert (found.tally.cost(costs) >= 1) == ("no better" in told)
        assert found.as_dict()["warnings"][0].startswith(told)
        console = Console(record=True, width=400, file=io.StringIO())
        print_calibration(found, console)
        assert told in console.export_text()
    seen = calibrate(faint, target, np.arange(40), labels=["dot"], costs=Costs())  # which lets the faint one pass
    assert not any("better than to review" in one for one in seen.warnings())
    clean = np.flatnonzero(target[:, 0] == 0)
    of_one_kind = calibrate(faint[clean], target[clean], clean, labels=["dot"], costs=costs)
    assert not any("better than to review" in one for one in of_one_kind.warnings())  # it is said in other words


def test_figures_are_json_and_facts_are_a_manifests() -> None:
    found = calibrate(*many(3, screens=40), labels=["a", "b"], costs=Costs())
    again = json.loads(json.dumps(found.as_dict()))
    assert again["limits"]["a"]["review"] == list(found.limits["a"].review)
    assert again["intervals"]["labels"].keys() == {"a", "b"}
    assert parse(json.dumps(asdict(replace(fake_manifest(), training=found.facts()))).encode()).training


def test_no_overkill_of_a_few_clean_screens_is_no_proof_that_there_is_none() -> None:
    found = calibrate(*many(3, screens=40), labels=["a", "b"], costs=Costs(review_capacity=1))
    assert found.held_out is not None
    assert found.intervals is not None
    assert found.held_out.overkills == 0
    assert found.intervals.overkill.high >= wilson(0, found.held_out.clean).high > 0.1


def test_a_label_that_hardly_a_screen_has_is_said_to_be_guessed() -> None:
    probability, target, screens = many(0, screens=600)
    few = np.flatnonzero(target[:, 1] == 1)[4:]
    target[few, 1] = 0
    found = calibrate(probability, target, screens, labels=["a", "b"], costs=Costs(escape_cap=0.5))
    assert "4 screens have the label b: its threshold and limits are guessed" in found.warnings()
    assert found.intervals is not None
    for of_a, of_b in (found.intervals.lows, found.intervals.highs):
        assert of_a is not None
        assert of_b is None  # of which nothing follows
    target[:, 1] = 0
    found = calibrate(probability, target, screens, labels=["a", "b"], costs=Costs(escape_cap=0.5))
    assert "no screens have the label b: its threshold and limits are guessed" in found.warnings()


def test_a_file_of_costs_may_begin_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_bytes(b"\xef\xbb\xbfescape_cost = 7\n")
    assert read_costs(tmp_path / "limits.toml").escape_cost == 7
    (tmp_path / "limits.toml").write_text("escape_cost = 7\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"limits\.toml: "):
        read_costs(tmp_path / "limits.toml")


def test_a_review_costs_no_more_than_what_it_spares(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("review_cost = 11\n")
    with pytest.raises(ValueError, match=r"limits\.toml: review_cost is over escape_cost or overkill_cost"):
        read_costs(tmp_path / "limits.toml")


BAD_COSTS = ("escape_cost = 0", "escape_cost = inf", "review_cost = nan", "escape_cap = 1.5")


@pytest.mark.parametrize("line", [*BAD_COSTS, "review = 1", "prevalence = 'half'", "x"])
def test_costs_are_checked_at_the_door(tmp_path: Path, line: str) -> None:
    (tmp_path / "limits.toml").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"limits\.toml: "):
        read_costs(tmp_path / "limits.toml")


def test_the_file_of_costs_holds_the_defaults() -> None:
    file = ROOT / "training" / "configs" / "limits.toml"
    assert read_costs(file) == Costs()
    assert tomllib.loads(file.read_text()).keys() == Costs.model_fields.keys()


def test_limits_that_are_no_better_on_screens_left_out_are_said_to_be() -> None:
    """Few screens give limits that are cheap on these and dearer than reviews on others."""
    rng = np.random.default_rng(0)
    target = np.array([[1], [0]] * 20, np.int8)
    for _ in range(20):
        score = 1 / (1 + np.exp(-rng.normal(np.where(target == 1, 1.5, -1.5), 1.2)))
        found = calibrate(score, target, np.arange(40), labels=["dot"], costs=Costs())
        assert found.held_out is not None
        if found.tally.cost(Costs()) < 1 <= found.held_out.cost(Costs()):
            told = f", {found.held_out.cost(Costs()):.3g} if it is left out of the choice, where its review costs 1."
            assert any("no better than to review" in said and told in said for said in found.warnings())
            return
    pytest.fail("no draw was cheaper on its own screens")


def spread(
    *labels: NDArray[np.float64], clean: int = 400
) -> tuple[NDArray[np.float64], NDArray[np.int8], NDArray[np.int64]]:
    """Screens of one patch: clean ones, and of each label the scores (n,) of those that have it alone."""
    rng, counts = np.random.default_rng(1), [len(score) for score in labels]
    score = rng.uniform(0.0001, 0.01, (clean + sum(counts), len(labels)))
    target = np.zeros(score.shape, np.int8)
    for number, own in enumerate(labels):
        rows = slice(clean + sum(counts[:number]), clean + sum(counts[: number + 1]))
        score[rows, number], target[rows, number] = own, 1
    return score, target, np.arange(len(score))


def test_a_rare_label_that_escapes_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of twelve are less than the cap of all labels together, which is proven."""
    monkeypatch.setattr("training.calibration.bootstrap_zones", lambda *_, **__: None)
    rare = np.array([0.001] * 8 + [0.97] * 4)
    found = calibrate(*spread(np.full(988, 0.98), rare), labels=["a", "c"], costs=Costs())
    assert found.held_out is not None
    assert (found.held_out.escapes, found.held_out.defective, found.proven) == (8, 1000, True)
    assert found.by_label["c"].escape == found.by_label["c"].alone == wilson(8, 12)
    assert found.by_label["a"].alone == wilson(0, 988)
    (said,) = found.warnings()
    assert said.startswith("8 of 12 screens that have the label c and no other escape where they are left out")
    assert "66.7% (39.1%-86.2%)" in said
    assert "Add screens that have c alone" in said
    told = json.loads(json.dumps(found.as_dict()))["held_out_labels"]
    assert told["c"]["alone"] == pytest.approx(wilson(8, 12))
    console = Console(record=True, width=200, file=io.StringIO())
    print_calibration(found, console)
    (row,) = (line for line in console.export_text().splitlines() if " 8/12 " in line)
    assert row.count("39.1% - 86.2%") == 2
    manifest = fake_manifest(("a", "c"))
    card = recalibrated_card("# before\n", manifest, found, before=manifest)
    assert "| 8 of 12 (39.1%-86.2%) | 8 of 12 (39.1%-86.2%) |" in card


def test_a_label_that_is_hardly_ever_alone_is_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another that fails its screens it need not be seen, and screens that judge nothing tell nothing of it."""
    monkeypatch.setattr("training.calibration.bootstrap_zones", lambda *_, **__: None)
    costs = Costs(escape_cap=0.05)
    score, target, screens = spread(np.full(200, 0.98), np.full(40, 0.97))
    assert calibrate(score, target, screens, labels=["a", "b"], costs=costs).warnings() == []
    told = "screens{} have the label b and no other, and beside others it need not be seen: how many of it escape is"
    chose = (target[:, 1] == 1) & (screens % 20 > 0)
    found = calibrate(score, target, screens, labels=["a", "b"], costs=costs, chose_weights=chose)
    (said,) = found.warnings()
    assert said.startswith("2 " + told.format(" that did not choose the epoch"))
    beside = target.copy()
    beside[target[:, 1] == 1, 0] = 1
    (said,) = calibrate(score, beside, screens, labels=["a", "b"], costs=costs).warnings()
    assert said.startswith("no " + told.format(""))
    assert said.endswith("Add screens that have b alone")


def test_screens_that_chose_the_weights_prove_no_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.calibration.bootstrap_zones", lambda *_, **__: None)
    data = spread(np.full(400, 0.98))
    for chose, proven, fact in ((False, True, "yes"), (True, False, "no: they may have chosen the epoch")):
        chose_weights = np.full(len(data[0]), chose)
        found = calibrate(*data, labels=["dot"], costs=Costs(), chose_weights=chose_weights)
        assert found.escape_bound < Costs().escape_cap
        assert (found.proven, found.weights_chosen) == (proven, chose)
        assert found.facts()["limits_proven"] == fact
        told = found.as_dict()
        assert (told["escape_cap_proven"], told["weights_chosen"]) == (proven, chose)
        assert len(found.warnings()) == chose  # not that more screens would prove it


def test_a_capacity_that_only_the_screens_at_hand_keep_is_said_to_be_passed() -> None:
    costs = Costs(escape_cap=0.05, review_capacity=0.05)
    found = calibrate(*many(10, screens=40), labels=["a", "b"], costs=costs)
    assert found.held_out is not None
    assert found.intervals is not None
    assert found.tally.review(costs) <= costs.review_capacity < found.held_out.review(costs)
    low, high = found.intervals.review[1:]
    told = (
        f"11.0% ({low:.1%}-{high:.1%}) of screens that are left out of the choice go to review, over the capacity of 5"
    )
    assert any(said.startswith(told) for said in found.warnings())


def test_a_defect_that_each_way_sees_by_another_label_does_not_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lowest scores of both, label by label, would pass."""
    monkeypatch.setattr("training.calibration.bootstrap_zones", lambda *_, **__: None)
    probability, target, screens = spread(np.full(30, 0.95), np.full(30, 0.94), clean=60)

    def turned(chosen_on: NDArray[np.int64], zones: Zones, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
        return np.array([probability[row].max(axis=0)[::-1] for row in rows])

    found = calibrate(probability, target, screens, labels=["a", "b"], costs=Costs(), glancing=turned)
    assert found.tally.escapes == 0
    assert found.held_out is not None
    assert found.held_out.escapes == 0
