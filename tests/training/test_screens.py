import csv
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from training.defects import LABELS
from training.placing import CONTRAST_FLOOR, GREY_FLOOR
from training.screens import MOST_DEFECTS, draw_screen, plan_screens, render

WIDTH, HEIGHT = 640, 512


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rendered") / "screens"
    render(out, screens=12, seed=5, width=WIDTH, height=HEIGHT, clean=0.25, preview=True, processes=1)
    return out


def test_the_output_does_not_depend_on_the_number_of_processes(folder: Path, tmp_path: Path) -> None:
    render(tmp_path / "b", screens=12, seed=5, width=WIDTH, height=HEIGHT, clean=0.25, processes=2)
    files = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file() and "preview" not in p.name]
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file())
    for file in files:
        if file.suffix == ".npz":
            with np.load(folder / file) as one, np.load(tmp_path / "b" / file) as two:
                for key in ("row", "column", "id"):
                    np.testing.assert_array_equal(one[key], two[key])
        else:
            assert (folder / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


@pytest.mark.parametrize("faintest", [1.0, 3.0])
def test_the_faintest_defect_stands_out_as_asked(faintest: float) -> None:
    contrasts = [
        (defect.contrast or 0.0) / CONTRAST_FLOOR[defect.label]
        for index in range(12)
        for defect in draw_screen(LABELS, seed=8, index=index, height=HEIGHT, width=WIDTH, faintest=faintest)[1]
    ]
    assert len(contrasts) > 12
    assert min(contrasts) >= faintest
    assert min(contrasts) < 2 * faintest


def test_a_contrast_that_no_screen_has_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="no place was found where a pinhole is seen on 128 x 128 px: a lower --faint"):
        draw_screen(("pinhole",), seed=0, index=0, height=128, width=128, faintest=60)


def test_what_is_fainter_than_the_floor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="faintest >= 1"):
        render(tmp_path / "out", screens=1, seed=0, width=WIDTH, height=HEIGHT, faintest=0.5)


def test_dirt_is_what_lies_on_the_glass_and_is_no_defect(tmp_path: Path) -> None:
    def frames(dirt: float) -> NDArray[np.float32]:
        drawn = [draw_screen((), seed=8, index=k, height=HEIGHT, width=WIDTH, dirt=dirt) for k in range(6)]
        assert not any(defects for _, defects in drawn)
        return np.stack([cv2.blur(frame.astype(np.float32), (7, 7)) for frame, _ in drawn])

    cleaned, usual, dirtier = (frames(dirt) for dirt in (0.0, 1.0, 300.0))
    changed = [float((np.abs(other - cleaned) > 3).mean()) for other in (usual, dirtier)]
    assert changed[0] < 0.01 < changed[1]
    with pytest.raises(ValueError, match="dirt is at least 0"):
        render(tmp_path / "out", screens=1, seed=0, width=WIDTH, height=HEIGHT, dirt=-1)


def test_boxes_are_tight_about_the_masks(folder: Path) -> None:
    boxes = read(folder / "boxes.csv")
    seen = 0
    for path in sorted((folder / "masks").iterdir()):
        with np.load(path) as arrays:
            row, column, ids = arrays["row"], arrays["column"], arrays["id"]
        assert {row.dtype, column.dtype, ids.dtype} == {np.dtype(np.int32)}
        for number in np.unique(ids):
            box, rows, columns = boxes[number], row[ids == number], column[ids == number]
            assert box["screen"] == path.stem
            assert box["label"] in LABELS
            tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert tuple(int(box[k]) for k in ("left", "top", "right", "bottom")) == tight
            assert int(box["area_px"]) == len(rows) == len(set(zip(rows.tolist(), columns.tolist(), strict=True)))
            assert min(tight) >= 0
            assert tight[2] <= WIDTH
            assert tight[3] <= HEIGHT
            seen += 1
    assert seen == len(boxes) > 0


def test_the_rows_of_a_screen_stand_together_and_conditions_follow_them(folder: Path) -> None:
    boxes = read(folder / "boxes.csv")
    names = [row["screen"] for row in boxes]
    assert names == sorted(names)
    conditions = read(folder / "conditions.csv")
    assert [(c["screen"], c["label"]) for c in conditions] == [(b["screen"], b["label"]) for b in boxes]
    assert [int(c["id"]) for c in conditions] == list(range(len(boxes)))


