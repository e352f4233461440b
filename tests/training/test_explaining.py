"""Pictures are made for people; what can be tested is that they show the right thing at the right place."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from engine import Window, cover
from tests.engine.precisions import LABELS, PATCH_PX
from training.__main__ import app
from training.explaining import GAP_PX, View, explain, read_truth
from training.images import read_whole
from training.pictures import crop, heated, tiles, words


@pytest.fixture
def screen(tmp_path: Path) -> Path:
    frame = np.random.default_rng(0).integers(0, 255, (PATCH_PX * 2, PATCH_PX * 3 - 8), np.uint8)
    assert cv2.imwrite(str(tmp_path / "screen.png"), frame)
    return tmp_path / "screen.png"


def test_a_screen_and_a_patch_are_drawn_with_a_row_for_each_label(
    one_stage: Path, screen: Path, tmp_path: Path
) -> None:
    patch = tmp_path / "patch.png"
    assert cv2.imwrite(str(patch), read_whole(screen)[:PATCH_PX, :PATCH_PX])
    (tmp_path / "boxes.csv").write_text(
        "screen,label,left,top,right,bottom,area_px\nscreen,bubble,3,3,9,9,36\nscreen,scratch,70,3,90,9,36\n"
    )
    both = explain(one_stage, [screen, patch], tmp_path / "out", labels=LABELS[:2], data=tmp_path)
    assert [file.name for file in both] == ["screen.jpg", "patch.jpg"]
    (one,) = explain(one_stage, [patch], tmp_path / "one", labels=LABELS[:1])
    with Image.open(both[1]) as two_rows, Image.open(one) as one_row:
        assert two_rows.width == one_row.width > 3 * 400
        assert two_rows.height > 1.9 * one_row.height


def test_a_picture_does_not_replace_what_it_is_of(one_stage: Path, screen: Path, tmp_path: Path) -> None:
    photograph = tmp_path / "photograph.jpg"
    cv2.imwrite(str(photograph), read_whole(screen))
    before = photograph.read_bytes()
    with pytest.raises(ValueError, match=r"photograph.jpg would be replaced by its own picture"):
        explain(one_stage, [screen, photograph], tmp_path)
    assert photograph.read_bytes() == before


def test_both_stages_are_drawn_side_by_side(
    two_stages: Path, one_stage: Path, screen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    widths = {}
    for bundle in (two_stages, one_stage):
        shutil.rmtree("explained", ignore_errors=True)
        told = CliRunner().invoke(app, ["explain", "--bundle", str(bundle), str(screen), "--label", LABELS[0]])
        assert told.exit_code == 0, told.output
        assert told.output.strip().endswith("explained/screen.jpg")
        with Image.open(tmp_path / "explained" / "screen.jpg") as picture:
            widths[bundle] = picture.width
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        if bundle == two_stages:
            panel = (picture.width - 3 * GAP_PX) // 4
            starts = [number * (panel + GAP_PX) for number in range(4)]
            frame, stage1, stage2, _ = (pixels[-panel // 2 :, start : start + panel] for start in starts)
            for first, second in ((frame, stage1), (frame, stage2), (stage1, stage2)):
                assert np.abs(first - second).mean() > 5  # each is a picture of its own
    assert widths[two_stages] - widths[one_stage] == panel + GAP_PX


def test_a_label_that_is_there_by_the_boxes_is_drawn_even_where_it_was_missed(
    one_stage: Path, screen: Path, tmp_path: Path
) -> None:
    heights = []
    for number, labels in enumerate([(), LABELS]):
        rows = "".join(f"screen,{label},3,3,9,9,36\n" for label in LABELS)
        (tmp_path / "boxes.csv").write_text(f"screen,label,left,top,right,bottom,area_px\n{rows}")
        (file,) = explain(one_stage, [screen], tmp_path / str(number), labels=labels, data=tmp_path)
        with Image.open(file) as picture:
            heights.append(picture.height)
    assert heights[0] == heights[1]


def test_a_label_of_the_boxes_that_the_bundle_does_not_know_is_left_out(
    one_stage: Path, screen: Path, tmp_path: Path
) -> None:
    (tmp_path / "boxes.csv").write_text("screen,label,left,top,right,bottom,area_px\nscreen,dust,3,3,9,9,36\n")
    assert explain(one_stage, [screen], tmp_path / "out", data=tmp_path)


def test_boxes_come_from_screens_or_from_cut_patches(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has neither boxes.csv nor defects.csv"):
        read_truth(tmp_path)
    header = "img_names,label,presence,left,top,right,bottom,border_px,contrast"
    (tmp_path / "defects.csv").write_text(f"{header}\na.png,dot,1,1,2,3,4,,\na.png,dot,-1,5,6,7,8,,\n")
    assert read_truth(tmp_path) == {"a": [("dot", (1, 2, 3, 4)), ("dot", (5, 6, 7, 8))]}


def test_a_screens_name_may_have_dots(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("screen,label,left,top,right,bottom\nSN-17.2,dot,1,2,3,4\n")
    assert read_truth(tmp_path) == {"SN-17.2": [("dot", (1, 2, 3, 4))]}


def test_a_malformed_table_of_boxes_is_named(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("screen,label,left,top,right\na,dot,1,2,3\n")
    with pytest.raises(ValueError, match=r"boxes.csv: KeyError\('bottom'\)"):
        read_truth(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["dust"]}, "no label 'dust'; it has bubble, pinhole"),
        ({"images": ["screen.png", "other/screen.png"]}, "the same name"),
        ({"images": ["text.png"]}, "text.png cannot be read"),
        ({"images": ["small.png"]}, "smaller than a patch"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    one_stage: Path, screen: Path, tmp_path: Path, change: dict[str, list[str]], message: str
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((20, 20), np.uint8))
    images = [tmp_path / name for name in change.get("images", ["screen.png"])]
    with pytest.raises(ValueError, match=message):
        explain(one_stage, images, tmp_path / "out", labels=change.get("labels", []))


def test_maps_lie_where_their_windows_lie() -> None:
    """The strongest pixel of the merged map is in the cell that is strong, at any size of the frame."""
    for height, width in ((64, 64), (128, 200), (1000, 640)):
        windows = cover(height, width, patch_px=64)
        view = View(np.zeros((height, width), np.uint8), windows, 64)
        for k, window in enumerate(windows[:: max(1, len(windows) // 7)]):
            part = np.zeros((len(windows), 4, 4))
            part[windows.index(window), 1, 2] = 1.0 + k
            merged = view.merged(part)
            assert merged.shape == view.size[::-1]
            y, x = np.unravel_index(int(merged.argmax()), merged.shape)
            assert window.top + 16 <= (y + 0.5) / view.scale <= window.top + 32
            assert window.left + 32 <= (x + 0.5) / view.scale <= window.left + 48


def test_where_windows_overlap_the_stronger_map_is_drawn_whatever_its_sign() -> None:
    view = View(np.zeros((64, 96), np.uint8), (Window(0, 0, 0, 0), Window(0, 1, 0, 32)), 64)
    merged = view.merged(np.stack([np.full((4, 4), 0.5), np.full((4, 4), -0.7)]))
    middle = merged[10]
    assert middle[int(20 * view.scale)] == pytest.approx(0.5)
    assert middle[int(48 * view.scale)] == middle[int(80 * view.scale)] == pytest.approx(-0.7)


def test_heat_of_nothing_changes_nothing_and_signs_have_their_colours() -> None:
    grey = np.full((1, 3, 3), 128, np.uint8)
    calm, warm, cold = heated(grey, np.array([[0.0, 1.0, -1.0]]))[0].tolist()
    assert calm == [128, 128, 128]
    assert warm[0] > 180 > warm[2]
    assert cold[2] > 150 > cold[0]


def test_a_crop_stays_inside_and_says_where_it_is() -> None:
    frame = np.arange(100, dtype=np.uint8).reshape(10, 10)
    for row, column, top, left in ((0, 0, 0, 0), (9, 5, 6, 3), (5, 9, 3, 6)):
        piece, at_row, at_column = crop(frame, row, column, 4)
        assert (at_row, at_column) == (top, left)
        np.testing.assert_array_equal(piece, frame[top : top + 4, left : left + 4])


def test_tiles_fill_their_rows() -> None:
    for shape in ((5, 5), (5, 5, 3)):
        assert tiles([np.zeros(shape, np.uint8)] * 4, 3).shape[:2] == (14, 21)


def test_words_are_drawn_in_their_colour() -> None:
    strip = words([("bubble", (255, 0, 0)), ("pinhole", (0, 255, 0))], 200)
    assert strip.shape[1:] == (200, 3)
    half = len(strip) // 2
    assert strip[:half, :, 0].max() > 200 > strip[:half, :, 1].max()
    assert strip[half:, :, 1].max() > 200 > strip[half:, :, 0].max()
