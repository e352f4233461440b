"""What the commands write and print: refused before the work where it cannot be, and names as they are."""

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from engine import BundleError, Manifest, bundle_sha256
from tests.training.data_form import write_screens, write_toy
from training.__main__ import app
from training.cutting import cut
from training.explaining import explain
from training.patches import refuse_dropped, refuse_other_windows


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def plain(text: str) -> str:
    """Without the frame of a refusal and its line breaks."""
    return " ".join(text.replace("│", " ").split())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screens(tmp_path_factory.mktemp("outputs") / "source", screens=15)


@pytest.fixture
def verdicts(tmp_path: Path) -> Path:
    entries = [{"screen_id": f"t{n:03d}", "verdict": "pass", "labels": {}, "defects": []} for n in range(15)]
    file = tmp_path / "verdicts.json"
    file.write_text(json.dumps(entries))
    return file


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_file_in_no_folder_is_refused_before_the_work(source: Path, tmp_path: Path, option: str) -> None:
    answer = ran("validate", source, "--patch", 64, option, tmp_path / "nope" / "x")
    assert (answer.exit_code, "there is no folder" in plain(answer.output)) == (2, True), answer.output
    assert "warnings" not in answer.output
    answer = ran("validate", source, "--patch", 64, option, tmp_path)
    assert (answer.exit_code, "is a folder: name a file" in plain(answer.output)) == (2, True), answer.output


def test_a_plot_in_no_known_form_is_refused_before_the_work(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, told in (("c.xyz", r"c\.xyz: .* ends with one of .*\.png"), ("curves", "curves: .* ends with one of")):
        answer = ran("compare", tmp_path, "--plot", tmp_path / name)  # which is no run, but that is not looked at yet
        with pytest.raises(ValueError, match=told):
            raise answer.exception or AssertionError(answer.output)
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        raise ran("compare", tmp_path, "--plot", tmp_path / "c.PNG").exception or AssertionError


@pytest.mark.parametrize(("name", "told"), [("w.txt", "ends with .jpg or .png"), ("nope/w.jpg", "there is no folder")])
def test_a_sheet_of_mistakes_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, name: str, told: str
) -> None:
    answer = ran("worst", "--bundle", tmp_path, "--data", tmp_path, "--out", tmp_path / name)
    assert (answer.exit_code, told in plain(answer.output)) == (2, True), answer.output


def test_figures_on_standard_output_stand_there_alone(source: Path) -> None:
    answer = ran("validate", source, "--patch", 64, "--json", "-")
    assert "errors" in json.loads(answer.stdout)
    assert "0 errors" in answer.stderr
    assert "0 errors" in ran("validate", source, "--patch", 64).stdout  # the next command's tables are where they were


def test_names_are_no_markup(source: Path, verdicts: Path, tmp_path: Path) -> None:
    other = tmp_path / "[red]run"
    other.mkdir()
    for name in ("screens", "splits.csv"):
        (other / name).symlink_to(source / name)
    boxes = (source / "boxes.csv").read_text()
    (other / "boxes.csv").write_text(boxes.replace(",dot,", ",[/tin],").replace(",line,", ",[red]x,"))
    for command in (("validate", other, "--patch", 64), ("judge", verdicts, other)):
        answer = ran(*command)
        assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
        assert {"[/tin]", "[red]x"} <= set(answer.stdout.replace("'", " ").split())
    assert "[red]run" in ran("validate", other, "--patch", 64).stdout


def test_tables_are_coloured_without_markup() -> None:
    from training.measures import wilson
    from training.tables import print_recall

    console = Console(markup=False, width=100)
    with console.capture() as said:
        print_recall({"size": {"[/tin]": {"0-8 px": wilson(1, 2)}}}, console)
    told = said.get()
    assert "[/tin]" in told
    assert "1/2 " in told
    assert "[dim]" not in told


