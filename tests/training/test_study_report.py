import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.training.made_cells import cell_of, study_of
from training.__main__ import app
from training.studies import report, study
from training.studies.tables import Row


def test_the_lead_is_taken_cell_by_cell_and_validation_chooses_whose() -> None:
    """The mean of the differences spreads less than the difference of the means would suggest."""
    rows = (Row(title="one", paper=(0.9, 0.8)), Row(title="two"), Row(title="three"), Row(title="heavy", heavy=True))
    found = study_of(
        rows,
        [
            *(cell_of("one", seed, f) for seed, f in enumerate((0.5, 0.7, 0.9))),
            *(cell_of("two", seed, f, validated=0.6) for seed, f in enumerate((0.51, 0.71, 0.91))),
            *(cell_of("three", seed, f) for seed, f in enumerate((0.52, 0.72, 0.89))),  # best on the test part
            cell_of("heavy", 0, 0, steps_only=True),
        ],
    )
    text = report.markdown(found, "3")
    assert "| one | 0.700 ± 0.200 |" in text
    assert "0.900, 0.800" in text
    assert "of two, chosen by F on validation; at 0.5, and at fitted thresholds; ± half of the 95 % interval, " in text
    assert "- one: 1.0 ± 0.0 (ahead in 3 of 3); 1.0 ± 0.0 (ahead in 3 of 3)" in text
    assert "- three: 0.0 ± 4.3 (ahead in 1 of 3)" in text  # 4.303 times 1.732 / sqrt(3): two degrees of freedom
    assert "a few steps, to show that it runs" in text
    assert "`python -m training table 3 --preset cpu --data d --seeds 3 --fold 0 --set seed=1`" in text


def test_where_methods_are_compared_the_two_stage_network_is_held_against_each() -> None:
    rows = (Row(title="KSSNet"), Row(title="two-stage"))
    found = study_of(rows, [cell_of("KSSNet", 0, 0.8, validated=0.9), cell_of("two-stage", 0, 0.7)])
    text = report.markdown(found, "2")
    assert "Ahead in points of F, cell by cell, of two-stage; at 0.5" in text
    assert "\n\n- KSSNet: -10.0 (ahead in 0 of 1)" in text


def test_of_a_study_that_is_not_finished_what_both_rows_have_is_compared() -> None:
    rows = (Row(title="two-stage"), Row(title="behind"), Row(title="elsewhere"))
    own = [cell_of("two-stage", seed, f) for seed, f in enumerate((0.5, 0.7))]
    found = study_of(rows, [*own, cell_of("behind", 1, 0.6), cell_of("elsewhere", 2, 0.6)])
    text = report.markdown(dataclasses.replace(found, finished="4 of 9 cells are finished"), "2")
    assert "; 4 of 9 cells are finished: rows may have other cells." in text
    assert "\n- behind: 10.0 (ahead in 1 of 1)" in text
    assert "\n- elsewhere: no cell of the same seed and data" in text
    heavy = study_of((Row(title="heavy", heavy=True),), [cell_of("heavy", 0, 0, steps_only=True)])
    assert "Ahead" not in report.markdown(heavy, "2")


def test_no_table_replaces_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a look at one seed replace the table of three, or other data of the same name."""
    rows = (Row(title="one"), Row(title="two"))

    def found(name: str, *, data: Path, seeds: range, **options: object) -> study.Study:
        cells = [cell_of(row.title, seed, 0.5) for row in rows for seed in seeds]
        return dataclasses.replace(study_of(rows, cells), data=data, seeds=tuple(seeds))

    monkeypatch.setattr(study, "run", found)
    for place in ("a", "b"):
        (tmp_path / place / "cut").mkdir(parents=True)
    asked = [
        ["--data", "a/cut"],
        ["--data", "a/cut", "--seeds", "1"],
        ["--data", "a/cut", "--row", "one"],
        ["--data", "a/cut", "--row", "two"],
        ["--data", "a/cut", "--set", "phase1.epochs=3"],
        ["--data", "b/cut"],
        ["--data", "b/cut", "--finished"],
    ]
    monkeypatch.chdir(tmp_path)
    for number, options in enumerate(asked, 1):
        for _ in range(2):  # the same again is the same table
            answer = CliRunner().invoke(app, ["table", "4", "--out", ".", *options])
            assert answer.exit_code == 0, answer.output
        assert len(list(tmp_path.glob("table-4-cpu-cut*.md"))) == number


def test_folds_that_share_their_training_data_say_less_than_as_many_that_do_not() -> None:
    points = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert report.margin(points, folds=1) == pytest.approx(2.776445 * (2.5 / 5) ** 0.5)
    assert report.margin(points, folds=5) == pytest.approx(2.776445 * (2.5 * (1 / 5 + 1 / (4 * 0.85))) ** 0.5)
    # two of the five share as much of what they learn from as all do
    assert report.margin([1.0, 3.0], folds=5) == pytest.approx(12.7062 * (2 * (1 / 2 + 1 / (4 * 0.85))) ** 0.5)


def test_seeds_of_a_fold_count_as_one() -> None:
    def lead(seeds: int) -> str:
        mine = {(f"d, fold {fold}", seed): 0.5 + 0.01 * fold for fold in range(5) for seed in range(seeds)}
        return report._lead(mine, dict.fromkeys(mine, 0.5), folds=5)

    assert lead(1).split(" (")[0] == lead(3).split(" (")[0]
    assert lead(3).endswith("(ahead in 12 of 15)")


def test_a_lead_is_the_mean_of_its_divisions_whatever_their_seeds() -> None:
    mine = {("d, fold 0", 0): 0.6, ("d, fold 0", 1): 0.6, ("d, fold 0", 2): 0.6, ("d, fold 1", 0): 0.5}
    assert report._lead(mine, dict.fromkeys(mine, 0.5), folds=5).startswith("5.0 ± ")  # of 10 and 0


def test_a_pair_of_one_division_claims_nothing_of_folds() -> None:
    rows = (Row(title="two-stage"), Row(title="one"))
    cells = [dataclasses.replace(cell_of("two-stage", s, 0.6), division=d) for d in ("a", "b") for s in (0, 1)]
    cells += [dataclasses.replace(cell_of("one", s, 0.5 + 0.01 * s), division="a") for s in (0, 1)]
    text = report.markdown(study_of(rows, cells), "2")
    assert "(of one division: the intervals are those of other seeds)" in text
