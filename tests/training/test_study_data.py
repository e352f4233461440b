"""What the cells of a study learn from: how its data is cut, and when it is cut again."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.training.data_form import write_screens
from tests.training.made_cells import cell_of, study_of
from training.__main__ import app
from training.cutting import cut
from training.rows import read_rows
from training.studies import report, study
from training.studies.cells import Cell, Division
from training.studies.tables import PresetName, Row, Windows, table
from training.truth import Rule


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screens(tmp_path_factory.mktemp("study") / "source", screens=6)


@pytest.mark.parametrize("preset", ["cpu", "full"])
def test_images_of_the_steel_set_are_cut_by_windows_of_their_own(tmp_path: Path, preset: PresetName) -> None:
    steel = write_screens(tmp_path / "a" / "steel", screens=8, height=256, width=1600)
    wanted = table("9", preset, study.PRESETS[preset].base(()))
    assert wanted.windows is not None
    (division,) = study._divisions(steel, tmp_path / "out", wanted.windows, "known", ())
    lefts = {int(row["left"]) for row in read_rows(division.folder / "windows.csv")}
    assert lefts == {0, 224, 448, 672, 896, 1120, 1344}
    found = study_of((Row(title="one"),), [cell_of("one", 0, 0.5, by_image=0.75)])
    text = report.markdown(dataclasses.replace(found, table=dataclasses.replace(wanted, rows=found.table.rows)), "9")
    assert "by whole images" in text
    assert "| one | 0.750 | 0.750 | 0.750 | 0.750 | 0.750 |" in text  # by which the paper counts
    other = write_screens(tmp_path / "b" / "steel", screens=8, seed=1, height=256, width=1600)
    (beside,) = study._divisions(other, tmp_path / "out", wanted.windows, "known", ())
    assert beside.folder != division.folder  # of the same name, and other data


def test_a_cut_that_was_killed_is_done_again(source: Path, tmp_path: Path) -> None:
    windows = Windows(patch_px=96, shrink=1)
    (division,) = study._divisions(source, tmp_path, windows, "known", ())
    draft = division.folder.rename(division.folder.with_name(f".{division.folder.name}"))
    (draft / "cut.json").unlink()
    (again,) = study._divisions(source, tmp_path, windows, "known", ())
    assert (again.folder / "cut.json").is_file()
    assert not draft.exists()


def test_what_is_cut_otherwise_is_another_cut(tmp_path: Path) -> None:
    data = write_screens(tmp_path / "data", screens=6)
    windows = Windows(patch_px=96, shrink=1)

    def folder(rule: Rule = "known") -> Path:
        (division,) = study._divisions(data, tmp_path, windows, rule, ())
        return division.folder

    folders = [folder(), folder("paper")]
    assert json.loads((folders[1] / "cut.json").read_text())["rule"] == "paper"
    splits = data / "splits.csv"
    splits.write_text(splits.read_text().replace("t000,train", "t000,test"))
    folders.append(folder())
    assert "t000,test" in (folders[-1] / "splits.csv").read_text()
    screen = next((data / "screens").iterdir())
    cv2.imwrite(str(screen), np.zeros_like(cv2.imread(str(screen), cv2.IMREAD_GRAYSCALE)))
    folders.append(folder())
    assert len(set(folders)) == len(folders)
    assert folder() == folders[-1]


def test_a_fold_or_a_cut_that_is_not_to_be_had_is_refused(source: Path, tmp_path: Path) -> None:
    cut(source, tmp_path / "patches", patch_px=96)
    shutil.copytree(source, tmp_path / "folds")
    screens = [row["screen"] for row in read_rows(source / "splits.csv")]
    table_of_folds = "".join(f"{screen},{number % 3}\n" for number, screen in enumerate(screens))
    (tmp_path / "folds" / "folds.csv").write_text(f"screen,fold\n{table_of_folds}")
    for data, options, told in (
        (source, ["--fold", "1"], "--fold 1: the data is not divided into folds"),
        (tmp_path / "folds", ["--fold", "5"], "--fold 5: there are 0, 1, 2"),
        (tmp_path / "patches", ["--patch", "96"], f"--patch 96: {tmp_path / 'patches'} is cut already"),
    ):
        refused = CliRunner().invoke(app, ["table", "4", "--data", str(data), "--out", str(tmp_path), *options])
        assert str(refused.exception) == told


def test_a_cut_folder_is_taken_as_it_is(source: Path, tmp_path: Path) -> None:
    cut(source, tmp_path / "patches", patch_px=96)
    (division,) = study._divisions(tmp_path / "patches", tmp_path / "out", Windows(patch_px=96, shrink=1), "known", ())
    assert (division.name, division.folder) == ("patches", tmp_path / "patches")
    assert not (tmp_path / "out").exists()


def test_a_fold_counts_once_and_one_that_was_never_begun_is_not_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(source, tmp_path / "folded"))
    (data / "splits.csv").unlink()
    (data / "folds.csv").write_text("screen,fold\n" + "".join(f"t{n:03d},{n % 3}\n" for n in range(6)))

    def cell(row: Row, division: Division, seed: int, **_: object) -> tuple[Cell, Path]:
        return dataclasses.replace(cell_of(row.title, seed, 0.5), division=division.name), tmp_path

    monkeypatch.setattr(study, "run_cell", cell)

    def found(*folds: int, finished: bool) -> study.Study:
        return study.run(
            "4",
            preset=study.PRESETS["cpu"],
            data=data,
            out=tmp_path / "out",
            seeds=(0, 1),
            folds=folds,
            settings=(),
            patch_px=96,
            console=Console(quiet=True),
            finished=finished,
        )

    assert len(found(0, 0, finished=False).cells) == 4
    so_far = found(0, 1, finished=True)
    assert so_far.finished == "4 of 8 cells are finished"
    assert f"--out {tmp_path / 'out'} --finished" in so_far.command("4")
