import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from engine import BundleError, Manifest, SecondLook, TurnedLook, cover
from tests.bundles import BACKGROUND, REACH, grey_of, tiny_bundle
from training.__main__ import app
from training.bands import BORDER_BANDS
from training.borders import _inspect, compare, distance, iou, manners
from training.boxes import read_defects
from training.crossing import BESIDE_PX, cross
from training.images import screen_files
from training.rows import read_rows
from training.truth import Defect

PATCH_PX = 64
BOX = ["left", "top", "right", "bottom"]


def write(folder: Path, *spots: tuple[str, int, tuple[int, int]], size: tuple[int, int] = (192, 192)) -> Path:
    """Screens "clean" and "bad", on the second of which each of `spots` (label, grey, (top, left)) is 4 px large."""
    (folder / "screens").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(BACKGROUND - 20, BACKGROUND + 21, size).astype(np.uint8)
    cv2.imwrite(str(folder / "screens" / "clean.png"), pixels)
    rows = []
    for label, grey, (top, left) in spots:
        pixels[top : top + 4, left : left + 4] = grey
        rows.append(f"bad,{label},{left},{top},{left + 4},{top + 4},16")
    cv2.imwrite(str(folder / "screens" / "bad.png"), pixels)
    (folder / "boxes.csv").write_text("\n".join([f"screen,label,{','.join(BOX)},area_px", *rows, ""]))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "bundle")


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_RUNTIME", "onnxruntime")


