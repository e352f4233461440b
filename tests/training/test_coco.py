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
from training.cutting import cut
from training.images import screen_files
from training.membership import read_parts
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
            {"id": 3, "image_id": 2, "category_id": 2, "bbox": [3, 4, 7, 5],
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
        (
            set_key("annotations", 0, bbox=[0.41, 0.62, 0.03, 0.05]),
            r"annotation 1 on left/a 1.png: a box of 0.03 x 0.05 px: fractions of the image\?",
        ),
        (
            set_key("annotations", 2, bbox=None, segmentation=[[0.4, 0.6, 0.5, 0.6, 0.5, 0.7]]),
            "annotation 3 on b.bmp: a polygon of less than a pixel at the corner: fractions of the image",
        ),
        (
            set_key("annotations", 2, bbox=[40, 4, 6, 4]),
            "annotation 3 on b.bmp: the box 40, 4, 6, 4 is not that of its segmentation, 3, 4, 6, 4",
        ),
        (set_key("annotations", 3, bbox=[2, 1, 5, 1]), "annotation 4 on b.bmp: the box 2, 1, 5, 1 is not that of"),
        (set_key("annotations", 0, attributes={"rotation": float("nan")}), "annotation 1 .*: a rotation of nan"),
        (
            set_key("annotations", 0, bbox=[120, 90, 40, 4], attributes={"rotation": 90}),
            "annotation 1 .*: the centre of the box 120, 90, 40, 4 lies beside the image",
        ),
        (set_key("annotations", 0, bbox=[100, 2, 30, 4]), "the box 100, 2, 30, 4 leaves the image of 128 x 96"),
        (set_key("annotations", 0, bbox=[1, 2, 3]), r"annotation 1: annotations.0.bbox.3: Field required"),
        (set_key("annotations", 0, bbox=["1", "x", 3, 4]), r"annotations.0.bbox"),
        (set_key("annotations", 0, bbox=[1, 2, float("nan"), 4]), r"annotations.0.bbox"),
        (set_key("annotations", 0, bbox=None), "annotation 1 on left/a 1.png: neither bbox nor segmentation"),
        (set_key("annotations", 2, segmentation=[[1, 1, 2, 2]]), "annotation 3 on b.bmp: a polygon of 4 numbers"),
        (set_key("annotations", 2, segmentation=[[1, 1, 999, 2, 3, 3]]), "a polygon leaves the image"),
        (set_key("annotations", 2, segmentation=[[]], bbox=None), "neither bbox nor segmentation"),
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
        (set_key("images", 1, width=0), "image 2: images.1.width"),
        (lambda coco: coco["images"][1].pop("id"), "json: images.1.id: Field required"),
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


@pytest.mark.parametrize(
    ("bbox", "degrees", "box", "area"),
    [
        ([30, 40, 60, 10], 60.0, (40, 16, 80, 74), 600),
        ([30, 40, 60, 10], 90, (55, 15, 65, 75), 600),  # about its centre, 60, 45
        ([-10, 10, 40, 10], 90.0, (5, 0, 15, 35), 350),  # the image cuts it off, as CVAT lets it
    ],
)
def test_a_box_that_cvat_has_turned_becomes_a_mask_of_it(
    tmp_path: Path, bbox: list[float], degrees: float, box: tuple[int, ...], area: int
) -> None:
    turned = set_key("annotations", 0, bbox=bbox, segmentation=[], attributes={"occluded": False, "rotation": degrees})
    convert_coco({write_set(tmp_path / "set", turned): None}, tmp_path / "form")
    first = read_defects(tmp_path / "form", screen_files(tmp_path / "form"))["left-a_1"][0]
    assert np.abs(np.subtract(first.box, box)).max() <= 1
    assert first.area_px == pytest.approx(area, rel=0.02)


def test_a_box_is_turned_clockwise_as_it_is_seen(tmp_path: Path) -> None:
    turned = set_key("annotations", 0, bbox=[30, 40, 60, 10], attributes={"rotation": 30.0})
    convert_coco({write_set(tmp_path / "set", turned): None}, tmp_path / "form")
    first = read_defects(tmp_path / "form", screen_files(tmp_path / "form"))["left-a_1"][0]
    assert first.rows is not None
    assert first.columns is not None
    assert first.rows[first.columns.argmin()] < 40 < 50 < first.rows[first.columns.argmax()]  # its right end is lower


@pytest.mark.parametrize(
    "attributes", [{"rotation": 0.0}, {"rotation": 360}, {"rotation": "left"}, {"rotation": True}, ["x"]]
)
def test_a_box_that_was_not_turned_stays_a_box(tmp_path: Path, attributes: object) -> None:
    file = write_set(tmp_path / "set", set_key("annotations", 0, attributes=attributes))
    convert_coco({file: None}, tmp_path / "form")
    first = read_defects(tmp_path / "form", screen_files(tmp_path / "form"))["left-a_1"][0]
    assert (first.box, first.rows) == ((10, 20, 16, 24), None)


@pytest.mark.parametrize(
    ("bbox", "segmentation", "attributes"),
    [
        ([3, 4, 5, 3], [[3, 4, 9, 4, 9, 8, 3, 8]], None),  # the last pixel is not counted
        ([2.6, 3.5, 6.9, 4.9], [[3, 4, 9, 4, 9, 8, 3, 8]], None),
        ([110, 80, 40, 30], [[110, 80, 128, 80, 128, 96, 110, 96]], None),  # the image cut off the polygon alone
        ([10, 10, 80, 20], [[10, 10, 90, 29.4, 90, 30]], None),  # its tip is thinner than a pixel
        ([50, 0, 4, 40], [[32, 18, 72, 18, 72, 22, 32, 22]], {"rotation": 90}),  # of the box before it was turned
    ],
)
def test_a_box_beside_its_segmentation_may_be_rounded_or_cut_off(
    tmp_path: Path, bbox: list[float], segmentation: list[list[float]], attributes: object
) -> None:
    change = set_key("annotations", 2, bbox=bbox, segmentation=segmentation, attributes=attributes)
    assert convert_coco({write_set(tmp_path / "set", change): None}, tmp_path / "form").masks == 3


def test_spots_of_one_mask_are_labelled_in_each_of_their_windows(tmp_path: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), int)
    for top in (4, 36, 68):
        for left in (4, 36, 68, 100):
            mask[top : top + 6, left : left + 6] = 1
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [0]])))
    counts = np.diff(np.concatenate([[0], edges, [HEIGHT * WIDTH]])).tolist()
    change = set_key("annotations", 3, segmentation={"size": [HEIGHT, WIDTH], "counts": counts})
    convert_coco({write_set(tmp_path / "set", change): None}, tmp_path / "form", test_share=0.34)
    cut(tmp_path / "form", tmp_path / "cut", patch_px=32)
    rows = [row for row in read_rows(tmp_path / "cut" / "labels.csv") if row["img_names"].startswith("b_")]
    assert {row["tin_ash"] for row in rows} == {"1"}