def test_frames_have_the_size_asked_for_and_the_split_names_each(folder: Path) -> None:
    frames = sorted((folder / "screens").iterdir())
    assert [p.stem for p in frames] == [row["screen"] for row in read(folder / "splits.csv")]
    for path in frames:
        frame = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert frame is not None
        assert frame.shape == (HEIGHT, WIDTH)
        assert frame.dtype == np.uint8
        assert frame.std() > 0


def test_contrast_is_above_its_floor(folder: Path) -> None:
    for row in read(folder / "conditions.csv"):
        assert float(row["contrast"]) >= CONTRAST_FLOOR[row["label"]]


def test_contact_sheets_are_written(folder: Path) -> None:
    labels = {row["label"] for row in read(folder / "boxes.csv")}
    wanted = {f"preview_{name}.png" for name in labels | {"clean", "frames"}}
    assert {p.name for p in folder.glob("preview_*")} == wanted


def test_a_folder_is_not_rendered_over(folder: Path) -> None:
    with pytest.raises(ValueError, match="already holds screens"):
        render(folder, screens=1, seed=6, width=WIDTH, height=HEIGHT)


@pytest.mark.parametrize("wrong", [{"screens": 0}, {"clean": 1.5}, {"clean": -0.1}, {"width": 100}, {"height": 255}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, float], tmp_path: Path) -> None:
    arguments: dict[str, float] = {"screens": 2, "seed": 1, "width": 640, "height": 512} | wrong
    with pytest.raises(ValueError, match="got"):
        render(tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("label", LABELS)
def test_a_defect_changes_the_pixels_of_its_mask_and_can_be_seen(label: str) -> None:
    for index in range(6):
        frame, defects = draw_screen((label,), seed=3, index=index, height=512, width=640)
        [defect] = defects
        grey = frame.astype(np.float32)
        around = cv2.medianBlur(frame, 31).astype(np.float32)
        change = np.abs(grey - around)[defect.rows, defect.columns]
        # the strongest tenth of the mask stands out by about the floor, though noise may take from it
        assert np.percentile(change, 90) > 0.5 * GREY_FLOOR


@pytest.mark.parametrize(("screens", "clean"), [(1, 0.0), (1, 1.0), (7, 0.5), (100, 0.31), (999, 0.5)])
def test_the_share_of_clean_screens_is_exact(screens: int, clean: float) -> None:
    plans = plan_screens(screens, seed=2, clean=clean)
    assert sum(not plan.labels for plan in plans) == round(clean * screens)


def test_counts_and_labels_of_a_long_plan() -> None:
    plans = plan_screens(4000, seed=9)
    counts = Counter(len(plan.labels) for plan in plans if plan.labels)
    total = sum(counts.values())
    assert set(counts) == set(range(1, MOST_DEFECTS + 1))
    assert counts[1] == round(total / 3)
    labels = Counter(label for plan in plans for label in plan.labels)
    shares = {label: labels[label] / labels.total() for label in LABELS}
    assert shares["pinhole"] > shares["scratch"] > shares["tin_ash"] > shares["bubble"] > 0.1


def test_ash_comes_with_pinholes_more_often_than_bubbles_do() -> None:
    together = Counter(pair for plan in plan_screens(4000, seed=9) for pair in _pairs(plan.labels))
    assert together["pinhole", "tin_ash"] > 2 * together["bubble", "tin_ash"]
    assert together["pinhole", "scratch"] > 1.5 * together["bubble", "scratch"]


def _pairs(labels: tuple[str, ...]) -> set[tuple[str, str]]:
    return {(a, b) for a in labels for b in labels if a < b}


def test_the_split_is_by_screen_and_even_in_clean_ones() -> None:
    plans = plan_screens(1000, seed=1)
    parts = Counter((plan.part, bool(plan.labels)) for plan in plans)
    for defective in (True, False):
        assert parts["train", defective] == 350
        assert parts["validation", defective] == parts["test", defective] == 75


def test_the_seed_decides_the_plan() -> None:
    assert plan_screens(50, seed=1) == plan_screens(50, seed=1)
    assert [p.labels for p in plan_screens(50, seed=1)] != [p.labels for p in plan_screens(50, seed=2)]
