"""Folders as users have them: other suffixes, tables of a spreadsheet, masks that do not fit, one label."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from engine import Manifest
from tests.bundles import tiny_bundle
from tests.training.data_form import TOML, write_screens
from training.bundling import export_run
from training.config import read_config
from training.cutting import cut
from training.datasets import PatchSet
from training.fit import fit
from training.folder import load_run
from training.images import read_whole, screen_files
from training.patches import refuse_dropped, refuse_other_windows
from training.whole import drafted

PATCH = 64
Change = Callable[[Path], None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_screens(tmp_path / "source", screens=10)


def test_suffixes_may_be_in_capitals(source: Path, tmp_path: Path) -> None:
    for path, suffix in zip(sorted((source / "screens").iterdir()), (".PNG", ".Png", ".JPG", ".jpeg"), strict=False):
        image = read_whole(path)
        path.unlink()
        assert cv2.imwrite(str(path.with_suffix(suffix)), image)
    assert list(screen_files(source)) == [f"t{number:03d}" for number in range(10)]
    cut(source, tmp_path / "cut", patch_px=PATCH)
    assert len(set(PatchSet([tmp_path / "cut"], None).screen_names)) == 10
    shutil.copy(source / "screens" / "t000.PNG", source / "screens" / "t000.png")
    with pytest.raises(ValueError, match=r"t000.PNG and t000.png are one screen"):
        cut(source, tmp_path / "again", patch_px=PATCH)


def test_tables_may_come_from_a_spreadsheet(source: Path, tmp_path: Path) -> None:
    """Which puts a mark at the beginning and carriage returns at the ends."""
    cut(source, tmp_path / "plain", patch_px=PATCH)
    for name in ("boxes.csv", "splits.csv"):
        lines = (source / name).read_text().splitlines()
        (source / name).write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    cut(source, tmp_path / "marked", patch_px=PATCH)
    for name in ("labels.csv", "splits.csv", "defects.csv"):
        assert (tmp_path / "marked" / name).read_text() == (tmp_path / "plain" / name).read_text()


def masks(**arrays: list[int]) -> Change:
    def change(folder: Path) -> None:
        kept = {"row": [20, 21], "column": [30, 30], "id": [0, 0]} | arrays
        row, column, ids = (np.array(kept[key]) for key in ("row", "column", "id"))
        np.savez(folder / "masks" / "t001.npz", row=row, column=column, id=ids)

    return change


def deep(folder: Path) -> None:
    cv2.imwrite(str(folder / "screens" / "t001.png"), np.zeros((192, 256, 3), np.uint16))


def small(folder: Path) -> None:
    cv2.imwrite(str(folder / "screens" / "t001.png"), np.zeros((50, 256), np.uint8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            masks(row=[20, 300]),
            r"t001.npz: pixels of row 0 lie outside its box",
        ),
        (masks(row=[20]), r"t001.npz holds no masks: row, column and id are not equally long"),
        (masks(column=[30, -1]), r"t001.npz holds no masks: pixels lie above or left of the screen"),
        (deep, r"screen 't001': .*t001.png cannot be used: 16 bits a value; save it with 8"),
        (small, r"screen 't001': .*smaller"),
    ],
)
def test_a_screen_that_cannot_be_cut_is_named_and_leaves_nothing(
    source: Path, tmp_path: Path, change: Change, message: str
) -> None:
    shutil.copytree(source, tmp_path / "whole")
    (source / "boxes.csv").write_text("screen,label,left,top,right,bottom,area_px\nt001,dot,30,20,31,22,2\n")
    shutil.rmtree(source / "masks")
    (source / "masks").mkdir()
    change(source)
    for _ in range(2):  # the second time it says the same, and not that there is something
        with pytest.raises(ValueError, match=message):
            cut(source, tmp_path / "cut", patch_px=PATCH)
    cut(tmp_path / "whole", tmp_path / "cut", patch_px=PATCH)


def test_one_label_is_trained_and_exported(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source", screens=16)
    rows = (source / "boxes.csv").read_text().splitlines()
    (source / "boxes.csv").write_text("\n".join([row for row in rows if ",line," not in row] + [""]))
    shutil.rmtree(source / "masks")
    cut(source, tmp_path / "cut", patch_px=128)
    (tmp_path / "toy.toml").write_text(TOML)
    config = read_config(tmp_path / "toy.toml", ["phase1.epochs=1", "phase2.epochs=1"])
    fit(config)
    assert load_run(config.run)[2] == ("dot",)
    done = export_run(config.run, tmp_path / "bundle", version="1")
    assert list(done.manifest.labels) == ["dot"]


def test_limits_are_chosen_on_windows_as_they_are_served(source: Path, tmp_path: Path) -> None:
    cut(source, tmp_path / "plain", patch_px=PATCH)
    cut(source, tmp_path / "half", patch_px=PATCH, stride_px=PATCH // 2)
    cut(source, tmp_path / "small", patch_px=PATCH, shrink=2)
    cut(source, tmp_path / "paper", patch_px=PATCH, rule="paper")
    refuse_other_windows([tmp_path / "plain"], overlap_px=0)
    refuse_other_windows([tmp_path / "half"], overlap_px=PATCH // 2)
    with pytest.raises(
        ValueError, match=r"half overlap by 32 px, those of the service by 0.*--stride 64.*--overlap 32"
    ):
        refuse_other_windows([tmp_path / "plain", tmp_path / "half"], overlap_px=0)
    with pytest.raises(ValueError, match="small was cut from screens 2 times smaller"):
        refuse_other_windows([tmp_path / "small"], overlap_px=0)
    refuse_dropped([tmp_path / "plain"])
    with pytest.raises(ValueError, match="paper was cut by --rule paper, which drops patches"):
        refuse_dropped([tmp_path / "paper"])


def test_a_bundle_that_may_not_be_written_to_is_copied_to_one_that_may(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    for path in (*bundle.iterdir(), bundle):
        path.chmod(path.stat().st_mode & ~0o222)
    with drafted(bundle, tmp_path / "copy"):
        pass
    bundle.chmod(0o755)
    Manifest.read(tmp_path / "copy")
    for path in ((tmp_path / "copy"), *(tmp_path / "copy").iterdir()):
        assert path.stat().st_mode & 0o200
    assert json.loads((tmp_path / "copy" / "manifest.json").read_text()) == json.loads(
        (bundle / "manifest.json").read_text()
    )