def test_a_plain_box_may_have_an_empty_polygon(tmp_path: Path) -> None:
    file = write_set(tmp_path / "set", set_key("annotations", 0, segmentation=[[]]))
    convert_coco({file: None}, tmp_path / "form")
    first = read_defects(tmp_path / "form", screen_files(tmp_path / "form"))["left-a_1"][0]
    assert (first.box, first.rows) == ((10, 20, 16, 24), None)


def test_a_category_that_this_batch_lacks_may_be_named(tmp_path: Path) -> None:
    file = write_set(tmp_path / "set", lambda coco: coco["categories"].append({"id": 99, "name": "Glue"}))
    assert "glue_spot" not in convert_coco({file: None}, tmp_path / "form", renamed={"Glue": "glue_spot"}).defects
    with pytest.raises(ValueError, match="--rename names 'Glu'"):
        convert_coco({file: None}, tmp_path / "other", renamed={"Glu": "glue_spot"})


def test_a_mask_counted_row_by_row_is_refused_where_a_box_tells(tmp_path: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), int)
    mask[20:24, 30:60] = 1
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(), [0]])))
    counts = np.diff(np.concatenate([[0], edges, [HEIGHT * WIDTH]])).tolist()
    change = set_key("annotations", 3, bbox=[30, 20, 30, 4], segmentation={"size": [HEIGHT, WIDTH], "counts": counts})
    with pytest.raises(ValueError, match=r"annotation 4 on b.bmp: the box .* counted row by row\?"):
        convert_coco({write_set(tmp_path / "set", change): None}, tmp_path / "form")


