"""A study goes on: past a cell that diverged, in another place, beside other studies, with files of other versions."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.training.data_form import write_screens
from tests.training.made_cells import cell_of
from training.__main__ import app
from training.config import Config
from training.cutting import cut
from training.fit import DivergedError
from training.folder import RunFolder
from training.studies import cells, study
from training.studies.cells import IMAGE, Cell, Division, run_cell
from training.studies.tables import Row


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cut folder."""
    base = tmp_path_factory.mktemp("goes_on")
    cut(write_screens(base / "source", screens=6), base / "cut", patch_px=96)
    return base / "cut"


def command(name: str, data: Path, out: Path, *options: str) -> list[str]:
    return ["table", name, "--data", str(data), "--out", str(out), "--seeds", "1", *options]


def train(place: Path, row: str = "r") -> tuple[Cell, Path]:
    """A cell of the data `cut` that begins with the run `base`, all in one folder."""
    base = place / "study" / "runs" / "base"
    base.mkdir(parents=True, exist_ok=True)
    (base / "finished.json").touch()
    (base / "phase1.safetensors").touch()
    return run_cell(
        Row(title=row),
        Division(name="here", folder=place / "cut"),
        0,
        preset=study.PRESETS["cpu"].file,
        settings=(),
        out=place / "study",
        base=base,
    )


Trains = Callable[..., tuple[Cell, Path]]


def diverges(*rows: str) -> Trains:
    def cell(row: Row, division: Division, seed: int, *, out: Path, **_: object) -> tuple[Cell, Path]:
        if row.title in rows:
            raise DivergedError("phase1, epoch 1, step 3: the loss is nan")
        return cell_of(row.title, seed, 0.5), out / "runs" / "name"

    return cell


def test_a_row_that_diverges_is_told_and_stops_no_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "dot product, cut, seed 0: phase1, epoch 1, step 3: the loss is nan"
    monkeypatch.setattr(study, "run_cell", diverges("dot product"))
    answer = CliRunner().invoke(app, command("4", folder, tmp_path))
    assert (answer.exit_code, type(answer.exception)) == (1, SystemExit)
    assert f"- {told}\n" in answer.output
    (file,) = tmp_path.glob("*.md")
    text = file.read_text()
    assert "| cosine |" in text
    assert "| dot product |" not in text
    assert f"Diverged, and in no figure above, 1:\n\n- {told}\n" in text
    monkeypatch.setattr(study, "run_cell", diverges("dot product", "cosine"))
    answer = CliRunner().invoke(app, command("4", folder, tmp_path))
    assert str(answer.exception) == f"{told}; {told.replace('dot product', 'cosine')}"
    monkeypatch.setattr(study, "run_cell", diverges())
    assert CliRunner().invoke(app, command("4", folder, tmp_path)).exit_code == 0
    assert "Diverged" not in file.read_text()


def test_a_study_that_was_moved_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(config: Config) -> None:
        RunFolder(config.run).begin(config, ("dot", "line"))
        raise KilledError

    monkeypatch.setattr(cells, "fit", begin)
    shutil.copytree(folder, tmp_path / "a" / "cut")
    for place in ("a", "b"):
        with pytest.raises(KilledError):
            train(tmp_path / place)
        (run,) = (one for one in (tmp_path / place / "study" / "runs").iterdir() if one.name != "base")
        config = Config.model_validate_json((run / "config.json").read_text())
        assert config.data.folders == [tmp_path / place / "cut"]
        assert config.start == tmp_path / place / "study" / "runs" / "base" / "phase1.safetensors"
        if place == "a":
            (tmp_path / "a").rename(tmp_path / "b")


def test_a_run_of_the_same_name_and_another_configuration_is_still_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "fit", lambda config: RunFolder(config.run).begin(config, ("dot", "line")))
    monkeypatch.setattr(cells, "measure", lambda *_, **__: cell_of("r", 0, 0.5))
    shutil.copytree(folder, tmp_path / "cut")
    _, run = train(tmp_path)
    (tmp_path / "study" / "cells" / f"{run.name}.json").unlink()
    config = run / "config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match="another configuration"):
        train(tmp_path)


def test_a_cell_that_another_table_finished_meanwhile_has_the_row_that_was_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "cut")

    def finish(config: Config) -> None:
        file = tmp_path / "study" / "cells" / f"{config.run.name}.json"
        file.parent.mkdir()
        other = dataclasses.replace(cell_of("elsewhere", 0, 0.5), division="another name")
        file.write_text(json.dumps(dataclasses.asdict(other)))

    monkeypatch.setattr(cells, "fit", finish)
    cell, _ = train(tmp_path, row="asked for")
    assert (cell.row, cell.division) == ("asked for", "here")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"new": 1}, r"unexpected keyword argument 'new'"),
        ({"figures": None}, r"missing 1 required .*: 'figures'"),
        (None, "Expecting value"),
    ],
)
def test_a_cell_of_another_version_is_named(
    values: dict[str, object] | None, told: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "cut")
    monkeypatch.setattr(cells, "fit", lambda _: None)
    monkeypatch.setattr(cells, "measure", lambda *_, **__: cell_of("r", 0, 0.5))
    _, run = train(tmp_path)
    file = tmp_path / "study" / "cells" / f"{run.name}.json"
    cell = {**json.loads(file.read_text()), **(values or {})}
    left = {key: value for key, value in cell.items() if value is not None or key == "revision"}
    file.write_text("" if values is None else json.dumps(left))
    with pytest.raises(ValueError, match=rf"^{file} is no cell of this version \(.*{told}.*\): remove it to train it"):
        train(tmp_path)


def test_a_cell_without_a_column_of_the_table_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def old(row: Row, division: Division, seed: int, **_: object) -> tuple[Cell, Path]:
        cell = cell_of(row.title, seed, 0.5)
        figures = {group: values for group, values in cell.figures.items() if group != IMAGE}
        return dataclasses.replace(cell, figures=figures if row.title == "two-stage" else cell.figures), Path("name")

    monkeypatch.setattr(study, "run_cell", old)
    asked = command("9", folder, tmp_path, "--row", "two-stage", "--row", "KSSNet")
    told = f"{tmp_path / 'cells' / 'name.json'} has no figures by image, which are asked for: remove it to train it"
    assert str(CliRunner().invoke(app, asked).exception).startswith(told)
    answer = CliRunner().invoke(app, [*asked, "--finished"])
    assert "1 of 2 cells are finished" in answer.output


def test_data_that_is_told_by_where_it_lies_has_its_own_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "run_cell", diverges())
    monkeypatch.chdir(folder)
    answer = CliRunner().invoke(app, command("4", Path("."), tmp_path))
    assert answer.exit_code == 0, answer.output
    assert list(tmp_path.glob("table-4-cpu-cut-*.md"))
    link = tmp_path / "linked"
    link.symlink_to(folder)
    assert [study.name_of(one) for one in (Path(), Path("images/.."), Path(".."), link)] == [
        *("cut", "cut", folder.parent.name, "linked"),
    ]
