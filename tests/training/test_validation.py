"""A folder in the data form, looked at: each kind of fault is found, and a sound folder has none."""

import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image
from typer.testing import CliRunner

from tests.test_architecture import TRAINING_LIBRARIES, loaded_by
from tests.training.data_form import write_screens
from training.__main__ import app
from training.images import screen_files
from training.membership import read_parts
from training.validation.findings import CHECKS, Picture, Report
from training.validation.form import validate_form
from training.validation.page import draw, write_page

PATCH = 128


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screens(tmp_path_factory.mktemp("sound") / "form", screens=15, seed=0)


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "form"))


def found(report: Report) -> list[tuple[str, str]]:
    return [(finding.check, finding.text) for finding in report.findings]


def test_a_sound_folder_has_no_fault(folder: Path) -> None:
    report = validate_form(folder, patch_px=PATCH)
    assert found(report) == []
    parts = read_parts(folder, list(screen_files(folder)), test_fold=None)  # as `cut` would divide it
    assert {part: count["screens"] for part, count in report.counts.items()} == {
        part: list(parts.values()).count(part) for part in ("train", "validation", "test")
    }
    rows = (folder / "boxes.csv").read_text().splitlines()
    assert sum(count["dot boxes"] for count in report.counts.values()) == sum(",dot," in row for row in rows)


Change = Callable[[Path], object]
HEADER = "screen,label,left,top,right,bottom,area_px\n"


def replace(table: str, before: str, after: str) -> Change:
    """Change the first text that matches."""

    def change(folder: Path) -> None:
        text = (folder / table).read_text()
        changed = re.sub(before, after, text, count=1, flags=re.MULTILINE)
        assert changed != text
        (folder / table).write_text(changed)

    return change


def append(table: str, text: str) -> Change:
    return lambda folder: (folder / table).write_text((folder / table).read_text() + text)


def contrasts(row: str) -> Change:
    return lambda folder: (folder / "conditions.csv").write_text(f"screen,id,label,contrast\n{row}\n")


def shorten(folder: Path) -> None:
    file = folder / "screens" / "t002.png"
    file.write_bytes(file.read_bytes()[:5000])


def copied(target: str) -> Change:
    return lambda folder: shutil.copy(folder / "screens" / "t000.png", folder / "screens" / target)


def resized(width: int, height: int) -> Change:
    noise = np.random.default_rng(9).integers(0, 256, (height, width), np.uint8)
    return lambda folder: cv2.imwrite(str(folder / "screens" / "t003.png"), noise)


def masks(**changed: object) -> Change:
    """Other arrays in the mask of t001, whose boxes are rows 0 and on; None takes one away."""

    def change(folder: Path) -> None:
        file = folder / "masks" / "t001.npz"
        with np.load(file) as arrays:
            kept = {**arrays, **changed}
        np.savez(file, **{key: value for key, value in kept.items() if value is not None})

    return change


def shift(folder: Path) -> None:
    with np.load(folder / "masks" / "t001.npz") as arrays:
        columns = arrays["column"] + 30
    masks(column=columns)(folder)


def turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(folder / "screens" / "t002.png") as image:
        image.save(folder / "screens" / "t002.png", exif=exif)


def one_array(folder: Path) -> None:
    np.save(folder / "one.npy", np.zeros(3, int))
    (folder / "one.npy").replace(folder / "masks" / "t001.npz")


def all_train(folder: Path) -> None:
    (folder / "splits.csv").write_text((folder / "splits.csv").read_text().replace(",test", ",train"))


