from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.training.data_form import write_screens
from training.__main__ import app
from training.baselines import build_network
from training.config import read_config
from training.cutting import cut
from training.methods import METHODS
from training.studies import cells, report, study
from training.studies.cells import FIGURES, GROUPS, Cell
from training.studies.tables import PresetName, Row, StudyTable, table

NAMES = ("2", "3", "4", "5", "6", "7", "9", "relations", "variants")
SHORT = (
    *("threads=1", "data.patches_per_epoch=16", "phase1.epochs=1", "phase1.batch=8", "phase2.epochs=1"),
    *("phase1.warmup_steps=0", "phase2.warmup_steps=0", "network.feature_width=8", "network.relation_width=8"),
)


@pytest.mark.parametrize("preset", ["cpu", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_every_table_is_a_network_and_a_training(name: str, preset: PresetName) -> None:
    file = study.PRESETS[preset].file
    base = read_config(file)
    wanted = table(name, preset, base)
    assert len({row.title for row in wanted.rows}) == len(wanted.rows)
    for row in wanted.rows:
        config = read_config(file, list(row.settings))
        if config.network.trunk in ("light", "compact"):
            build_network(3, config.network)
        if not row.heavy and not row.from_phase1:  # the same budget for every method
            assert config.phase1.epochs + config.phase2.epochs == base.phase1.epochs + base.phase2.epochs
    assert wanted.axis == "" or all(row.x is not None for row in wanted.rows)


def test_the_full_preset_holds_the_papers_methods() -> None:
    rows = table("2", "full", study.PRESETS["full"].base(())).rows
    assert [row.title for row in rows] == [method.title for method in METHODS.values()]
    assert not any(row.heavy for row in rows)
    assert [row.paper for row in rows] == [(m.screens[0], m.screens[3]) for m in METHODS.values()]


def test_an_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match=r"no table '8'.*describe"):
        table("8", "cpu", study.PRESETS["cpu"].base(()))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screens(tmp_path_factory.mktemp("study") / "source", screens=16)


def run(source: Path, out: Path, name: str) -> study.Study:
    return study.run(
        name,
        preset=study.PRESETS["cpu"],
        data=source,
        out=out,
        seeds=[0],
        folds=(),
        settings=SHORT,
        patch_px=96,
        console=Console(quiet=True),
    )


def test_finished_cells_are_kept_and_shared(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(source, tmp_path, "4")
    assert [cell.row for cell in first.cells] == ["dot product", "cosine"]
    for cell in first.cells:
        assert set(cell.figures) == set(GROUPS)
        assert all(0 <= cell.figures[group][key] <= 1 for group in GROUPS for key in FIGURES)
        assert set(cell.per_label) == {"dot", "line"}

    def refuse(_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(cells, "fit", refuse)
    assert run(source, tmp_path, "4").cells == first.cells
    with pytest.raises(AssertionError, match="trained again"):  # of table 3, the last row alone is there
        run(source, tmp_path, "3")
    both = Row(title="both")
    cell, _ = cells.run_cell(
        both,
        cells.Division(name="again", folder=next((tmp_path / "cut").iterdir())),
        0,
        preset=study.PRESETS["cpu"].file,
        settings=SHORT,
        out=tmp_path,
        base=None,
    )
    assert dataclasses.replace(cell, row="cosine", division=first.cells[1].division) == first.cells[1]


def test_table_7_begins_with_the_phase_1_of_the_network(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.studies.tables.OF_BATCHES", {4: (0.8447, 0.7877)})
    found = run(source, tmp_path, "7")
    assert [cell.row for cell in found.cells] == ["B = 4"]
    runs = [load_file(folder / "phase1.safetensors") for folder in (tmp_path / "runs").iterdir()]
    assert len(runs) == 2  # the network itself, and the row
    trunk = "trunk.0.0.weight"
    assert (runs[0][trunk] == runs[1][trunk]).all()


def test_a_cut_folder_is_taken_as_it_is(source: Path, tmp_path: Path) -> None:
    cut(source, tmp_path / "patches", patch_px=96)
    found = run(tmp_path / "patches", tmp_path / "out", "4")
    assert {cell.division for cell in found.cells} == {"patches"}
    assert not (tmp_path / "out" / "cut").exists()


def test_the_command_writes_what_it_found(source: Path, tmp_path: Path) -> None:
    settings = [part for one in SHORT for part in ("--set", one)]
    arguments = ["table", "relations", "--data", str(source), "--out", str(tmp_path), "--seeds", "1", "--patch", "96"]
    answer = CliRunner().invoke(app, [*arguments, *settings])
    assert answer.exit_code == 0, answer.output
    stem = tmp_path / f"table-relations-cpu-{source.name}"
    assert "| trained by screen (as served) |" in stem.with_suffix(".md").read_text()
    with stem.with_suffix(".csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 5 * len(GROUPS)
    assert stem.with_suffix(".png").stat().st_size > 5_000


def cell_of(row: str, seed: int, f: float, *, steps_only: bool = False) -> Cell:
    figures = {} if steps_only else {group: dict.fromkeys((*FIGURES, "fitted_f_measure"), f) for group in GROUPS}
    return Cell(
        row=row, division="d", seed=seed, steps_only=steps_only, seconds=60, figures=figures, per_label={"dot": f}
    )


def test_the_lead_is_taken_cell_by_cell() -> None:
    """The mean of the differences spreads less than the difference of the means would suggest."""
    rows = (Row(title="one", paper=(0.9, 0.8)), Row(title="two"), Row(title="heavy", heavy=True))
    found = study.Study(
        table=StudyTable(title="Three", rows=rows),
        preset=study.PRESETS["cpu"],
        data="d",
        settings=("seed=1",),
        cells=[
            *(cell_of("one", seed, f) for seed, f in enumerate((0.5, 0.7, 0.9))),
            *(cell_of("two", seed, f) for seed, f in enumerate((0.51, 0.71, 0.91))),
            cell_of("heavy", 0, 0, steps_only=True),
        ],
    )
    text = report.markdown(found, "3")
    assert "| one | 0.700 ± 0.200 |" in text
    assert "0.900, 0.800" in text
    assert "Ahead in F, cell by cell, of two:\n\n- one: 1.000 ± 0.000 points" in text
    assert "a few steps, to show that it runs" in text
    assert "--set seed=1" in text
