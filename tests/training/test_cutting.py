import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Window, cover
from tests.training.data_form import write_screens
from training.boxes import read_defects
from training.cutting import cut
from training.images import screen_files
from training.membership import draw_validation, read_parts
from training.truth import CELL_PX, Defect

PATCH = 128


def boxed(left: int, top: int, right: int, bottom: int) -> Defect:
    return Defect(label="scratch", left=left, top=top, right=right, bottom=bottom)


def masked(pixels: list[tuple[int, int]]) -> Defect:
    rows, columns = (np.array(values, np.int32) for values in zip(*pixels, strict=True))
    return Defect.of_pixels("scratch", rows, columns)


WINDOW = Window(0, 0, 0, 0)
SCRATCH = [(10, x) for x in range(1000)]  # along row 10, over eight patches of 128


@pytest.mark.parametrize(
    ("defect", "window", "presence"),
    [
        (boxed(10, 10, 20, 20), WINDOW, 1),  # whole
        (boxed(200, 200, 210, 210), WINDOW, 0),  # elsewhere
        (boxed(128, 0, 138, 10), WINDOW, 0),  # touching the border from outside
        (boxed(125, 0, 145, 10), WINDOW, -1),  # 15 % of it
        (boxed(124, 0, 144, 10), WINDOW, -1),  # 20 % is not more than 20 %
        (boxed(123, 0, 143, 10), WINDOW, 1),  # 25 %
        (boxed(64, 0, 1064, 4), WINDOW, 1),  # 6 % of a long box, but P/2 of it
        (boxed(65, 0, 1065, 4), WINDOW, -1),  # one pixel less than P/2
        (masked([(10, x) for x in range(112, 1112)]), WINDOW, 1),  # 1.6 % of a scratch, but P/8 long
        (masked([(10, x) for x in range(113, 1113)]), WINDOW, -1),  # 15 px of it
        (masked(SCRATCH), Window(0, 3, 0, 384), 1),  # the middle of a long scratch
        (masked(SCRATCH), Window(1, 3, 128, 384), 0),
    ],
)
def test_presence_in_a_window(defect: Defect, window: Window, presence: int) -> None:
    assert defect.presence(window, PATCH) == presence


def test_cells_are_those_that_the_mask_touches() -> None:
    touched = masked([(0, 31), (0, 32), (127, 127), (200, 5)]).cells(WINDOW, PATCH)
    assert np.argwhere(touched).tolist() == [[0, 0], [0, 1], [3, 3]]


def test_cells_of_a_box_reach_to_its_exclusive_end() -> None:
    touched = boxed(32, 0, 64, 33).cells(WINDOW, PATCH)
    assert np.argwhere(touched).tolist() == [[0, 1], [1, 1]]


@given(
    left=st.integers(0, 500),
    top=st.integers(0, 700),
    width=st.integers(1, 300),
    height=st.integers(1, 300),
)
def test_every_defect_is_seen_somewhere(left: int, top: int, width: int, height: int) -> None:
    """Wherever a compact defect lies, at least one window of the cover has it as present."""
    defect = boxed(left, top, min(left + width, 640), min(top + height, 800))
    found = [defect.presence(window, PATCH) for window in cover(800, 640, patch_px=PATCH)]
    assert 1 in found