FAULTS: list[tuple[Change, str, str]] = [
    (shorten, "image", r"t002.png is incomplete"),
    (lambda f: (f / "screens" / "t002.png").write_bytes(b""), "image", r"t002.png cannot be read"),
    (turned, "image", r"t002.png asks to be turned"),
    (resized(100, 192), "small", r"t003: 100 x 192 px, a patch 128 x 128"),
    (resized(300, 200), "odd_size", r"t003: 300 x 200 px, most have 256 x 192"),
    (resized(256, 191), "uncompared", r"^t003: fewer than five images of their size"),
    (resized(256, 191), "uncompared", r"not compared with each other: 256 x 191, 256 x 192 px"),
    (copied("t001.jpg"), "twice", r"t001.jpg and t001.png are one screen"),
    (append("splits.csv", "t000,test\n"), "twice", r"splits.csv, row 15: t000 is in train already"),
    (copied("t004.png"), "leak", r"t000, t004 have the same pixels: 1 in test, 1 in train"),
    (copied("t006.png"), "again", r"t000, t006 have the same pixels: 2 in train"),
    (copied("t099.png"), "part", r"splits.csv has no part for t099"),
    (replace("splits.csv", "^t000,train", "t000,training"), "part", r"row 0: 'training' is no part"),
    (lambda f: (f / "splits.csv").write_text("screen,part\n"), "part", r"splits.csv has no part for t000, .* 9 more"),
    (append("splits.csv", "t500,train\n"), "missing", r"there is no screen 't500'"),
    (copied("t 99.png"), "name", r"screens/t 99.png: the service would call it otherwise"),
    (copied("t000.tif"), "ignored", r"screens/t000.tif is no .png or .jpg"),
    (copied("t000.JPEG"), "twice", r"t000.JPEG and t000.png are one screen"),
    (lambda f: (f / "splits.csv").unlink(), "table", r"splits.csv is missing"),
    (lambda f: (f / "boxes.csv").unlink(), "table", r"boxes.csv is missing"),
    (lambda f: (f / "boxes.csv").write_bytes(b"screen,\xff\n"), "table", r"boxes.csv cannot be read"),
    (replace("boxes.csv", "label", "class"), "table", r"boxes.csv has the header .*, without label"),
    (append("boxes.csv", "t002,dot,1,2\n"), "table", r"row 16 \(line 18\): fewer values than the header has"),
    (append("boxes.csv", "t002,dot,1,2,3,4,5,6\n"), "table", r"more values than the header has"),
    (append("boxes.csv", 't002,dot,1,2,3,4,"5\nt003,dot,1,2,3,4,5\n'), "table", r"unexpected end of data; 16 rows"),
    (append("boxes.csv", 't002,dot,1,2,3,4,"5\nt003,dot,1,2,3,4,5"\n'), "table", r"area_px goes on over several"),
    (replace("boxes.csv", "bottom", "left"), "table", r"boxes.csv has the column 'left' twice"),
    (append("boxes.csv", "t002,dot,1.5,2,9,9,10\n"), "table", r"edges are whole pixels, not 1.5, 2, 9, 9"),
    (append("boxes.csv", "t400,dot,1,2,9,9,10\n"), "missing", r"dot on t400, a screen that is not there"),
    (append("boxes.csv", "t002,dot,9,2,9,9,0\n"), "box", r"dot on t002 is empty: 9, 2 to 9, 9"),
    (append("boxes.csv", "t002,dot,9,5,10,2,0\n"), "box", r"dot on t002 is empty"),
    (append("boxes.csv", "t002,dot,250,2,257,9,49\n"), "box", r"dot on t002 leaves 256 x 192 px: 250, 2 to 257, 9"),
    (append("boxes.csv", "t002,dot,-1,2,7,9,49\n"), "box", r"dot on t002 leaves 256 x 192 px: -1, 2"),
    (append("boxes.csv", "t002,dot,1,2,7,9,42\nt002,dot,1,2,7,9,42\n"), "box_again", r"is in row \d+ already"),
    (append("boxes.csv", "t002,Dot,1,2,7,9,42\n"), "label", r"boxes.csv has 'Dot' 1 times"),
    (append("boxes.csv", "t002,rare,1,2,7,9,42\n"), "absent", r"no screen in test has the label rare"),
    (append("boxes.csv", "t001,dot,1,2,7,9,42\n"), "no_pixels", r"masks/t001.npz, row \d+ \(dot\): no pixel"),
    (replace("boxes.csv", r"^(t001,.*,)\d+$", r"\g<1>7"), "area", r"row 0 \(\w+\): area_px is 7, the mask has \d+"),
    (shift, "mask", r"t001.npz, row 0 \(\w+\): \d+ of \d+ pixels lie outside of"),
    (masks(id=None), "mask", r"t001.npz cannot be read: there is no array 'id"),
    (masks(row=np.zeros(3, np.int32)), "mask", r"not equally long"),
    (masks(row=[0.5], column=[1.5], id=[0.0]), "mask", r"not all are whole numbers"),
    (masks(row=[5], column=[5], id=[9]), "mask", r"pixels of row 9, which is no box of this screen"),
    (masks(row=[], column=[], id=np.array([], int)), "mask", r"not all are whole numbers"),
    (one_array, "mask", r"t001.npz cannot be read"),
    (lambda f: (f / "masks" / "t001.npz").write_bytes(b"PK"), "mask", r"t001.npz cannot be read"),
    (lambda f: (f / "masks" / "t900.npz").write_bytes(b""), "ignored", r"masks/t900.npz is no mask of a screen"),
    (all_train, "absent", r"no screen is in test"),
    (contrasts("t999,0,dot,1.0"), "table", r"conditions.csv, row 0: row 0 of boxes.csv is of another"),
    (contrasts("t002,x,dot,1.0"), "table", r"conditions.csv, row 0: 'x' and '1.0' are to be num"),
    (lambda f: (f / "boxes.csv").write_text(HEADER), "label", r"boxes.csv names no label: name those .* by --label"),
    (replace("splits.csv", "^screen,part", "screen;part"), "table", r"splits.csv has ';' between its columns"),
    (lambda f: (f / "screens" / os.fsdecode(b"\xc6.png")).touch(), "image", r"udcc6.png': its name is not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "check", "text"), FAULTS)
def test_a_fault_is_found(folder: Path, change: Change, check: str, text: str) -> None:
    change(folder)
    report = validate_form(folder, patch_px=PATCH)
    assert any(key == check and re.search(text, said) for key, said in found(report)), found(report)
    assert bool(report.errors) >= (CHECKS[check].level == "error")


def test_every_check_of_the_form_has_a_fault_that_it_finds() -> None:
    elsewhere = {"alike", "gone", "group", "stale", "unboxed"}  # below, and in the tests of cut folders
    assert {check for _, check, _ in FAULTS} | elsewhere == set(CHECKS)


def test_a_folder_without_screens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no .png or .jpg"):
        validate_form(tmp_path)


def test_a_picture_saved_again_in_another_part_is_found(folder: Path) -> None:
    image = cv2.imread(str(folder / "screens" / "t001.png"), cv2.IMREAD_UNCHANGED)
    assert image is not None
    darker = (image * 0.8 + 3).astype(np.uint8)
    (folder / "screens" / "t004.png").unlink()
    cv2.imwrite(str(folder / "screens" / "t004.jpg"), darker, [cv2.IMWRITE_JPEG_QUALITY, 70])
    report = validate_form(folder, patch_px=PATCH)
    assert [check for check, _ in found(report)] == ["alike"]
    assert re.search(r"^(t001, t004|t004, t001) look alike", report.findings[0].text)
    assert report.errors == 0


def test_a_phone_in_two_parts_is_found(folder: Path) -> None:
    rows = [f"t{n:03d},{'test' if n % 5 == 4 else 'train'},P{n // 6}" for n in range(15)]
    (folder / "splits.csv").write_text("screen,part,phone\n" + "\n".join(rows) + "\n")
    groups = [text for check, text in found(validate_form(folder, patch_px=PATCH)) if check == "group"]
    assert len(groups) == 3
    assert groups[0].startswith("phone P0 is in more than one part: 1 in test, ")


def test_what_is_not_told_of_a_phone_is_no_phone(folder: Path) -> None:
    rows = [f"t{n:03d},{'test' if n % 5 == 4 else 'train'}," for n in range(15)]
    (folder / "splits.csv").write_text("screen,part,phone\n" + "\n".join(rows) + "\n")
    assert found(validate_form(folder, patch_px=PATCH)) == []


@pytest.mark.parametrize("edges", ["-3300000,2,9,9", "1,2,3000000000,9", "5000,6000,7000,8000"])
def test_a_box_that_is_far_off_still_has_its_page(folder: Path, tmp_path: Path, edges: str) -> None:
    append("boxes.csv", f"t002,dot,{edges},42\n")(folder)
    report = validate_form(folder, patch_px=PATCH)
    assert [check for check, _ in found(report)] == ["box"]
    write_page(report, tmp_path / "page.html")
    assert "data:image/jpeg" in (tmp_path / "page.html").read_text()


def test_an_image_that_claims_too_much_has_no_picture(tmp_path: Path) -> None:
    ends = b"IHDR" + struct.pack(">IIBBBBB", 50000, 50000, 8, 0, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ends + struct.pack(">I", zlib.crc32(ends))
    (tmp_path / "large.png").write_bytes(header)
    assert draw(Picture(tmp_path / "large.png", "large")) == ""


def test_folds_count_as_parts(folder: Path) -> None:
    (folder / "splits.csv").unlink()
    rows = [f"t{n:03d},{n % 3},b{n % 3}" for n in range(15)]
    (folder / "folds.csv").write_text("screen,fold,board\n" + "\n".join(rows) + "\n")
    report = validate_form(folder, patch_px=PATCH)
    assert {part: count["screens"] for part, count in report.counts.items()} == {"fold 0": 5, "fold 1": 5, "fold 2": 5}
    assert report.errors == 0
    assert all(check == "absent" for check, _ in found(report))


def test_labels_that_were_not_asked_for_are_found(folder: Path) -> None:
    report = validate_form(folder, labels=("dot", "lime"), patch_px=PATCH)
    assert [check for check, _ in found(report)] == ["label", "absent"]
    assert re.search("'line' .* not asked for", report.findings[0].text)
    assert report.findings[1].text == "no screen has the label lime"


def test_the_command_tells_by_its_status_and_writes_page_and_json(folder: Path, tmp_path: Path) -> None:
    arguments = ["validate", str(folder), "--patch", str(PATCH)]
    outputs = ["--html", str(tmp_path / "page.html"), "--json", str(tmp_path / "found.json")]
    answer = CliRunner().invoke(app, [*arguments, *outputs])
    assert (answer.exit_code, "0 errors, 0 warnings" in answer.output) == (0, True), answer.output
    assert "Nothing was found." in (tmp_path / "page.html").read_text()

    hostile = "<script>alert(1)</script>[red]"
    append("boxes.csv", f"t002,{hostile},1,2,7,9,42\nt003,dot,250,2,257,9,49\n")(folder)
    shorten(folder)
    answer = CliRunner().invoke(app, [*arguments, *outputs])
    assert answer.exit_code == 1
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["errors"] == sum(finding["level"] == "error" for finding in written["findings"]) == 3
    assert any(hostile in finding["text"] for finding in written["findings"])
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    told = "Rows count from 0 below the header, as masks name them."
    assert told in page
    assert told in answer.output
    assert "&lt;script&gt;" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)  # opens offline
    assert any(source.startswith("data:") for source in sources)


def test_neither_command_loads_torch(sound: Path, tmp_path: Path) -> None:
    program = """
import sys
from training.__main__ import app
for arguments in (["validate", sys.argv[1], "--patch", "128", "--html", sys.argv[2]], ["convert", "coco", "--help"]):
    try:
        app(arguments, standalone_mode=False)
    except SystemExit:
        pass
import training.conversion.coco, training.conversion.severstal
print()
"""
    assert not loaded_by(program, str(sound), str(tmp_path / "page.html")) & TRAINING_LIBRARIES
    assert (tmp_path / "page.html").is_file()