def test_all_faults_are_told_at_once_before_an_image_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(coco: dict[str, Any]) -> None:
        coco["annotations"] = [{"id": k, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 0]} for k in range(30)]
        coco["annotations"].append({"id": 30, "image_id": 2, "category_id": 1})
        coco["images"][2]["file_name"] = "gone.png"

    def decoded(path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr("training.conversion.form.read_whole", decoded)
    file = write_set(tmp_path / "set", broken)
    with pytest.raises(ValueError, match=r"annotation 0 on left/a 1.png: a box of 0 x 0 px") as raised:
        convert_coco({file: None}, tmp_path / "form")
    lines = str(raised.value).split("\n")
    assert len(lines) == 21
    assert "annotation 19 on" in lines[19]
    assert lines[20] == "and 12 more"  # of the image that is missing, too


def test_all_annotations_without_an_image_or_of_another_form_are_told_at_once(tmp_path: Path) -> None:
    for values, said in (({"image_id": 99}, "is of image 99"), ({"bbox": [1, 2, "x", 4]}, "bbox.2: Input")):
        file = write_set(tmp_path / said[:4], lambda coco: [one.update(values) for one in coco["annotations"]])  # noqa: B023
        with pytest.raises(ValueError, match=said) as raised:
            convert_coco({file: None}, tmp_path / "form")
        assert [f"annotation {k}" in line for k, line in enumerate(str(raised.value).split("\n"), start=1)] == [
            True
        ] * 5


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = write_set(tmp_path / "set")
    text = file.read_text()
    for twice, said in (
        (text[:-1] + ', "annotations": []}', "annotations.json: the key 'annotations' is there twice"),
        (text.replace('"id": 2, "image_id"', '"id": 2, "id": 2, "image_id"'), "'id' is there twice where the id is 2"),
    ):
        file.write_text(twice)
        with pytest.raises(ValueError, match=said):
            convert_coco({file: None}, tmp_path / "form")


def test_images_that_no_entry_names_are_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    file = write_set(folder)
    (folder / "right").mkdir()
    for name in ("d.png", "right/E.JPG", "._a 1.png", "notes.txt"):
        (folder / name).write_bytes(b"")
    assert convert_coco({file: None}, tmp_path / "beside").unnamed == {str(folder): 1}
    out = ["--out", str(tmp_path / "form")]
    answer = CliRunner().invoke(app, ["convert", "coco", str(file), "--images", str(folder), *out])
    assert f"images under {folder} that are in no annotation file: 2" in answer.output
    (folder / "d.png").unlink()
    (folder / "right" / "E.JPG").unlink()
    assert convert_coco({file: None}, tmp_path / "again", images=folder).unnamed == {}


def test_a_share_beside_parts_that_are_named_is_refused(tmp_path: Path) -> None:
    file = write_set(tmp_path / "set")
    (tmp_path / "parts.csv").write_text("screen,part\nleft/a 1.png,test\nb.bmp,train\nc,train\n")
    with pytest.raises(ValueError, match="--test-share draws a test part, but the parts are named"):
        convert_coco({file: None}, tmp_path / "form", splits=tmp_path / "parts.csv", test_share=0.1)
    with pytest.raises(ValueError, match="--test-share draws a test part, but the parts are named"):
        convert_coco({file: "train"}, tmp_path / "form", test_share=0.1)


def test_files_that_are_no_annotations_are_refused(tmp_path: Path) -> None:
    for text in ("", "[1, 2]", "{", "[" * 100_000, '{"images": 3}', "\ud83d".encode("utf-8", "surrogatepass")):
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
