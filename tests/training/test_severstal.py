"""The Severstal set on images that the test makes, with real rows of the official division where SCREEN_DATA has it."""

import csv
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from training.__main__ import app
from training.boxes import read_defects
from training.conversion.severstal import FILES, convert_severstal
from training.cutting import cut
from training.images import screen_files
from training.membership import read_parts
from training.rows import read_rows, write_rows

HEIGHT, WIDTH = 256, 1600
SCREEN_DATA = os.environ.get("SCREEN_DATA")

Official = dict[str, tuple[str, list[str]]]  # part and the four values of each image

OFFICIAL: Official = {
    "a.jpg": ("train", ["1", "0", "1", "0"]),
    "b.jpg": ("train", ["0", "0", "0", "0"]),
    "c.jpg": ("validation", ["0", "0", "0", "1"]),
    "d.jpg": ("test", ["0", "1", "0", "0"]),
}


def blobs(name: str) -> NDArray[np.uint8]:
    """The mask of a class: two rectangles, the first at the place of the class, the second over the last column."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[40 * int(name) : 40 * int(name) + 30, 100 * int(name) : 100 * int(name) + 20] = 1
    mask[200:250, 1590:] = 1
    return mask


def run_lengths(mask: NDArray[np.uint8]) -> str:
    flat = np.concatenate([[0], mask.T.ravel(), [0]])
    edges = np.flatnonzero(np.diff(flat.astype(int)))
    return " ".join(f"{start + 1} {stop - start}" for start, stop in zip(edges[::2], edges[1::2], strict=True))


def write_set(folder: Path, official: Official = OFFICIAL, *, older: bool = False) -> Path:
    """`train.csv`, `train_images/` and `division/`."""
    (folder / "train_images").mkdir(parents=True)
    (folder / "division").mkdir()
    grey = np.random.default_rng(0).integers(90, 110, (HEIGHT, WIDTH, 3), np.uint8)
    rows: list[list[str]] = []
    for file, (_, values) in official.items():
        cv2.imwrite(str(folder / "train_images" / file), grey)
        for name, value in zip("1234", values, strict=True):
            pixels = run_lengths(blobs(name)) if value == "1" else ""
            if older:
                rows.append([f"{file}_{name}", pixels])
            elif pixels:
                rows.append([file, name, pixels])
    write_rows(
        folder / "train.csv",
        ["ImageId_ClassId", "EncodedPixels"] if older else ["ImageId", "ClassId", "EncodedPixels"],
        rows,
    )
    for part, table in FILES.items():
        inside = [[file, *values] for file, (theirs, values) in official.items() if theirs == part]
        write_rows(folder / "division" / table, ["img_names", *"1234"], inside)
    return folder


@pytest.mark.parametrize("older", [True, False])
def test_both_layouts_become_the_data_form(tmp_path: Path, older: bool) -> None:
    source, out = write_set(tmp_path / "set", older=older), tmp_path / "form"
    found = convert_severstal(source, out, division=source / "division")
    assert found.screens == {"test": 1, "train": 2, "validation": 1}
    assert (found.clean, found.masks) == (1, 8)
    assert found.defects == {"class_1": 2, "class_2": 2, "class_3": 2, "class_4": 2}
    assert read_parts(out, list(screen_files(out)), test_fold=None) == {
        file[0]: part for file, (part, _) in OFFICIAL.items()
    }
    defects = read_defects(out, screen_files(out))
    assert {name: {d.label for d in found} for name, found in defects.items()} == {
        "a": {"class_1", "class_3"},
        "c": {"class_4"},
        "d": {"class_2"},
    }
    first, last = sorted(defects["d"], key=lambda d: d.left)
    assert (first.left, first.top, first.right, first.bottom) == (200, 80, 220, 110)
    assert (last.left, last.top, last.right, last.bottom) == (1590, 200, 1600, 250)
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    for defect in defects["d"]:
        assert defect.rows is not None
        assert defect.columns is not None
        drawn[defect.rows, defect.columns] += 1
    assert (drawn == blobs("2")).all()
    areas = [int(row["area_px"]) for row in read_rows(out / "boxes.csv") if row["screen"] == "d"]
    assert sorted(areas) == [500, 600]


def test_whole_images_go_through_cut_as_seven_windows(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    convert_severstal(source, tmp_path / "form", division=source / "division")
    cut(tmp_path / "form", tmp_path / "cut", patch_px=256, stride_px=224)
    windows = [row for row in read_rows(tmp_path / "cut" / "windows.csv") if row["screen"] == "d"]
    assert [int(row["left"]) for row in windows] == [0, 224, 448, 672, 896, 1120, 1344]
    labels = {row["img_names"][0]: row for row in read_rows(tmp_path / "cut" / "labels.csv") if "1" in row.values()}
    assert sorted(labels) == ["a", "c", "d"]  # each image that has a label has it on a window


def test_without_the_division_every_image_is_taken_and_a_test_part_drawn(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", {f"{k:02d}.jpg": ("train", ["0", "0", "1", "0"]) for k in range(10)})
    cv2.imwrite(str(source / "train_images" / "clean.jpg"), np.full((HEIGHT, WIDTH), 100, np.uint8))
    found = convert_severstal(source, tmp_path / "form", test_share=0.3, renamed={"3": "roll_mark"})
    assert found.screens == {"test": 3, "train": 8}
    assert (found.clean, found.defects) == (1, {"roll_mark": 20})


def test_images_whose_suffix_is_in_large_letters_are_taken_and_other_files_refused(tmp_path: Path) -> None:
    images = write_set(tmp_path / "set") / "train_images"
    (images / "b.jpg").rename(images / "b.JPG")
    for name in (".DS_Store", "Thumbs.db"):
        (images / name).touch()
    assert convert_severstal(tmp_path / "set", tmp_path / "form").screens == {"test": 1, "train": 3}
    (images / "e.png").touch()
    with pytest.raises(ValueError, match=r"train_images/e.png is no .jpg"):
        convert_severstal(tmp_path / "set", tmp_path / "again")


def test_a_table_without_rows_is_told_from_one_with_another_header(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    for header in ("ImageId,ClassId,EncodedPixels\n", "ImageId_ClassId,EncodedPixels\n"):
        (source / "train.csv").write_text(header)
        with pytest.raises(ValueError, match=r"train.csv has no rows below its header"):
            convert_severstal(source, tmp_path / "form")


def test_a_share_beside_the_division_is_refused(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    options = ["--division", str(source / "division"), "--test-share", "0.1", "--out", str(tmp_path / "form")]
    answer = CliRunner().invoke(app, ["convert", "severstal", str(source), *options])
    assert str(answer.exception).startswith("--test-share draws a test part, but --division")


def test_images_are_linked_where_that_is_asked_for(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    convert_severstal(source, tmp_path / "form", division=source / "division", link=True)
    file = screen_files(tmp_path / "form")["a"]
    assert file.is_symlink()
    assert file.resolve() == (source / "train_images" / "a.jpg").resolve()


@pytest.mark.parametrize(
    ("older", "before", "after", "said"),
    [
        (False, "a.jpg,1,", "a.jpg,5,", r"line 2: a.jpg with the class '5'"),
        (False, "a.jpg,1,", "a.jpg,3,", r"line 3: a second row for class 3 of a.jpg"),
        (False, "a.jpg,1,", "a.jpg,", r"line 2: fewer values"),
        (False, "a.jpg,1,", "a.jpg,1,1 4 3 2,", r"line 2: more values"),
        (False, "a.jpg,1,", "a.jpg,1,409600 2 ", r"line 2: a run ends beyond the 409600 pixels"),
        (False, "a.jpg,1,", "a.jpg,1,1 409600 ", r"line 2: runs overlap"),
        (False, "EncodedPixels\na.jpg,1,", "EncodedPixels\n\n\na.jpg,5,", r"line 4: a.jpg with the class '5'"),
        (False, "a.jpg,1,", "zz.jpg,1,", r"names zz.jpg, which is not in"),
        (False, "c.jpg,4,", "c.jpg,3,", r"classes \['3'\] on c.jpg, the division has \['4'\] \(and 0 more\)"),
        (False, "ImageId,ClassId", "ImageId,Class", r"the header is neither"),
        (True, "ImageId_ClassId", "ImageId", r"the header is neither"),
        (True, "b.jpg_2,\n", "", r"has 3 of the 4 rows of b.jpg"),
        (True, "b.jpg_1,\nb.jpg_2,\nb.jpg_3,\nb.jpg_4,\n", "", r"has no row of b.jpg"),
        (True, "b.jpg_2,", "b.jpg2,", r"line 7: no image with the class 'b.jpg2'"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, older: bool, before: str, after: str, said: str) -> None:
    source = write_set(tmp_path / "set", older=older)
    text = (source / "train.csv").read_text()
    assert before in text
    (source / "train.csv").write_text(text.replace(before, after, 1))
    with pytest.raises(ValueError, match=said):
        convert_severstal(source, tmp_path / "form", division=source / "division")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]  # nothing half written


def test_tables_and_images_that_are_not_there_are_refused(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    train = source / "division" / FILES["train"]
    kept = train.read_text()
    for text, said in [
        (kept.replace("a.jpg,1", "a.jpg,2"), "line 2: not an image and four times 0 or 1"),
        (kept + "d.jpg,0,1,0,0\n", "d.jpg is in the part train already"),
        (kept + "\n\ne.jpg,0,1,0,2\n", "line 6: not an image"),
        (kept.replace("img_names", "image"), "line 2: not an image"),
    ]:
        train.write_text(text)
        with pytest.raises(ValueError, match=said):
            convert_severstal(source, tmp_path / "form", division=source / "division")
    train.write_bytes(b"img_names,\xff\n")
    with pytest.raises(ValueError, match=r"train_label_train.csv cannot be read"):
        convert_severstal(source, tmp_path / "form", division=source / "division")
    train.unlink()
    with pytest.raises(ValueError, match=r"train_label_train.csv is missing"):
        convert_severstal(source, tmp_path / "form", division=source / "division")
    train.write_text(kept)
    cv2.imwrite(str(source / "train_images" / "d.jpg"), np.zeros((WIDTH, HEIGHT), np.uint8))
    with pytest.raises(ValueError, match=r"d.jpg has 256 x 1600 px, but its labels are of 1600 x 256"):
        convert_severstal(source, tmp_path / "form", division=source / "division")
    (source / "train_images" / "d.jpg").unlink()
    with pytest.raises(ValueError, match=r"d.jpg is missing"):
        convert_severstal(source, tmp_path / "form", division=source / "division")
    with pytest.raises(FileNotFoundError, match=r"division/train.csv"):
        convert_severstal(source / "division", tmp_path / "form")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(ValueError, match="not empty"):
        convert_severstal(write_set(tmp_path / "again"), tmp_path / "full")


@pytest.mark.skipif(SCREEN_DATA is None, reason="needs SCREEN_DATA: the folder of severstal-division/, not shipped")
def test_real_rows_of_the_official_division(tmp_path: Path) -> None:
    division = Path(str(SCREEN_DATA)) / "severstal-division"
    official: Official = {}
    for part, name in FILES.items():
        with (division / name).open(newline="") as file:
            _, *rows = csv.reader(file)
        assert len(rows) == {"train": 10_052, "validation": 1_253, "test": 1_263}[part]
        official.update({row[0]: (part, row[1:]) for row in rows[:12]})
    source = write_set(tmp_path / "set", official, older=True)
    out = tmp_path / "form"
    answer = CliRunner().invoke(
        app, ["convert", "severstal", str(source), "--division", str(source / "division"), "--out", str(out)]
    )
    assert answer.exit_code == 0, answer.output
    defects = read_defects(out, screen_files(out))
    assert {name: {d.label for d in defects.get(name, [])} for name in screen_files(out)} == {
        file.removesuffix(".jpg"): {f"class_{k}" for k, value in zip("1234", values, strict=True) if value == "1"}
        for file, (_, values) in official.items()
    }


@pytest.mark.skipif(SCREEN_DATA is None, reason="needs SCREEN_DATA: the folder of severstal-division/, not shipped")
def test_the_official_division_is_read_whole() -> None:
    from training.conversion.severstal import read_official

    official = read_official(Path(str(SCREEN_DATA)) / "severstal-division")
    assert len(official) == 12_568
    counts = {name: sum(name in classes for _, classes in official.values()) for name in "1234"}
    assert counts == {"1": 897, "2": 247, "3": 5150, "4": 801}  # as many masks as Kaggle's train.csv has
