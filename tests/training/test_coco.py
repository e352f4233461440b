"""COCO's annotations, brought into the data form."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from training.__main__ import app
from training.boxes import read_defects
from training.conversion.coco import convert_coco
from training.cutting import cut, read_parts, screen_files
from training.rows import read_rows

HEIGHT, WIDTH = 96, 128


def example() -> dict[str, Any]:
    """Three images: boxes alone; a polygon and run lengths of both kinds; nothing."""
    return {
        "images": [
            {"id": 1, "file_name": "left/a 1.png", "width": WIDTH, "height": HEIGHT},
            {"id": 2, "file_name": "b.bmp", "width": WIDTH, "height": HEIGHT},
            {"id": 7, "file_name": "c.JPG", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 0, "name": "defects"}, {"id": 1, "name": "Tin Ash"}, {"id": 2, "name": "scratch"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10.2, 20.0, 5.5, 4.0], "area": 22, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [-0.4, 90, 128.9, 6.3], "segmentation": []},
            {"id": 3, "image_id": 2, "category_id": 2, "bbox": [3, 4, 9, 9],
             "segmentation": [[3, 4, 9, 4, 9, 8, 3, 8]]},
            {"id": 4, "image_id": 2, "category_id": 1, "iscrowd": 1,
             "segmentation": {"size": [HEIGHT, WIDTH], "counts": [98, 3, HEIGHT * WIDTH - 101]}},
            {"id": 5, "image_id": 2, "category_id": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "R33kl;"}},
        ],
    }  # fmt: skip


def write_images(folder: Path) -> None:
    grey = np.random.default_rng(0).integers(90, 110, (HEIGHT, WIDTH), np.uint8)
    (folder / "left").mkdir(parents=True)
    for name in ("left/a 1.png", "b.bmp"):
        cv2.imwrite(str(folder / name), grey)
    Image.fromarray(grey).save(folder / "c.JPG", "JPEG")


def write_set(folder: Path, change: Callable[[dict[str, Any]], object] = lambda coco: None) -> Path:
    write_images(folder)
    coco = example()
    change(coco)
    (folder / "annotations.json").write_text(json.dumps(coco))
    return folder / "annotations.json"


def test_boxes_polygons_and_run_lengths_become_the_data_form(tmp_path: Path) -> None:
    file, out = write_set(tmp_path / "set"), tmp_path / "form"
    found = convert_coco({file: None}, out, test_share=0.34)
    assert (found.screens, found.clean, found.masks) == ({"test": 1, "train": 2}, 1, 3)
    assert found.defects == {"scratch": 2, "tin_ash": 3}
    assert {name: path.name for name, path in screen_files(out).items()} == {
        "b": "b.png",
        "c": "c.jpg",
        "left-a_1": "left-a_1.png",
    }
    defects = read_defects(out, screen_files(out))
    assert [(d.label, d.left, d.top, d.right, d.bottom, d.rows) for d in defects["left-a_1"]] == [
        ("tin_ash", 10, 20, 16, 24, None),
        ("scratch", 0, 90, 128, 96, None),
    ]
    # the polygon decides, not its bbox; the run lengths are 3 px of column 1
    assert [(d.label, d.left, d.top, d.right, d.bottom) for d in defects["b"]] == [
        ("scratch", 3, 4, 9, 8),
        ("tin_ash", 1, 2, 2, 5),
        ("tin_ash", 1, 2, 2, 5),
    ]
    assert [int(row["area_px"]) for row in read_rows(out / "boxes.csv")] == [24, 768, 24, 3, 3]
    pixels = cv2.imread(str(tmp_path / "set" / "b.bmp"), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(pixels, cv2.imread(str(out / "screens" / "b.png"), cv2.IMREAD_UNCHANGED))  # type: ignore[arg-type]
    summary = cut(out, tmp_path / "cut", patch_px=64)
    assert sum(summary.patches.values()) == 3 * 4


def test_a_file_may_begin_with_a_mark_and_its_name_may_have_an_equals_sign(tmp_path: Path) -> None:
    file = write_set(tmp_path / "a=b")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    answer = CliRunner().invoke(app, ["convert", "coco", str(file), "--out", str(tmp_path / "form")])
    assert answer.exit_code == 0, answer.output


def test_what_cut_would_refuse_is_refused_while_the_labels_are_at_hand(tmp_path: Path) -> None:
    file = write_set(tmp_path / "set")
    for name, data in (("b.bmp", b"cut off"), ("c.JPG", b"")):
        path = tmp_path / "set" / name
        whole = path.read_bytes()
        path.write_bytes(data or whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=rf"{name} (cannot be read|is incomplete)"):
            convert_coco({file: None}, tmp_path / "form")
        path.write_bytes(whole)
    assert convert_coco({file: None}, tmp_path / "form").screens


def test_parts_may_come_as_files_or_as_a_table(tmp_path: Path) -> None:
    first = write_set(tmp_path / "set")
    second = write_set(
        tmp_path / "other", lambda coco: [i.update(file_name=f"x/{i['file_name']}") for i in coco["images"]]
    )
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images" / "x")
    write_images(tmp_path / "images" / "y")
    for name in ("left", "b.bmp", "c.JPG"):
        (tmp_path / "images" / "y" / name).rename(tmp_path / "images" / name)
    options = [
        "--out",
        str(tmp_path / "form"),
        "--images",
        str(tmp_path / "images"),
        "--link",
        "--rename",
        "Tin Ash=ash",
    ]
    answer = CliRunner().invoke(app, ["convert", "coco", f"train={first}", f"test={second}", *options])
    assert answer.exit_code == 0, answer.output
    parts = read_parts(tmp_path / "form", list(screen_files(tmp_path / "form")), test_fold=None)
    assert {name for name, part in parts.items() if part == "test"} == {"x-left-a_1", "x-b", "x-c"}
    assert {d.label for d in read_defects(tmp_path / "form", screen_files(tmp_path / "form"))["x-b"]} == {
        "ash",
        "scratch",
    }
    assert (tmp_path / "form" / "screens" / "c.jpg").is_symlink()

    (tmp_path / "parts.csv").write_text("screen,part,phone\nleft/a 1.png,test,P1\nb.bmp,train,P2\nc,train,P2\n")
    convert_coco({first: None}, tmp_path / "again", splits=tmp_path / "parts.csv")
    assert read_rows(tmp_path / "again" / "splits.csv")[0] == {"screen": "left-a_1", "part": "test", "phone": "P1"}


def set_key(where: str, number: int, **values: object) -> Callable[[dict[str, Any]], object]:
    return lambda coco: coco[where][number].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_key("images", 1, id=1), "the id 1 is there twice among images"),
        (set_key("annotations", 1, id=1), "the id 1 is there twice among annotations"),
        (set_key("categories", 1, id=2), "the id 2 is there twice among categories"),
        (set_key("annotations", 0, image_id=5), "annotation 1 is of image 5, which is not there"),
        (set_key("annotations", 0, image_id="1"), "annotation 1 is of image '1', which is not there"),
        (set_key("annotations", 0, bbox=[-0.9, 2, 0.5, 4], segmentation=None), "lies beside the image"),
        (set_key("annotations", 0, category_id=9), "annotation 1 is of category 9"),
        (set_key("annotations", 0, bbox=[1, 2, 0, 4]), r"annotation 1 on left/a 1.png: a box of 0 x 4 px"),
        (set_key("annotations", 0, bbox=[1, 2, -3, 4]), "a box of -3 x 4 px"),
        (set_key("annotations", 0, bbox=[100, 2, 30, 4]), "the box 100, 2, 30, 4 leaves the image of 128 x 96"),
        (set_key("annotations", 0, bbox=[1, 2, 3]), r"annotations.0.bbox"),
        (set_key("annotations", 0, bbox=["1", "x", 3, 4]), r"annotations.0.bbox"),
        (set_key("annotations", 0, bbox=[1, 2, float("nan"), 4]), r"annotations.0.bbox"),
        (set_key("annotations", 0, bbox=None), "annotation 1 on left/a 1.png: neither bbox nor segmentation"),
        (set_key("annotations", 2, segmentation=[[1, 1, 2, 2]]), "annotation 3 on b.bmp: a polygon of 4 numbers"),
        (set_key("annotations", 2, segmentation=[[1, 1, 999, 2, 3, 3]]), "a polygon leaves the image"),
        (set_key("annotations", 2, segmentation=[[]]), "a polygon of 0 numbers"),
        (set_key("annotations", 3, segmentation={"size": [WIDTH, HEIGHT], "counts": []}), "a mask of 96 x 128"),
        (set_key("annotations", 3, segmentation={"size": [HEIGHT, WIDTH], "counts": [5, 5]}), "counts of 10 pixels"),
        (
            set_key("annotations", 3, segmentation={"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}),
            "without a pixel",
        ),
        (set_key("annotations", 3, segmentation={"size": [HEIGHT, WIDTH]}), "annotations.3.*counts: Field required"),
        (set_key("annotations", 3, segmentation=[[1, 2, "x", 4, 5, 6]]), "annotations.3.segmentation.*0.2: Input"),
        (set_key("annotations", 4, segmentation={"size": [HEIGHT, WIDTH], "counts": "R33h"}), "counts"),
        (set_key("images", 0, width=WIDTH - 1), r"a 1.png has 128 x 96 px, but its labels are of 127 x 96"),
        (set_key("images", 0, width=0), "images.0.width"),
        (set_key("images", 0, file_name="gone.png"), r"gone.png is missing"),
        (set_key("images", 0, file_name="../set/b.bmp"), "no path below"),
        (set_key("images", 0, file_name="b.bmp"), "would both be screen 'b'"),
        (set_key("images", 0, file_name="B.png"), "would both be screen"),
        (set_key("categories", 1, name="Scratch"), "'Scratch' and 'scratch' both become 'scratch'"),
        (set_key("categories", 1, name="锡灰"), "'锡灰' makes no label"),
        (lambda coco: coco.pop("categories"), "categories: Field required"),
        (lambda coco: coco["images"].clear() or coco["annotations"].clear(), "no image"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    file = write_set(tmp_path / "set", change)
    with pytest.raises(ValueError, match=said) as raised:
        convert_coco({file: None}, tmp_path / "form")
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]  # nothing half written


def test_a_picture_that_asks_to_be_turned_is_refused(tmp_path: Path) -> None:
    """Labelling tools show it turned: its boxes would lie elsewhere, and half a turn leaves its size as it is."""
    file = write_set(tmp_path / "set")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("L", (WIDTH, HEIGHT), 90).save(tmp_path / "set" / "c.JPG", "JPEG", exif=exif)
    with pytest.raises(ValueError, match=r"c.JPG asks to be turned"):
        convert_coco({file: None}, tmp_path / "form")


def test_files_that_are_no_annotations_are_refused(tmp_path: Path) -> None:
    for text in ("", "[1, 2]", "{", '{"images": 3}', "\ud83d".encode("utf-8", "surrogatepass")):
        file = tmp_path / "annotations.json"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(ValueError, match=r"annotations.json: "):
            convert_coco({file: None}, tmp_path / "form")


def test_parts_are_named_for_every_file_or_for_none(tmp_path: Path) -> None:
    first = write_set(tmp_path / "set")
    second = write_set(
        tmp_path / "other", lambda coco: [i.update(file_name=f"x{i['file_name']}") for i in coco["images"]]
    )
    with pytest.raises(ValueError, match="for every annotation file"):
        convert_coco({first: "train", second: None}, tmp_path / "form")
    with pytest.raises(ValueError, match="unknown part 'val'"):
        convert_coco({first: "val"}, tmp_path / "form")
