import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.training.data_form import TOML, write_screens
from training.__main__ import app
from training.comparison import compare
from training.curves import draw
from training.cut_folder import CutFolder
from training.cutting import cut
from training.datasets import PatchSet
from training.record import describe_data, revision, revision_of
from training.rows import read_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs of the command line on the same data, and one on other data, in one folder."""
    base = tmp_path_factory.mktemp("comparison")
    cut(write_screens(base / "source", screens=20), base / "cut", patch_px=128)
    cut(write_screens(base / "source-2", screens=20, seed=4), base / "cut-2", patch_px=128)
    (base / "toy.toml").write_text(TOML)
    short = ["phase1.epochs=2", "phase2.epochs=1"]
    for words in (
        ["run=first"],
        ["run=second", "seed=1", "phase1.learning_rate=0.01", "data.workers=1"],
        ["run=elsewhere", 'data.folders=["cut-2"]'],
    ):
        sets = [f"--set={word}" for word in (*short, *words)]
        answer = CliRunner().invoke(app, ["fit", str(base / "toy.toml"), *sets])
        assert answer.exit_code == 0, answer.output
    return base


def test_a_run_writes_down_what_it_was_made_of(base: Path) -> None:
    record = json.loads((base / "first" / "run.json").read_text())
    assert record["seed"] == 0
    assert record["data"]["id"] == json.loads((base / "first" / "data.json").read_text())["data_id"]
    parts = record["data"]["parts"]
    assert list(parts) == ["validation", "phase1", "phase2"]
    assert parts["phase1"]["patches"] == 4 * parts["phase1"]["screens"]
    assert parts["phase1"]["labels"].keys() == {"dot", "line"}
    (session,) = record["sessions"]
    assert session["begun"].endswith("+00:00")
    assert session["command"]
    assert session["versions"]["torch"]
    assert session["versions"]["lightning-fabric"]
    assert session["machine"]["threads"] == 1
    assert session["machine"]["precision"] == "32-true"


def test_runs_are_held_beside_each_other(base: Path) -> None:
    found = compare([base / "first", base / "second"])
    assert found.differing == ["seed", "data.workers", "phase1.learning_rate"]
    assert found.warnings == []
    first = found.runs[0]
    rows = read_rows(base / "first" / "metrics.csv")
    best = first.best("phase1")
    assert best is not None
    assert best.f_measure == max(float(row["f_measure"]) for row in rows if row["phase"] == "phase1")
    assert first.seconds == pytest.approx(sum(float(row["seconds"]) for row in rows))
    assert first.finished == json.loads((base / "first" / "finished.json").read_text())


def test_runs_of_one_name_are_told_apart_and_what_was_not_settable_yet_is_no_difference(
    base: Path, tmp_path: Path
) -> None:
    runs = [Path(shutil.copytree(base / "first", tmp_path / one / "runs" / "own")) for one in ("monday", "tuesday")]
    config = json.loads((runs[0] / "config.json").read_text())
    del config["start_share"], config["phase2"]["freeze"]
    (runs[0] / "config.json").write_text(json.dumps(config))
    found = compare(runs)
    assert [one.run for one in found.runs] == ["monday/runs/own", "tuesday/runs/own"]
    assert found.differing == []


def test_what_is_not_comparable_is_said(base: Path) -> None:
    runs = [base / "first", base / "elsewhere"]
    assert compare(runs).warnings == [
        "the runs have different data: see data id",
        "the runs are judged by different validation patches: their F is not comparable",
    ]
    assert compare(runs).differing == ["data.folders"]


def test_runs_of_the_same_tables_and_other_pixels_are_told_apart(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "second", tmp_path / "painted")
    data = tmp_path / "painted" / "data.json"
    told = json.loads(data.read_text())
    data.write_text(json.dumps({**told, "content": ["another"]}))
    runs = [base / "first", tmp_path / "painted"]
    assert compare(runs).warnings == ["the runs have the same tables of data, but other pixels, or defects elsewhere"]
    del told["content"]  # an earlier version did not look
    data.write_text(json.dumps(told))
    assert compare(runs).warnings == []


def judged_by(folder: Path) -> str:
    of = [folder]
    told: str = describe_data("", of, PatchSet(of, "validation"), {})["validation_id"]
    return told


def test_runs_are_judged_by_the_same_where_patches_and_pixels_are(base: Path, tmp_path: Path) -> None:
    """Of screens that are not for validation it does not matter which they are."""
    folder = Path(shutil.copytree(base / "cut", tmp_path / "cut"))
    file, before = folder / "cut.json", judged_by(folder)
    facts, parts = json.loads(file.read_text()), CutFolder(folder).parts
    seen, unseen = (next(n for n in parts if (parts[n] == "validation") is judged) for judged in (True, False))
    for changes, same in (
        ({"screens": {**facts["screens"], seen: "another"}}, False),
        ({"screens": {**facts["screens"], unseen: "another"}}, True),
        ({"shrink": 3}, False),
        ({"stride_px": 96}, False),
    ):
        file.write_text(json.dumps({**facts, **changes}))
        assert judged_by(folder).split("-")[0] == before.split("-")[0]
        assert (judged_by(folder) == before) is same


def test_a_run_whose_record_tells_no_pixels_is_no_other_one_for_that(base: Path, tmp_path: Path) -> None:
    """Of an earlier version; what it tells of names and labels is held against the others'."""
    runs = [base / "first", Path(shutil.copytree(base / "second", tmp_path / "earlier"))]
    warning = "the runs are judged by different validation patches: their F is not comparable"
    file = runs[1] / "run.json"
    record = json.loads(file.read_text())
    names = record["data"]["validation_id"].split("-")[0]
    for told, warned in ((names, []), ("another", [warning]), (f"{names}-another", [warning])):
        file.write_text(json.dumps({**record, "data": {**record["data"], "validation_id": told}}))
        assert compare(runs).warnings == warned


