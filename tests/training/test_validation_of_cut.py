"""A cut folder, looked at: each kind of fault is found, and a sound folder has none."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from tests.training.data_form import write_screens
from training.__main__ import app
from training.cut_folder import CutFolder
from training.cutting import cut
from training.rows import read_rows
from training.validation.findings import Report
from training.validation.patches import validate_cut

PATCH = 128
FIRST = "t000_00_00.png"

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    cut(write_screens(folder / "form", screens=15, seed=0), folder / "cut", patch_px=PATCH)
    return folder / "cut"


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "cut"))


def found(report: Report) -> list[tuple[str, str]]:
    return [(finding.check, finding.text) for finding in report.findings]


def decode(folder: Path) -> NDArray[np.uint8]:
    """Every patch in the order of labels.csv, as `fit` keeps them in pixels.u8."""
    return np.array(CutFolder(folder).pixels())


def test_images_that_fit_would_decode_anew_are_not_stale(folder: Path) -> None:
    save_anew(folder)
    assert "stale" not in dict(found(validate_cut(folder)))


def test_a_sound_folder_has_no_fault(folder: Path) -> None:
    report = validate_cut(folder)
    assert found(report) == []
    rows = read_rows(folder / "labels.csv")
    for key in ("dot", "line"):
        assert sum(count[key] for count in report.counts.values()) == sum(row[key] == "1" for row in rows)
        assert sum(count[f"{key} unknown"] for count in report.counts.values()) == sum(row[key] == "-1" for row in rows)
    assert sum(count["patches"] for count in report.counts.values()) == len(rows)
    decode(folder)
    assert found(validate_cut(folder)) == []


def replace(table: str, before: str, after: str) -> Change:
    def change(folder: Path) -> None:
        text = (folder / table).read_text()
        changed = re.sub(before, after, text, count=1, flags=re.MULTILINE)
        assert changed != text
        (folder / table).write_text(changed)

    return change


def shorten(folder: Path) -> None:
    file = folder / "images" / FIRST
    file.write_bytes(file.read_bytes()[:3000])


def cells(*rows: list[int]) -> Change:
    return lambda folder: np.savez(folder / "maps.npz", cells=np.array(rows, np.int32).reshape(-1, 5))


def alter(folder: Path) -> None:
    """An image that is another one than was decoded, of the same size."""
    pixels = decode(folder)
    pixels[0, 5, 5] ^= 1
    (folder / "pixels.u8").write_bytes(pixels.tobytes())


def save_anew(folder: Path) -> None:
    """An image that was changed after it had been decoded: `fit` decodes all of them again."""
    decode(folder)
    cv2.imwrite(str(folder / "images" / FIRST), np.full((PATCH, PATCH), 9, np.uint8))


def lose_images(folder: Path) -> None:
    decode(folder)
    shutil.rmtree(folder / "images")


def copy_screen(folder: Path) -> None:
    """t004, of the test part, becomes t000, of the training part."""
    for file in sorted((folder / "images").glob("t000_*")):
        shutil.copy(file, folder / "images" / file.name.replace("t000", "t004"))


def save_again(folder: Path) -> None:
    for file in sorted((folder / "images").glob("t001_*")):
        image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        cv2.imwrite(str(folder / "images" / file.name.replace("t001", "t004")), (image * 0.9 + 2).astype(np.uint8))


FAULTS: list[tuple[Change, str, str]] = [
    (shorten, "image", rf"{FIRST} is incomplete"),
    (
        lambda f: cv2.imwrite(str(f / "images" / FIRST), np.zeros((PATCH, 64), np.uint8)),
        "image",
        r"64 x 128 px, a patch 128",
    ),
    (
        lambda f: (f / "images" / FIRST).unlink(),
        "missing",
        rf"images/ lacks 1 of 60 patches \({FIRST}\), and pixels.u8 does not",
    ),
    (lambda f: (f / "images" / "more.png").touch(), "ignored", r"images/ has 1 more, without a row: more.png"),
    (alter, "stale", rf"images/{FIRST} has other pixels than pixels.u8"),
    (lose_images, "gone", r"images/ lacks 60 of 60 .* pixels.u8 was looked at instead"),
    (replace("labels.csv", r"^(t000_00_00.png,)\d", r"\g<1>2"), "table", r"row 0: labels are 1, 0 or -1"),
    (
        replace("labels.csv", r"^t000_00_00.png,.*\n", ""),
        "table",
        r"row 0 and on: labels.csv has t000_00_01.png, windows.csv t000_00_00.png",
    ),
    (
        replace("windows.csv", r"^t000_00_01.png", "t000_01_01.png"),
        "table",
        r"labels.csv, row 1: windows.csv does not have t000_00_01.png",
    ),
    (replace("windows.csv", r"^(t000_00_00.png,.*),0,0$", r"\g<1>,0,-4"), "table", r"left and top pixels"),
    (replace("windows.csv", r"^(t000_00_00.png,.*),0,0$", r"\g<1>,,0"), "table", r"left and top pixels"),
    (replace("labels.csv", r"^(.*),dot,", r"\g<1>,Dot,"), "label", r"the column 'Dot'"),
    (replace("splits.csv", "^t000,train\n", ""), "part", r"splits.csv has no part for t000"),
    (lambda f: (f / "splits.csv").unlink(), "table", r"splits.csv is missing"),
    (cells([60, 0, 0, 0, 1]), "mask", r"cells beyond \[60, 2, 4, 4\]"),
    (cells([0, 0, 0, 0, 2]), "mask", r"other values"),
    (cells(), "unboxed", r"maps.npz and labels.csv differ in what is present: t0"),
    (lambda f: (f / "maps.npz").write_bytes(b"PK"), "mask", r"maps.npz cannot be read"),
    (lambda f: (f / "defects.csv").unlink(), "table", r"has no defects.csv: make it anew"),
    (replace("defects.csv", r"^(.*\.png),dot,1,", r"\g<1>,dot,2,"), "box", r"dot, presence 2, "),
    (replace("defects.csv", r"^(.*\.png),dot,", r"\g<1>,dots,"), "box", r": dots, presence 1, "),
    (replace("defects.csv", r"^(.*\.png,dot,1,\d+,\d+),\d+,", r"\g<1>,999,"), "box", r"-999 across, .* of 128 px"),
    (replace("defects.csv", r"^(.*\.png,dot),1,\d+", r"\g<1>,1,left"), "table", r"defects.csv, row \d+: "),
    (
        replace("defects.csv", r"^.*\.png,dot,1,.*\n", ""),
        "unboxed",
        r"defects.csv and labels.csv differ in what is present",
    ),
    (replace("defects.csv", r"^t\d+_", "u_"), "table", r"defects.csv has u_.*png, which labels.csv does not have"),
    (copy_screen, "leak", r"t000, t004 have the same pixels: 1 in test, 1 in train"),
    (
        lambda f: shutil.copy(f / "images" / FIRST, f / "images" / "t004_01_00.png"),
        "leak",
        r"1 patches are the same on t000 \(train\), t004 \(test\)",
    ),
    (save_again, "alike", r"t001, t004 look alike"),
]


@pytest.mark.parametrize(("change", "check", "text"), FAULTS)
def test_a_fault_is_found(folder: Path, change: Change, check: str, text: str) -> None:
    change(folder)
    report = validate_cut(folder)
    assert any(key == check and re.search(text, said) for key, said in found(report)), found(report)


def test_a_window_far_away_takes_no_memory(folder: Path) -> None:
    replace("windows.csv", r"^(t000_00_00.png,.*),0,0$", r"\g<1>,0,9000000000")(folder)
    assert {check for check, _ in found(validate_cut(folder))} == {"uncompared"}  # its screen is larger than others


def test_patches_of_one_grey_level_are_no_duplicates(folder: Path) -> None:
    for name in (FIRST, "t004_01_00.png"):
        cv2.imwrite(str(folder / "images" / name), np.full((PATCH, PATCH), 7, np.uint8))
    assert found(validate_cut(folder)) == []


def test_a_folder_that_is_none_is_refused(folder: Path) -> None:
    (folder / "windows.csv").unlink()
    with pytest.raises(ValueError, match=r"windows.csv is missing"):
        validate_cut(folder)
    (folder / "cut.json").write_text('{"patch_px": "128", "stride_px": 128, "rule": "known", "source": "screens"}')
    with pytest.raises(ValueError, match=r"cut.json: patch_px is '128'"):
        validate_cut(folder)
    (folder / "cut.json").write_text("{")
    with pytest.raises(ValueError, match=r"cut.json is none that `cut` wrote"):
        validate_cut(folder)


def test_the_command_knows_a_cut_folder(folder: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["validate", str(folder)]).exit_code == 0
    copy_screen(folder)
    answer = CliRunner().invoke(app, ["validate", str(folder), "--html", str(tmp_path / "page.html")])
    assert answer.exit_code == 1
    assert (tmp_path / "page.html").read_text().count('src="data:image/jpeg;base64,') == 2
