import csv
import dataclasses
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.training.data_form import write_screens
from training.__main__ import app
from training.bare import attribution_of
from training.cutting import cut
from training.datasets import PatchSet
from training.folder import RunFolder
from training.rows import read_rows
from training.studies import cells, study
from training.studies.cells import FIGURES, GROUPS, IMAGE
from training.studies.tables import Row, Windows, table

SHORT = (
    *("threads=1", "data.patches_per_epoch=16", "phase1.epochs=1", "phase1.batch=8", "phase2.epochs=1"),
    *("phase1.warmup_steps=0", "phase2.warmup_steps=0", "network.feature_width=8", "network.relation_width=8"),
)


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
        assert set(cell.figures) == {*GROUPS, IMAGE}
        assert all(0 <= cell.figures[group][key] <= 1 for group in GROUPS for key in FIGURES)
        assert set(cell.per_label) == {"dot", "line"}
    # which tells it from a cell of the same row, data and seed that was trained otherwise
    assert [cell.settings for cell in first.cells] == [[*SHORT, "network.classifier=dot"], [*SHORT]]

    def refuse(_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(cells, "fit", refuse)
    assert run(source, tmp_path, "4").cells == first.cells
    old = next((tmp_path / "cells").iterdir())
    values = json.loads(old.read_text())
    whole = values["figures"].pop(IMAGE)  # as a version left it that did not count them
    old.write_text(json.dumps(values))
    assert run(source, tmp_path, "4").cells == first.cells
    assert json.loads(old.read_text())["figures"][IMAGE] == whole
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

    shutil.rmtree(tmp_path / "runs")  # as of cells that were brought from elsewhere without their weights
    assert run(source, tmp_path, "7").cells == found.cells
    (row,) = (file for file in (tmp_path / "cells").iterdir() if "B = 4" in file.read_text())
    row.unlink()
    with pytest.raises(ValueError, match=r"is gone, whose phase 1 'B = 4' begins with: remove .*\.json"):
        run(source, tmp_path, "7")


def test_a_cell_that_another_process_is_at_comes_last(source: Path, tmp_path: Path) -> None:
    (division,) = study._divisions(source, tmp_path, Windows(patch_px=96, shrink=2), "known", ())
    row = table("4", "cpu", study.PRESETS["cpu"].base(SHORT)).rows[0]
    config = cells._config(row, division, 0, preset=study.PRESETS["cpu"].file, settings=SHORT, base=None)
    its_run = RunFolder(tmp_path / "runs" / cells._name(config, None))
    with ThreadPoolExecutor(1) as pool:
        with its_run.alone():  # as another process of the same study has it
            found = pool.submit(run, source, tmp_path, "4")
            while not list(tmp_path.glob("cells/*.json")):
                assert not found.done()
                time.sleep(0.1)
            (second,) = tmp_path.glob("cells/*.json")
            assert "cosine" in second.read_text()
            with pytest.raises(TimeoutError):
                found.result(timeout=1)
            assert not its_run.finished
        assert [cell.row for cell in found.result(timeout=120).cells] == ["dot product", "cosine"]
    assert its_run.finished


def test_a_row_that_cannot_be_trained_is_refused_before_any_is(source: Path, tmp_path: Path) -> None:
    command = table_command(source, tmp_path, "2")
    refused = CliRunner().invoke(app, [*command, "--set", "phase1.accumulate=4"])
    assert "accumulate" in str(refused.exception)
    assert not (tmp_path / "cut").exists()


def test_what_methods_cost_is_a_table_too(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["table", "8", "--out", str(tmp_path / "counts")])
    assert answer.exit_code == 0, answer.output
    stem = tmp_path / "counts" / "table-8"
    assert "| KSSNet | 2.628 | 2.627 | 8.621 | 8.621 | 8.457 |" in stem.with_suffix(".md").read_text()
    rows = read_rows(stem.with_suffix(".csv"))
    assert rows[0] == {
        "method": "ResNet-50",
        "parameters": "23516228",
        "paper_parameters": "23520000.0",
        "products": "86094913540",
        "paper_products": "86100000000.0",
        "products_grey": "84450746372",
    }
    assert stem.with_suffix(".png").stat().st_size > 5_000
    refused = CliRunner().invoke(app, ["table", "4", "--out", str(tmp_path)])
    assert refused.exit_code == 2
    assert "--data" in refused.output


def table_command(source: Path, out: Path, name: str) -> list[str]:
    settings = [part for one in SHORT for part in ("--set", one)]
    return ["table", name, "--data", str(source), "--out", str(out), "--seeds", "1", "--patch", "96", *settings]


def test_the_command_writes_what_it_found(source: Path, tmp_path: Path) -> None:
    command = table_command(source, tmp_path, "relations")
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    stem = next(tmp_path.glob(f"table-relations-cpu-{source.name}-*.md")).with_suffix("")
    assert "| trained by screen (as served) |" in stem.with_suffix(".md").read_text()
    with stem.with_suffix(".csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6 * len((*GROUPS, IMAGE))
    assert stem.with_suffix(".png").stat().st_size > 5_000


def test_some_rows_of_a_table_are_trained_alone_and_name_the_command(source: Path, tmp_path: Path) -> None:
    command = table_command(source, tmp_path, "4")
    answer = CliRunner().invoke(app, [*command, "--row", "dot product"])
    assert answer.exit_code == 0, answer.output
    (file,) = tmp_path.glob(f"table-4-cpu-{source.name}-*.md")
    text = file.read_text()
    assert "| dot product |" in text
    assert "| cosine |" not in text
    assert "--row 'dot product'" in text
    assert len(list((tmp_path / "cells").iterdir())) == 1

    so_far = CliRunner().invoke(app, [*command, "--finished"])
    assert so_far.exit_code == 0, so_far.output
    assert "1 of 2 cells are finished" in so_far.output
    (second,) = set(tmp_path.glob(f"table-4-cpu-{source.name}-*.md")) - {file}
    told = second.read_text()
    row = next(line for line in text.splitlines() if line.startswith("| dot product |"))
    assert row in told
    assert "| cosine |" not in told
    assert "--finished`" in told
    assert len(list((tmp_path / "cells").iterdir())) == 1
    never_cut = CliRunner().invoke(app, [*command, "--finished", "--patch", "64"])
    assert str(never_cut.exception) == f"{tmp_path} has no finished cell of table 4"
    assert len(list((tmp_path / "cut").iterdir())) == 1
    none = CliRunner().invoke(app, [*command, "--finished", "--row", "cosine"])
    assert str(none.exception) == f"{tmp_path} has no finished cell of table 4"

    refused = CliRunner().invoke(app, [*command, "--row", "dot"])
    assert isinstance(refused.exception, ValueError)
    assert str(refused.exception) == "no row 'dot': there are 'dot product', 'cosine'"


def test_the_table_of_maps_holds_both_stages_against_a_network_of_one(source: Path, tmp_path: Path) -> None:
    command = table_command(source, tmp_path, "maps")
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    stem = next(tmp_path.glob(f"table-maps-cpu-{source.name}-*.md")).with_suffix("")
    with stem.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"].split(",")[0], row["group"]) for row in rows] == [
        *(("plain trunk", group) for group in ("stage 2", "flat")),
        *(("two-stage", group) for group in ("stage 1", "stage 2", "flat")),
        *(("map loss", group) for group in ("stage 1", "stage 2", "flat")),
    ]
    text = stem.with_suffix(".md").read_text()
    one_stage, two_stage = (float(rows[place]["energy"]) for place in (0, 3))
    assert f"| plain trunk, in the place of ResNet-50 | - | - | {one_stage:.3f} |" in text
    assert f"- plain trunk, in the place of ResNet-50: {100 * (two_stage - one_stage):.1f} (ahead in" in text
    flat = float(rows[1]["energy"])
    assert f"| a map that is the same everywhere | {flat:.3f} |" in text
    assert stem.with_suffix(".png").stat().st_size > 5_000

    file_of_a_run = max((tmp_path / "maps").iterdir(), key=lambda file: "stage 1" in file.read_text())
    figures = json.loads(file_of_a_run.read_text())
    run = tmp_path / "runs" / file_of_a_run.stem.split("-")[0]
    its_cell = tmp_path / "cells" / f"{run.name}.json"
    (folder,) = (tmp_path / "cut").iterdir()
    answer = CliRunner().invoke(
        app, ["localise", "--run", str(run), "--data", str(folder), "--json", str(tmp_path / "found.json")]
    )
    assert answer.exit_code == 0, answer.output
    (found,) = json.loads((tmp_path / "found.json").read_text()).values()
    assert found["stage 2"]["energy_mean"][0] == figures["stage 2"]["energy"]
    assert found["stage 1"]["pointing_mean"][0] == figures["stage 1"]["pointing"]
    refused = CliRunner().invoke(app, ["localise", "--data", str(folder)])
    assert refused.exit_code == 2
    assert "a bundle or a run" in refused.output

    shutil.rmtree(tmp_path / "maps")
    run.rename(tmp_path / "gone")
    refused = CliRunner().invoke(app, command)
    assert str(refused.exception) == f"{run} is gone, whose maps are asked for: remove {its_cell} to train it"
    so_far = CliRunner().invoke(app, [*command, "--finished"])
    assert "2 of 3 cells are finished" in so_far.output
    assert len(list((tmp_path / "maps").iterdir())) == 2  # of the runs that are still there
    (tmp_path / "gone").rename(run)
    alone = CliRunner().invoke(app, [*command, "--row", "map loss, contrast 0.1"])
    assert alone.exit_code == 0, alone.output  # though the two-stage network is not there to be held against it
    (folder / "defects.csv").unlink()
    refused = CliRunner().invoke(app, command)
    assert "has no defects.csv" in str(refused.exception)


def test_a_run_that_cannot_be_taken_apart_is_named(source: Path, tmp_path: Path) -> None:
    cut(source, tmp_path / "cut", patch_px=96)
    division = cells.Division(name="d", folder=tmp_path / "cut")
    one_stage = ("network.method=tdrg", "phase2.epochs=0", "loss.contrast=0")
    _, run = cells.run_cell(
        Row(title="r", settings=one_stage),
        division,
        0,
        preset=study.PRESETS["cpu"].file,
        settings=SHORT,
        out=tmp_path,
        base=None,
    )
    with pytest.raises(ValueError, match=f"^{run}: its scores are not"):
        attribution_of(run)
    division.folder.rename(tmp_path / "moved")
    with pytest.raises(OSError, match=r"cut/labels\.csv"):
        attribution_of(run)
    with pytest.raises(ValueError, match=f"^{run}: its scores are not"):
        attribution_of(run, data=tmp_path / "moved")


def test_what_decides_a_cells_figures_is_in_its_name(source: Path, tmp_path: Path) -> None:
    def name(seed: int = 0, *settings: str, row: tuple[str, ...] = (), folder: Path = tmp_path / "cut") -> str:
        division = cells.Division(name="d", folder=folder)
        made = cells._config(
            Row(title="r", settings=row),
            division,
            seed,
            preset=study.PRESETS["cpu"].file,
            settings=settings,
            base=None,
        )
        return cells._name(made, None)

    cut(source, tmp_path / "cut", patch_px=96)
    first = name()
    shutil.copytree(tmp_path / "cut", tmp_path / "same")
    assert name(0, "threads=3", "data.workers=4", folder=tmp_path / "same") == first
    one_stage = "network.method=feature_clustering", "phase2.epochs=0"
    assert name(0, *one_stage, "phase2.learning_rate=0.5") == name(0, *one_stage)
    shutil.copytree(tmp_path / "cut", tmp_path / "painted")
    image = next((tmp_path / "painted" / "images").iterdir())
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (96, 96), np.uint8))
    shutil.copytree(tmp_path / "cut", tmp_path / "moved")
    np.savez(tmp_path / "moved" / "maps.npz", cells=np.zeros((0, 5), np.int32))
    others = [
        name(1),
        name(0, "phase1.epochs=3"),
        name(row=("loss.map=0.5", "network.pooling=attention")),
        name(folder=tmp_path / "painted"),
        name(folder=tmp_path / "moved"),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_a_cell_is_measured_on_the_test_part_at_thresholds_of_the_validation_part(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network that scores by hand: it tells all on validation, and everywhere everything on test."""
    cut(source, tmp_path / "cut", patch_px=96)
    parts: dict[int, str | None] = {}
    patches = PatchSet

    def noted(folders: list[Path], part: str | None) -> PatchSet:
        made = patches(folders, part)
        parts[id(made)] = part
        return made

    def scores(network: object, seen: object, data: PatchSet, fabric: object, *, group: str) -> NDArray[np.float32]:
        present, absent = {"validation": (0.8, 0.4), "test": (0.9, 0.65)}[str(parts[id(data)])]
        probability = np.where(data.labels == 1, present, absent)
        return np.asarray(np.log(probability / (1 - probability)), np.float32)

    division = cells.Division(name="d", folder=tmp_path / "cut")
    monkeypatch.setattr(cells, "PatchSet", noted)
    monkeypatch.setattr(cells, "reasoned", scores)
    cell, run = cells.run_cell(
        Row(title="r"), division, 0, preset=study.PRESETS["cpu"].file, settings=SHORT, out=tmp_path, base=None
    )
    assert list(parts.values()) == ["validation", "test"]
    for figures in cell.figures.values():
        assert figures["validation_f_measure"] == 1
        # at 0.5, and at 0.6, which is fitted on validation; fitted on the test part it would be 0.775, and tell all
        assert 0 < figures["f_measure"] == figures["fitted_f_measure"] < 1
    with (run / "metrics.csv").open(newline="") as file:
        assert cell.seconds == pytest.approx(sum(float(row["seconds"]) for row in csv.DictReader(file)), abs=0.1)


@pytest.mark.parametrize("setting", ["seed=7", "run=mine", "start=weights.safetensors", "data.folders=[]"])
def test_what_a_study_sets_itself_is_not_to_be_set(source: Path, tmp_path: Path, setting: str) -> None:
    """A cell named without it would be taken for another, and one seed counted as many."""
    arguments = ["table", "3", "--data", str(source), "--out", str(tmp_path), "--seeds", "1", "--set", setting]
    told = CliRunner().invoke(app, arguments)
    assert str(told.exception) == f"--set {setting.partition('=')[0]}: a study sets that itself, for each of its cells"