def test_other_weights_of_the_same_name_are_a_difference(base: Path, tmp_path: Path) -> None:
    runs = [Path(shutil.copytree(base / "first", tmp_path / name)) for name in ("one", "two")]
    for run, digit in zip(runs, "ab", strict=True):
        data = json.loads((run / "data.json").read_text())
        (run / "data.json").write_text(json.dumps({**data, "start": digit * 64}))
    found = compare(runs)
    assert found.differing == ["start_sha256"]
    assert [one.config["start_sha256"] for one in found.runs] == ["a" * 12, "b" * 12]


def test_what_changed_while_a_run_was_trained_or_from_run_to_run_is_said(base: Path, tmp_path: Path) -> None:
    for name in ("own", "other"):
        shutil.copytree(base / "first", tmp_path / name)
    file = tmp_path / "own" / "run.json"
    record = json.loads(file.read_text())
    (session,) = record["sessions"]
    session |= {"revision": "abc", "changed": False, "versions": {"torch": "2.8"}}
    session["machine"] |= {"cpu": "one", "threads": 1}
    later = {**session, "changed": True, "versions": {"torch": "2.9"}, "machine": {**session["machine"], "threads": 2}}
    file.write_text(json.dumps({**record, "sessions": [session, session, later]}))
    (tmp_path / "other" / "run.json").write_text(json.dumps({**record, "sessions": [session]}))
    assert compare([tmp_path / "own", tmp_path / "other"]).warnings == [
        "the runs have different versions of torch: 2.8, 2.9 | 2.8",
        "own was trained with more than one revision: abc | abc+",
        "own was trained with more than one machine: one, threads 1 | one, threads 2",
        "own was trained with more than one torch: 2.8 | 2.9",
    ]