def test_the_same_screens_are_inspected_in_each_manner_and_judged_by_distance(tmp_path: Path, bundle: Path) -> None:
    # a sure one that a border crosses, and a doubtful one that touches it: seen again, by one window more
    source = write(tmp_path / "data", ("bubble", grey_of(0), (62, 20)), ("pinhole", grey_of(1) + REACH // 2, (90, 60)))
    found = compare(bundle, source, manners(Manifest.read(bundle)))
    assert {name: (round(m.windows, 3), m.windows_most) for name, m in found.items()} == {
        "once": (1.0, 1.0),
        "second look": (round(19 / 18, 3), 10 / 9),
        "turned, too": (round((19 + 7) / 18, 3), (10 + 7) / 9),
        "half overlap": (round(25 / 9, 3), 25 / 9),
    }
    for manner in found.values():
        assert {band: share[:2] for band, share in manner.found.items()} == {"crossed": (1, 1), "0-16 px": (0, 1)}
        assert manner.found_by_label["bubble"]["crossed"][:2] == (1, 1)
        assert manner.judgement.escape[:2] == manner.judgement.overkill[:2] == (0, 1)
        assert 0 < manner.box_overlap["crossed"] < 1
        assert manner.false_boxes == manner.false_boxes_clean == 0


def test_a_bundle_with_a_second_look_is_measured_with_its_own(bundle: Path) -> None:
    own, turned = SecondLook(score_min=0.25, ratio_max=0.25), TurnedLook(score_min=0.25, score_max=0.5, ratio_max=0.2)
    manifest = replace(Manifest.read(bundle), overlap_px=16, second_look=own, turned_look=turned)
    served = manners(manifest)
    assert served["second look"].second_look == own
    assert served["turned, too"].turned_look == turned
    assert [m.overlap_px for m in served.values()] == [0, 0, 0, PATCH_PX // 2]
    assert [m.second_look.ratio_max for m in served.values()] == [0, 0.25, 0.25, 0]
    assert [m.turned_look.ratio_max for m in served.values()] == [0, 0, 0.2, 0]


def test_what_the_service_cannot_inspect_is_told_in_its_words(tmp_path: Path, bundle: Path) -> None:
    served, data = manners(Manifest.read(bundle)), write(tmp_path / "data")
    (bundle / "MODEL_CARD.md").write_text("another")
    with pytest.raises(BundleError, match="was altered"):
        compare(bundle, data, served)
    with pytest.raises(ValueError, match=r"could not inspect them: .*MODEL_CARD.md.*was altered"):
        _inspect(bundle, list((data / "screens").iterdir()))


def test_the_command_prints_both_tables_and_writes_their_figures(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = {"windows_inferred": 4, "windows_extra": 1, "windows_turned": 0}
    monkeypatch.setattr(
        "training.borders._inspect",
        lambda _, files: json.dumps(
            [{"screen_id": f.stem, "verdict": "pass", "labels": {}, "defects": [], "proof": proof} for f in files]
        ),
    )
    source = write(tmp_path / "data", ("bubble", grey_of(0), (90, 90)))
    figures = tmp_path / "figures.json"
    arguments = ["borders", "--bundle", str(bundle), "--data", str(source), "--crossing", "1", "--json", str(figures)]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    assert "overlap" in answer.output
    assert "1 frames with a defect on a border" in " ".join(answer.output.split())
    written = json.loads(figures.read_text())
    assert set(written) == {"screens", "crossing"}
    for part, windows in (("screens", 5 / 9), ("crossing", 5 / 4)):
        once = written[part]["once"]
        assert once["windows"] == once["windows_most"] == windows
        assert sum(total for _, total, *_ in once["found"].values()) == 1
    assert set(written["crossing"]["once"]["found"]) <= {"crossed", "0-16 px"}


# --- geometry ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "expected"),
    [((60, 68), -1), ((63, 65), -1), ((64, 70), 0), ((50, 64), 0), ((70, 80), 6), ((0, 4), 60), ((188, 192), 60)],
)
def test_the_distance_is_to_the_nearest_border_inside_the_frame(span: tuple[int, int], expected: int) -> None:
    assert distance(*span, {0, 64, 128}, 64) == expected


def test_windows_that_shift_inwards_have_two_borders_each() -> None:
    starts = {window.left for window in cover(64, 160, patch_px=64)}  # 0, 64, 96
    assert [distance(low, low + 2, starts, 64) for low in (95, 96, 127, 129)] == [-1, 0, -1, 1]


def test_a_frame_of_one_window_has_no_border() -> None:
    low, high = BORDER_BANDS["from 64 px"]
    assert low <= distance(3, 5, {0}, 64) < high
    assert BORDER_BANDS["from 64 px"][1] == sys.maxsize


SPANS = st.tuples(st.integers(0, 40), st.integers(1, 20)).map(lambda span: (span[0], span[0] + span[1]))


@given(SPANS, SPANS, SPANS, SPANS)
def test_overlap_of_boxes_is_that_of_their_pixels(
    rows: tuple[int, int], columns: tuple[int, int], other_rows: tuple[int, int], other_columns: tuple[int, int]
) -> None:
    one, other = (np.zeros((60, 60), np.bool_) for _ in range(2))
    one[slice(*rows), slice(*columns)] = True
    other[slice(*other_rows), slice(*other_columns)] = True
    defect = Defect(label="dot", left=columns[0], right=columns[1], top=rows[0], bottom=rows[1])
    box = dict(zip(BOX, (other_columns[0], other_rows[0], other_columns[1], other_rows[1]), strict=True))
    assert iou(defect, box) == pytest.approx((one & other).sum() / (one | other).sum())


@settings(max_examples=20)  # each writes and reads pictures
@given(st.integers(0, 2**32 - 1))
def test_a_border_runs_through_each_crossing_frame(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("crossing")
    spots = [
        ("bubble", 255, (int(top), int(left))) for top, left in np.random.default_rng(seed).integers(0, 188, (5, 2))
    ]
    spots.append(("bubble", 255, (94, 94)))  # which has room on all sides
    source = write(folder / "data", *spots)
    count = cross(source, folder / "out", patch_px=PATCH_PX, most=len(spots), seed=seed)
    assert 1 <= count <= len(spots)
    defects = read_defects(folder / "out", screen_files(folder / "out"))
    assert len(defects) == len(read_rows(folder / "out" / "boxes.csv")) == count
    for name, (defect,) in defects.items():
        frame = cv2.imread(str(folder / "out" / "screens" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        assert frame is not None
        assert frame.shape == (2 * PATCH_PX, 2 * PATCH_PX)
        assert (frame[defect.top : defect.bottom, defect.left : defect.right] == 255).all()
        nearest = min(
            distance(low, high, {0, PATCH_PX}, PATCH_PX)
            for low, high in ((defect.top, defect.bottom), (defect.left, defect.right))
        )
        assert nearest < BESIDE_PX
