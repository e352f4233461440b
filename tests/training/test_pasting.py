"""Screens with pieces of others pasted in, and a run that begins with the trunk that has learnt from them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.training.data_form import write_screens, write_toy
from training.__main__ import app
from training.boxes import read_defects
from training.config import read_config
from training.cutting import cut
from training.fit import fit
from training.images import read_whole, screen_files
from training.membership import read_parts
from training.pasting import LABEL, paste, pasted
from training.rows import read_rows
from training.validation.form import validate_form

PATCH = 96


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screens(tmp_path_factory.mktemp("pasting") / "source", screens=10)


def test_what_differs_from_the_screen_is_what_is_marked_and_the_test_part_is_left_out(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pasted"
    counted = paste(source, out, patch_px=PATCH, times=2)
    parts = {row["screen"]: row["part"] for row in read_rows(out / "splits.csv")}
    test = {row["screen"] for row in read_rows(source / "splits.csv") if row["part"] == "test"}
    assert test
    assert test.isdisjoint(name.rpartition("-")[0] for name in parts)
    assert counted == {"train": 14, "validation": 1, "pieces": len(read_rows(out / "boxes.csv"))}
    assert counted["pieces"] > 15
    defects = read_defects(out, screen_files(out))
    for name, file in screen_files(out).items():
        before, after = read_whole(source / "screens" / f"{name.rpartition('-')[0]}.png"), read_whole(file)
        changed = np.abs(after.astype(int) - before) >= 16
        marked = np.zeros_like(changed)
        for one in defects.get(name, []):
            assert one.label == LABEL
            marked[one.rows, one.columns] = True
        assert (changed & ~marked).sum() < 16 * 12  # pieces of a few pixels
        lone = cv2.dilate(changed.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
        assert not (marked & lone).any()
    report = validate_form(out, patch_px=PATCH)
    assert not report.errors, report.findings
    assert sum(cut(out, tmp_path / "cut", patch_px=PATCH).patches.values()) > 0


def test_copies_of_one_screen_stay_together_and_their_names_are_those_of_screens(source: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare" / "screens"
    bare.mkdir(parents=True)
    for number, file in enumerate(sorted((source / "screens").iterdir())):
        (bare / f"{'s' * 63}{number}.png").write_bytes(file.read_bytes())
    paste(bare.parent, tmp_path / "out", patch_px=PATCH, times=2)
    names = list(screen_files(tmp_path / "out"))
    assert max(map(len, names)) == 64
    of = {row["screen"]: row["of"] for row in read_rows(tmp_path / "out" / "splits.csv")}
    parts = read_parts(tmp_path / "out", names, test_fold=None)
    drawn = {of[name] for name, part in parts.items() if part == "validation"}
    assert drawn
    assert drawn.isdisjoint(of[name] for name, part in parts.items() if part == "train")


def test_a_copy_hangs_on_the_seed_alone() -> None:
    rng = np.random.default_rng(0)
    frame, donor = (rng.integers(0, 255, (200, 300), dtype=np.uint8) for _ in range(2))
    copies = [pasted(frame, donor, np.random.default_rng(seed), patch_px=64)[0] for seed in (1, 1, 2)]
    assert np.array_equal(copies[0], copies[1])
    assert not np.array_equal(copies[0], copies[2])


def test_screens_alone_are_enough_and_one_is_too_few(source: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare" / "screens"
    bare.mkdir(parents=True)
    for number in range(2):
        (bare / f"s{number}.png").write_bytes((source / "screens" / f"t00{number}.png").read_bytes())
    answer = CliRunner().invoke(
        app, ["paste", str(bare.parent), "--out", str(tmp_path / "out"), "--patch", str(PATCH), "--times", "3"]
    )
    assert answer.exit_code == 0, answer.output
    assert len(list((tmp_path / "out" / "screens").iterdir())) == 6
    with pytest.raises(ValueError, match=r"--test-fold 3: .* has no folds.csv"):
        paste(bare.parent, tmp_path / "folded", patch_px=PATCH, test_fold=3)
    with pytest.raises(ValueError, match="is not empty"):
        paste(bare.parent, tmp_path / "out", patch_px=PATCH)
    with pytest.raises(ValueError, match="256 x 192 px is smaller than a patch of 1024"):
        paste(bare.parent, tmp_path / "new", patch_px=1024)
    (bare / "s1.png").unlink()
    with pytest.raises(ValueError, match="has 1 screens to learn from"):
        paste(bare.parent, tmp_path / "one", patch_px=PATCH)


def test_a_run_may_begin_with_the_trunk_of_one_of_other_labels(tmp_path: Path) -> None:
    toml = write_toy(tmp_path, screens=12)
    paste(tmp_path / "source", tmp_path / "pasted", patch_px=PATCH)
    cut(tmp_path / "pasted", tmp_path / "cut-pasted", patch_px=128)
    first = ["run=pasted-run", 'data.folders=["cut-pasted"]', "phase1.epochs=1", "phase2.epochs=0"]
    fit(read_config(toml, first))
    start = "start=pasted-run/phase1.safetensors"
    nothing = ["phase1.epochs=0", "phase2.epochs=0"]
    with pytest.raises(ValueError, match="knows the labels pasted, the data has"):
        fit(read_config(toml, ["run=whole", start, *nothing]))
    fit(read_config(toml, ["run=begun", start, "start_part=trunk", *nothing]))
    before, after = (load_file(tmp_path / run / "phase1.safetensors") for run in ("pasted-run", "begun"))
    same = {key for key in after if key in before and after[key].equal(before[key])}
    assert {key for key in after if key.startswith("trunk.")} <= same
    assert not any(key.startswith("classifier1.weight") for key in same)
    for wrong, message in (
        (["start_part=trunk"], "needs start"),
        ([start, "start_part=trunk", "start_share=0.5"], "leaves no network"),
    ):
        with pytest.raises(ValueError, match=message):
            read_config(toml, wrong)
    with pytest.raises(ValueError, match=r"network.light = 'linear', here it is 'root'"):
        fit(read_config(toml, ["run=other", start, "start_part=trunk", "network.light=root", *nothing]))