def test_a_run_without_a_record_or_an_end_is_shown_as_far_as_it_is_known(base: Path, tmp_path: Path) -> None:
    """As runs of earlier versions are, whose rows name no seconds either."""
    old = tmp_path / "first"
    old.mkdir()
    for file in ("config.json", "data.json"):
        (old / file).write_text((base / "elsewhere" / file).read_text())
    rows = (base / "elsewhere" / "metrics.csv").read_text().splitlines()
    (old / "metrics.csv").write_text("".join(row.rsplit(",", 1)[0] + "\n" for row in rows))
    found = compare([base / "first", old])
    assert [one.run for one in found.runs] == [f"{base.name}/first", f"{tmp_path.name}/first"]
    assert found.warnings[1:] == [
        "whether they are judged by the same validation patches is not known: a run has no run.json",
        f"{tmp_path.name}/first has not ended: 3 epochs so far",
    ]
    assert found.runs[1].seconds is None
    assert found.runs[1].revision is None
    answer = CliRunner().invoke(app, ["compare", str(base / "first"), str(old)])
    assert answer.exit_code == 0, answer.output


def test_the_command_prints_draws_and_writes(base: Path, tmp_path: Path) -> None:
    picture, figures = tmp_path / "curves.png", tmp_path / "compare.json"
    runs = [str(base / name) for name in ("first", "second")]
    answer = CliRunner().invoke(app, ["compare", *runs, "--plot", str(picture), "--json", str(figures)])
    assert answer.exit_code == 0, answer.output
    for told in ("phase1.learning_rate", "0.004", "0.01", "validation F", "dot: F"):
        assert told in answer.output
    assert "feature_width" not in answer.output  # the same in both
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = json.loads(figures.read_text())
    assert [run["run"] for run in written["runs"]] == ["first", "second"]
    assert written["runs"][0]["best"]["phase2"]["epoch"] == 1
    assert written["runs"][0]["config"]["phase1.epochs"] == 2


def test_other_folders_and_formats_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        compare([base / "first", tmp_path])
    with pytest.raises(ValueError, match="Format 'txt'"):
        draw(compare([base / "first"]).runs, tmp_path / "curves.txt")
    broken = Path(shutil.copytree(base / "first", tmp_path / "broken"))
    (broken / "run.json").write_text('{"seed": 0, "da')
    with pytest.raises(ValueError, match=r"broken/run\.json cannot be read: "):
        compare([broken])
    (broken / "data.json").unlink()
    with pytest.raises(ValueError, match=r"data\.json is missing"):
        compare([broken])


def test_every_run_is_in_the_legend_by_its_name_and_looks_like_no_other(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    (first,) = compare([base / "first"]).runs
    names = ["_old", "x$_$", *(f"run-{number}" for number in range(6))]
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep_and_save(figure: Figure, path: Path, *, dpi: int) -> None:
        drawn.append(figure)
        save(figure, path, dpi=dpi)

    monkeypatch.setattr(Figure, "savefig", keep_and_save)
    draw([replace(first, run=name) for name in names], tmp_path / "curves.png")
    (figure,) = drawn
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()]
    assert len(set(looks)) == len(names)


def test_the_revision_is_that_of_the_code(tmp_path: Path) -> None:
    assert revision(tmp_path) == (None, None)  # no repository
    (tmp_path / "training").mkdir()
    code = tmp_path / "training" / "fit.py"
    code.write_text("first")

    def git(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        answer = subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True)
        return answer.stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("beside the code")
    assert revision(tmp_path) == (commit, False)
    code.write_text("second")
    assert revision(tmp_path) == (commit, True)


def test_a_run_names_its_revision_where_it_is_known(tmp_path: Path) -> None:
    assert revision_of(tmp_path) is None
    for session, told in (
        ({"revision": None, "changed": None}, None),
        ({"revision": "abc", "changed": False}, "abc"),
        ({"revision": "abc", "changed": True}, "abc+"),
    ):
        (tmp_path / "run.json").write_text(json.dumps({"sessions": [{"revision": "old"}, session]}))
        assert revision_of(tmp_path) == told
