"""What lies in a patch is told as it is: its box, its distance to the window's borders, its contrast."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Window
from tests.training.data_form import write_screens
from training.boxes import read_defects
from training.contrast import measured
from training.cutting import cut
from training.datasets import PatchSet
from training.images import read_whole, screen_files
from training.truth import Defect
from training.visible import border_px, read_visible

PATCH = 64


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_screens(tmp_path_factory.mktemp("visible") / "source")
    rows = (folder / "boxes.csv").read_text().splitlines()[1:]
    conditions = [f"{row.split(',')[0]},{k},{row.split(',')[1]},{k + 0.5},9" for k, row in enumerate(rows)]
    # in another order than boxes.csv: a condition belongs to the row that its id names
    (folder / "conditions.csv").write_text("\n".join(["screen,id,label,contrast,size", *reversed(conditions), ""]))
    return folder


def by_loops(defect: Defect, window: Window) -> list[tuple[int, int]]:
    """Pixels (row, column) of a defect in a window's own coordinates."""
    if defect.rows is None or defect.columns is None:
        pixels = [(y, x) for y in range(defect.top, defect.bottom) for x in range(defect.left, defect.right)]
    else:
        pixels = list(zip(defect.rows.tolist(), defect.columns.tolist(), strict=True))
    inside = [(y - window.top, x - window.left) for y, x in pixels]
    return [(y, x) for y, x in inside if 0 <= y < PATCH and 0 <= x < PATCH]


def test_a_contrast_that_the_data_does_not_tell_is_measured(tmp_path: Path) -> None:
    source = write_screens(tmp_path / "source")
    cut(source, tmp_path / "cut", patch_px=PATCH)
    files = screen_files(source)
    expected = {
        (defect.label, defect.contrast)
        for name, defects in read_defects(source, screen_files(source)).items()
        for defect in measured(read_whole(files[name]), defects)
    }
    told = {(one.label, one.contrast) for seen in read_visible(tmp_path / "cut").values() for one in seen}
    assert told == expected
    assert None not in {contrast for _, contrast in told}


def test_the_table_tells_every_defect_of_every_patch(source: Path, tmp_path: Path) -> None:
    cut(source, tmp_path / "cut", patch_px=PATCH)
    seen = read_visible(tmp_path / "cut")
    windows = [row.split(",") for row in (tmp_path / "cut" / "windows.csv").read_text().splitlines()[1:]]
    defects = read_defects(source, screen_files(source))
    told = 0
    for name, screen, row, column, left, top in windows:
        window = Window(int(row), int(column), int(top), int(left))
        expected = [(d, pixels) for d in defects.get(screen, []) if (pixels := by_loops(d, window))]
        for one, (defect, pixels) in zip(seen.get(name, []), expected, strict=True):
            ys, xs = zip(*pixels, strict=True)
            assert (one.left, one.top, one.right, one.bottom) == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
            assert one.size_px == max(max(xs) - min(xs), max(ys) - min(ys)) + 1
            assert (one.label, one.presence) == (defect.label, defect.presence(window, PATCH))
            assert one.contrast == defect.contrast
            told += 1
    assert told == sum(map(len, seen.values())) > 20
    rows = (source / "boxes.csv").read_text().splitlines()[1:]
    contrasts = [d.contrast for name in dict.fromkeys(r.split(",")[0] for r in rows) for d in defects[name]]
    assert contrasts == [k + 0.5 for k in range(len(rows))]


def test_the_table_fits_the_labels(source: Path, tmp_path: Path) -> None:
    cut(source, tmp_path / "cut", patch_px=PATCH)
    patches = PatchSet([tmp_path / "cut", tmp_path / "cut"], "test")
    for labels, seen in zip(patches.labels.tolist(), patches.visible(), strict=True):
        for label, value in zip(patches.label_names, labels, strict=True):
            found = [one.presence for one in seen if one.label == label]
            assert value == (1 if 1 in found else -1 if found else 0)


def border_by_loops(box: tuple[int, int, int, int], window: Window, shape: tuple[int, int]) -> int | None:
    """Step outwards from the box until a line is met that is a side of the window and not the frame's edge."""
    left, top, right, bottom = box
    distances = []
    for low, high, start, length in ((left, right, window.left, shape[1]), (top, bottom, window.top, shape[0])):
        sides = [line for line in (start, start + PATCH) if 0 < line < length]
        for line in sides:
            cuts = low < line < high
            distances.append(-1 if cuts else min(abs(line - low), abs(line - high)))
    return min(distances, default=None)


@given(st.data())
def test_the_distance_to_a_border_is_that_of_the_nearest_side_inside_the_frame(data: st.DataObject) -> None:
    height, width = (data.draw(st.integers(PATCH, 3 * PATCH)) for _ in range(2))
    window = Window(0, 0, data.draw(st.integers(0, height - PATCH)), data.draw(st.integers(0, width - PATCH)))
    # at least a pixel of the box lies in the window
    left = data.draw(st.integers(0, window.left + PATCH - 1))
    top = data.draw(st.integers(0, window.top + PATCH - 1))
    right = data.draw(st.integers(max(left, window.left) + 1, width))
    bottom = data.draw(st.integers(max(top, window.top) + 1, height))
    box = (left, top, right, bottom)
    assert border_px(box, window, PATCH, (height, width)) == border_by_loops(box, window, (height, width))


def test_a_folder_that_was_cut_before_is_named(source: Path, tmp_path: Path) -> None:
    cut(source, tmp_path / "cut", patch_px=PATCH)
    patches = PatchSet([tmp_path / "cut"], "test")
    assert patches.tells_visible
    (tmp_path / "cut" / "defects.csv").unlink()
    assert not patches.tells_visible
    with pytest.raises(ValueError, match=r"cut has no defects.csv: make it anew"):
        patches.visible()


@pytest.mark.parametrize("row", ["a.png,dot,1,0,0,x,5,,", "a.png,dot,1,0,0,5", "a.png,dot,,0,0,5,5,,"])
def test_a_malformed_row_is_named(tmp_path: Path, row: str) -> None:
    header = "img_names,label,presence,left,top,right,bottom,border_px,contrast"
    (tmp_path / "defects.csv").write_text(f"{header}\na.png,dot,1,0,0,5,5,,2.5\n{row}\n")
    with pytest.raises(ValueError, match=r"defects.csv, row 1"):
        read_visible(tmp_path)


def test_what_is_not_told_is_none(tmp_path: Path) -> None:
    header = "img_names,label,presence,left,top,right,bottom,border_px,contrast"
    (tmp_path / "defects.csv").write_text(f"{header}\na.png,dot,-1,0,0,5,5,,\n")
    ((one,),) = read_visible(tmp_path).values()
    assert (one.border_px, one.contrast, one.presence) == (None, None, -1)


@pytest.mark.parametrize("row", ["t000,0,dot,much,9", "t000,x,dot,2.5,9", "t000,0"])
def test_a_malformed_condition_is_named(source: Path, tmp_path: Path, row: str) -> None:
    first = (source / "boxes.csv").read_text().splitlines()[1].split(",")[0]
    (tmp_path / "boxes.csv").write_bytes((source / "boxes.csv").read_bytes())
    (tmp_path / "conditions.csv").write_text(f"screen,id,label,contrast,size\n{row.replace('t000', first)}\n")
    with pytest.raises(ValueError, match=r"conditions.csv[:,] "):
        read_defects(tmp_path, screen_files(source))