@given(left=st.integers(0, 600), top=st.integers(0, 700), width=st.integers(1, 300), height=st.integers(1, 300))
def test_a_window_has_cells_where_it_has_presence(left: int, top: int, width: int, height: int) -> None:
    defect = boxed(left, top, left + width, top + height)
    for window in cover(800, 640, patch_px=PATCH):
        assert defect.cells(window, PATCH).any() == (defect.presence(window, PATCH) != 0)


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_cut_writes_patches_of_the_frame(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source", screens=10)
    summary = cut(source, tmp_path / "cut", patch_px=PATCH)
    windows = read_table(tmp_path / "cut" / "windows.csv")
    assert len(windows) == 10 * 4 == sum(summary.patches.values())
    for row in windows:
        patch = cv2.imread(str(tmp_path / "cut" / "images" / row["img_names"]), cv2.IMREAD_UNCHANGED)
        frame = cv2.imread(str(source / "screens" / f"{row['screen']}.png"), cv2.IMREAD_UNCHANGED)
        assert patch is not None
        assert frame is not None
        top, left = int(row["top"]), int(row["left"])
        assert (patch == frame[top : top + PATCH, left : left + PATCH]).all()
    labels = read_table(tmp_path / "cut" / "labels.csv")
    assert list(labels[0]) == ["img_names", "dot", "line"]
    assert {value for row in labels for value in (row["dot"], row["line"])} <= {"-1", "0", "1"}


def test_maps_agree_with_labels(tmp_path: Path) -> None:
    cut(write_screens(tmp_path / "source"), tmp_path / "cut", patch_px=PATCH)
    labels = read_table(tmp_path / "cut" / "labels.csv")
    with np.load(tmp_path / "cut" / "maps.npz") as arrays:
        cells = arrays["cells"]
    for index, row in enumerate(labels):
        for column, label in enumerate(("dot", "line")):
            mine = cells[(cells[:, 0] == index) & (cells[:, 1] == column)]
            values = set(mine[:, 4].tolist())
            assert (int(row[label]) == 1) == (1 in values)
            assert (int(row[label]) == 0) == (not values)
    assert cells[:, 2:4].max() < PATCH // CELL_PX


def test_the_split_is_by_screen_and_validation_comes_out_of_training(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source", screens=40)
    parts = read_parts(source, [f"t{n:03d}" for n in range(40)], test_fold=None)
    given_parts = {row["screen"]: row["part"] for row in read_table(source / "splits.csv")}
    assert sum(part == "validation" for part in parts.values()) == round(0.15 * 32)
    assert all(given_parts[screen] == "train" for screen, part in parts.items() if part == "validation")
    assert all(parts[screen] == "test" for screen, part in given_parts.items() if part == "test")
    assert parts == read_parts(source, [f"t{n:03d}" for n in range(40)], test_fold=None)


@pytest.mark.parametrize("table", ["splits.csv", "folds.csv"])
def test_validation_takes_whole_phones_where_the_parts_hold_them_apart(tmp_path: Path, table: str) -> None:
    names = [f"t{n:03d}" for n in range(40)]
    phone = {name: f"P{n // 5}" for n, name in enumerate(names)}
    of = {name: {"P0": ("test", "0"), "P1": ("test", "0")}.get(phone[name], ("train", "1")) for name in names}
    column = table != "splits.csv"
    rows = [f"{name},{of[name][column]},{phone[name]},x{name}" for name in names]
    (tmp_path / table).write_text(f"screen,{'fold' if column else 'part'},phone,note\n" + "\n".join(rows) + "\n")
    parts = read_parts(tmp_path, names, test_fold=0 if column else None)
    drawn = {phone[name] for name in names if parts[name] == "validation"}
    assert len(drawn) == 1  # 5 of 30 are 15 % and a little
    assert drawn.isdisjoint(phone[name] for name in names if parts[name] != "validation")


def test_a_group_that_is_most_of_the_training_part_stays_in_it() -> None:
    for sizes in ((97, 1, 1, 1), (1, 1, 1, 97), (80, *[2] * 10), (30, 30, 30, 10), (30, 30, 30, 31)):
        names = [f"t{n:03d}" for n in range(sum(sizes))]
        lot = dict(zip(names, np.repeat(range(len(sizes)), sizes).astype(str).tolist(), strict=True))
        parts = draw_validation(dict.fromkeys(names, "train"), {"lot": lot, "line": dict.fromkeys(names, "1")})
        drawn = [name for name, part in parts.items() if part == "validation"]
        assert 0 < len(drawn) <= 0.31 * len(names), sizes


def test_groups_that_are_in_two_parts_already_are_not_held_together() -> None:
    parts = {f"t{n:03d}": "test" if n % 5 == 0 else "train" for n in range(40)}
    boards = {name: f"B{n // 10}" for n, name in enumerate(parts)}
    assert draw_validation(parts, {"board": boards}) == draw_validation(parts, {})


def test_folds_give_the_test_part(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source", screens=10)
    (source / "splits.csv").unlink()
    rows = "".join(f"t{n:03d},{n % 5}\n" for n in range(10))
    (source / "folds.csv").write_text("screen,fold\n" + rows)
    cut(source, tmp_path / "cut", patch_px=PATCH, test_fold=3)
    parts = {row["screen"]: row["part"] for row in read_table(tmp_path / "cut" / "splits.csv")}
    assert [screen for screen, part in parts.items() if part == "test"] == ["t003", "t008"]
    with pytest.raises(ValueError, match="--test-fold"):
        cut(source, tmp_path / "other", patch_px=PATCH, test_fold=7)
    for rows, message in (("t000\n", "folds.csv, line 2: no fold"), ("t000,first\n", "folds.csv: invalid literal")):
        (source / "folds.csv").write_text("screen,fold\n" + rows)
        with pytest.raises(ValueError, match=message):
            cut(source, tmp_path / "other", patch_px=PATCH, test_fold=0)


def test_the_papers_rule_drops_patches_with_too_little_of_a_defect(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source")
    known = cut(source, tmp_path / "known", patch_px=PATCH)
    paper = cut(source, tmp_path / "paper", patch_px=PATCH, rule="paper")
    unknown = sum("-1" in row.values() for row in read_table(tmp_path / "known" / "labels.csv"))
    assert unknown > 0
    assert paper.dropped >= unknown
    assert sum(paper.patches.values()) == sum(known.patches.values()) - paper.dropped
    assert not any("-1" in row.values() for row in read_table(tmp_path / "paper" / "labels.csv"))


def test_the_papers_rule_knows_no_length() -> None:
    """A scratch over eight patches: an eighth of it in each, so the paper drops them all."""
    scratch = masked(SCRATCH)
    for column in range(1, 7):
        window = Window(0, column, 0, column * PATCH)
        assert scratch.presence(window, PATCH) == 1
        assert scratch.presence(window, PATCH, rule="paper") == -1
    box = boxed(64, 0, 1064, 4)
    assert box.presence(WINDOW, PATCH) == 1
    assert box.presence(WINDOW, PATCH, rule="paper") == -1


def test_many_small_patches_keep_their_maps(tmp_path: Path) -> None:
    """More patches of one screen than 16 bits count: the last one's cells are the last one's."""
    (tmp_path / "source" / "screens").mkdir(parents=True)
    side = 32 * 190
    cv2.imwrite(str(tmp_path / "source" / "screens" / "a.png"), np.zeros((side, side), np.uint8))
    rows = f"screen,label,left,top,right,bottom,area_px\na,dot,{side - 9},{side - 9},{side - 1},{side - 1},64\n"
    (tmp_path / "source" / "boxes.csv").write_text(rows)
    (tmp_path / "source" / "splits.csv").write_text("screen,part\na,test\n")
    cut(tmp_path / "source", tmp_path / "cut", patch_px=32)
    with np.load(tmp_path / "cut" / "maps.npz") as arrays:
        assert arrays["cells"].tolist() == [[190 * 190 - 1, 0, 0, 0, 1]]


def test_a_fold_needs_folds(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source")
    with pytest.raises(ValueError, match="--test-fold needs"):
        cut(source, tmp_path / "cut", patch_px=PATCH, test_fold=1)


def test_overlap_gives_more_windows(tmp_path: Path) -> None:
    cut(write_screens(tmp_path / "source", screens=3), tmp_path / "cut", patch_px=PATCH, stride_px=64)
    assert len(read_table(tmp_path / "cut" / "windows.csv")) == 3 * 2 * 3
    assert json.loads((tmp_path / "cut" / "cut.json").read_text())["stride_px"] == 64


def test_masks_belong_to_their_rows(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source")
    found = read_defects(source, screen_files(source))
    with_mask = [d for defects in found.values() for d in defects if d.rows is not None]
    assert with_mask
    for defect in with_mask:
        assert defect.rows is not None
        assert defect.columns is not None
        assert (defect.top, defect.bottom) == (defect.rows.min(), defect.rows.max() + 1)
        assert (defect.left, defect.right) == (defect.columns.min(), defect.columns.max() + 1)


def mask_of(source: Path) -> Path:
    """Of a screen that has a defect."""
    return source / "masks" / f"{read_table(source / 'boxes.csv')[0]['screen']}.npz"


def boxes(source: Path, row: str) -> None:
    shutil.rmtree(source / "masks")
    (source / "boxes.csv").write_text(f"screen,label,left,top,right,bottom\n{row}\n")


def rows(source: Path, change: Callable[[list[str]], list[str]]) -> None:
    header, *told = (source / "boxes.csv").read_text().splitlines()
    (source / "boxes.csv").write_text("\n".join([header, *change(told), ""]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s / "boxes.csv").unlink(), "boxes.csv is missing"),
        (lambda s: (s / "splits.csv").unlink(), "neither splits.csv nor folds.csv"),
        (lambda s: (s / "splits.csv").write_text("screen,part\nt000,train\n"), "no part is given"),
        (lambda s: (s / "splits.csv").write_text("screen\nt000\n"), "splits.csv has the header 'screen': no part"),
        (
            lambda s: (s / "splits.csv").write_text("screen,part\nt000,train\nt000,test\n"),
            "splits.csv: screen 't000' is in part train and test",
        ),
        (lambda s: mask_of(s).write_bytes(b"no"), "npz holds no masks"),
        (lambda s: np.savez(mask_of(s), column=[1], id=[0]), "npz holds no masks.*row"),
        (lambda s: boxes(s, "t001,dot,5,5,5,9"), "row 0 below the header: an empty or negative box"),
        (lambda s: boxes(s, "t001,dot,5,5.5,9,9"), "row 0 below the header: top is '5.5', which is no whole number"),
        (lambda s: boxes(s, "t001,dot,5"), "boxes.csv, line 2: no top"),
        (lambda s: (s / "boxes.csv").write_text(""), "boxes.csv has the header '': no screen"),
        (
            lambda s: (s / "boxes.csv").write_text("screen,klass,x,y,w,h\n"),
            "boxes.csv has the header 'screen,klass,x,y,w,h': no label",
        ),
        (lambda s: boxes(s, "t001,dot,5,5,9,9,7"), "boxes.csv, line 2: more values than the header has"),
        (lambda s: boxes(s, 't001,dot,5,5,9,"9\nt002,dot,5,5,9,9'), "boxes.csv cannot be read: unexpected end of data"),
        (lambda s: boxes(s, 't001,dot,5,5,9,"9\nt002,dot,5,5,9,9"'), "line 3: bottom goes on over several lines"),
        (lambda s: boxes(s, "t001,Dot,5,5,9,9"), "'Dot' is no label"),
        (lambda s: boxes(s, f"t001,{'d' * 33},5,5,9,9"), "is no label: a-z, 0-9 and _ from a letter on, at most 32"),
        (lambda s: (s / "screens" / "t003.png").unlink(), r"a part is given for t003 \(and 0 more\), but no such"),
        (lambda s: boxes(s, "t000.png,dot,5,5,9,9"), "'t000.png', which is not there"),
        (lambda s: boxes(s, "t000,dot,5,5,9,193"), "beyond the frame of 256 x 192"),
        # rows whose masks and contrasts are of others by now
        (lambda s: rows(s, lambda told: told[1:]), "remove the folder masks"),
        (lambda s: rows(s, lambda told: told[::-1]), "remove the folder masks"),
        (lambda s: rows(s, lambda told: told[:-1]), "remove the folder masks"),
        (
            lambda s: (s / "conditions.csv").write_text("screen,id,label,contrast\nt001,0,other,9\n"),
            "conditions.csv: id 0 is of another screen or label",
        ),
        (lambda s: [p.unlink() for p in (s / "screens").iterdir()], "no .png or .jpg"),
        (lambda s: (s / "screens" / "t000.png").write_bytes(b"no"), "cannot be read"),
    ],
)
def test_a_folder_that_is_not_in_the_form_is_refused(tmp_path: Path, change: object, message: str) -> None:
    source = write_screens(tmp_path / "source", screens=6)
    assert callable(change)
    change(source)
    with pytest.raises(ValueError, match=message):
        cut(source, tmp_path / "cut", patch_px=PATCH)


@pytest.mark.parametrize(("patch", "stride"), [(100, None), (0, None), (128, 0), (128, 129)])
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, patch: int, stride: int | None) -> None:
    source = write_screens(tmp_path / "source", screens=3)
    with pytest.raises(ValueError, match=r"--patch|--stride"):
        cut(source, tmp_path / "cut", patch_px=patch, stride_px=stride)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source", screens=3)
    with pytest.raises(ValueError, match="is not empty"):
        cut(source, source, patch_px=PATCH)


def test_labels_can_be_given(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source", screens=4)
    cut(source, tmp_path / "cut", patch_px=PATCH, labels=("line", "crack", "dot"))
    assert list(read_table(tmp_path / "cut" / "labels.csv")[0])[1:] == ["line", "crack", "dot"]
    with pytest.raises(ValueError, match="'line'"):
        cut(source, tmp_path / "other", patch_px=PATCH, labels=("dot",))


def test_the_first_screens_alone_are_cut_as_they_are_among_all(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source", screens=10)
    cut(source, tmp_path / "all", patch_px=PATCH)
    cut(source, tmp_path / "few", patch_px=PATCH, first=3)
    for table in ("labels.csv", "windows.csv", "splits.csv"):
        whole, few = read_table(tmp_path / "all" / table), read_table(tmp_path / "few" / table)
        assert few == [row for row in whole if next(iter(row.values()))[:4] in ("t000", "t001", "t002")]
        assert few
    with pytest.raises(ValueError, match="--first"):
        cut(source, tmp_path / "none", patch_px=PATCH, first=0)


@given(by=st.integers(1, 4), left=st.integers(0, 90), top=st.integers(0, 90), side=st.integers(1, 30))
def test_a_shrunk_defect_covers_what_it_covered(by: int, left: int, top: int, side: int) -> None:
    rows, columns = (part.ravel().astype(np.int32) for part in np.mgrid[top : top + side, left : left + side])
    box = {"left": left, "top": top, "right": left + side, "bottom": top + side}
    found = Defect(label="dot", **box, rows=rows, columns=columns).shrunk(by)
    assert found.rows is not None
    assert found.columns is not None
    assert {*zip(found.rows.tolist(), found.columns.tolist(), strict=True)} == {
        (row // by, column // by) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    }
    assert (found.left, found.top) == (columns.min() // by, rows.min() // by)
    assert (found.right, found.bottom) == (columns.max() // by + 1, rows.max() // by + 1)


def test_screens_are_shrunk_before_they_are_cut(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source", screens=4)
    summary = cut(source, tmp_path / "half", patch_px=32, shrink=2)
    assert sum(summary.patches.values()) == 4 * (192 // 64) * (256 // 64)
    whole = cv2.imread(str(source / "screens" / "t001.png"), cv2.IMREAD_GRAYSCALE)
    patch = cv2.imread(str(tmp_path / "half" / "images" / "t001_00_01.png"), cv2.IMREAD_GRAYSCALE)
    assert whole is not None
    assert patch is not None
    mean = whole[:64, 64:128].reshape(32, 2, 32, 2).mean(axis=(1, 3))
    assert np.abs(patch - mean).max() <= 0.5
    with pytest.raises(ValueError, match="--shrink"):
        cut(source, tmp_path / "none", patch_px=32, shrink=0)


def test_a_label_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source", screens=6)
    with pytest.raises(ValueError, match="the label 'dot' is there twice"):
        cut(source, tmp_path / "cut", patch_px=PATCH, labels=("dot", "line", "dot"))


def test_a_cut_that_was_killed_is_told_from_a_whole_one(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source", screens=6)
    (tmp_path / "cut" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"is not empty: without cut.json it is no whole cut"):
        cut(source, tmp_path / "cut", patch_px=PATCH)
    shutil.rmtree(tmp_path / "cut")
    cut(source, tmp_path / "cut", patch_px=PATCH)
    with pytest.raises(ValueError, match=r"is not empty$"):
        cut(source, tmp_path / "cut", patch_px=PATCH)


def test_a_photograph_that_lacks_its_end_is_not_cut(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source", screens=6)
    image = cv2.imread(str(source / "screens" / "t001.png"), cv2.IMREAD_UNCHANGED)
    (source / "screens" / "t001.png").unlink()
    assert image is not None
    data = cv2.imencode(".jpg", image)[1].tobytes()
    (source / "screens" / "t001.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"t001.jpg is incomplete: it lacks its end mark"):
        cut(source, tmp_path / "cut", patch_px=PATCH)