def test_an_overlap_is_below_the_side_of_a_patch(source: Path, tmp_path: Path) -> None:
    cut(source, tmp_path / "cut", patch_px=64)
    with pytest.raises(ValueError, match=r"^--overlap 300 must be below the patches' side, 64 px$"):
        refuse_other_windows([tmp_path / "cut"], overlap_px=300)
    told = r"source holds no cut\.json"
    with pytest.raises(ValueError, match=told):
        refuse_other_windows([source], overlap_px=0)
    with pytest.raises(ValueError, match=told):
        refuse_dropped([source])


def test_the_fold_of_the_test_part_is_given_with_that_part(source: Path, verdicts: Path) -> None:
    for part in ((), ("--part", "all")):
        assert ran("judge", verdicts, source, *part).exit_code == 0
        answer = ran("judge", verdicts, source, *part, "--test-fold", 0)
        assert (answer.exit_code, "says what --part test is" in plain(answer.output)) == (2, True), answer.output
    with pytest.raises(ValueError, match=r"--test-fold needs .*folds\.csv"):
        raise ran("judge", verdicts, source, "--part", "test", "--test-fold", 0).exception or AssertionError


def test_a_part_that_there_is_not_is_refused(source: Path, verdicts: Path) -> None:
    answer = ran("judge", verdicts, source, "--part", "tset")
    assert answer.exit_code == 2
    assert "train, validation, test or all, not 'tset'" in plain(answer.output)


def test_screens_that_cannot_be_sealed_are_refused_before_the_export(source: Path, tmp_path: Path) -> None:
    from training.config import read_config
    from training.fit import fit

    config = read_config(write_toy(tmp_path, screens=10), ["phase1.epochs=1", "phase2.epochs=1"])
    fit(config)
    empty = tmp_path / "empty"
    empty.mkdir()
    small = write_screens(tmp_path / "small", screens=1, height=100)
    for golden, told in ((empty, "holds no"), (small, "t000.png is smaller than a patch, which is 128 px wide")):
        answer = ran("export", config.run, "--out", tmp_path / "bundle", "--golden", golden)
        with pytest.raises(ValueError, match=told):
            raise answer.exception or AssertionError(answer.output)
        assert not (tmp_path / "bundle").exists()
    answer = ran("export", config.run, "--out", tmp_path / "bundle", "--golden", source, "--json", "-")
    assert answer.exit_code == 0, answer.output
    assert "calibration" in json.loads(answer.stdout)
    answer = ran("evaluate", "--bundle", tmp_path / "bundle", *2 * ("--data", tmp_path / "cut"))
    with pytest.raises(ValueError, match="is known already"):
        raise answer.exception or AssertionError(answer.output)


def test_a_patch_that_is_no_multiple_of_a_cell_is_refused(tmp_path: Path) -> None:
    answer = ran("untrained", "--labels", 1, "--out", tmp_path / "out", "--patch", 100)
    with pytest.raises(ValueError, match=r"^--patch must be a multiple of 32, not 100$"):
        raise answer.exception or AssertionError(answer.output)


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    for read in (Manifest.read, bundle_sha256):
        with pytest.raises(BundleError, match=rf"^manifest\.json: cannot be read: .*; is {tmp_path.name} a bundle\?$"):
            read(tmp_path)


@pytest.mark.parametrize("is_cut", [False, True])
def test_an_image_that_the_data_does_not_know_is_not_drawn_as_clean(
    source: Path, two_stages: Path, tmp_path: Path, is_cut: bool
) -> None:
    data, name = (tmp_path / "cut", "images") if is_cut else (source, "screens")
    if is_cut:
        cut(source, data, patch_px=64)
    known = min((data / name).iterdir())
    shutil.copy(known, stranger := tmp_path / "stranger.png")
    shutil.copy(known, copied := tmp_path / known.name)
    assert explain(two_stages, [copied], tmp_path / "drawn", data=data)
    with pytest.raises(ValueError, match=rf"does not know {stranger}: .*{name} has no image of that name"):
        explain(two_stages, [copied, stranger], tmp_path / "drawn", data=data)
