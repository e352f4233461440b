"""Pictures are made for people; what can be tested is that they show the right thing at the right place."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from engine import Glance, Manifest, SecondLook, TurnedLook, Window, cover, fake_manifest, read_golden
from tests.engine.precisions import LABELS, PATCH_PX
from training import explaining
from training.__main__ import app
from training.attribution import Attribution, Explanation, Looked, Stage
from training.explaining import GAP_PX, View, explain, looks, read_truth
from training.images import read_whole
from training.pictures import Picture, colour_bar, heated, words, wrapped


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
        assert two_rows.height - one_row.height > 480  # one panel more


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
        assert f"{looks(Manifest.read(bundle))}\n" in told.output
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


MAP = (1, 4, 4)  # of one window of a patch


@dataclass
class Maps:
    """Stands for an attribution: one window, two labels, and what a cell adds to each, by stage."""

    adds: dict[str, tuple[float, float]]
    probability: tuple[float, float] = (0.9, 0.8)
    added: int = 0
    turned: tuple[int, ...] = ()
    one_stage: bool = False
    manifest: Manifest = field(default_factory=lambda: fake_manifest(LABELS[:2], patch_px=PATCH_PX))

    def look(self, frame: NDArray[np.uint8]) -> Looked:
        first, second = (self._stage(name) for name in ("stage 1", "stage 2"))
        probability = np.array([self.probability], np.float32)
        explanation = Explanation(stage1=first, stage2=second, probability=probability)
        windows = (Window(0, 0, 0, 0),)
        return Looked(windows=windows, added=self.added, turned=self.turned, explanation=explanation)

    def _stage(self, name: str) -> Stage:
        part = np.zeros((1, 2, 4, 4))
        part[0, :, 1, 2] = self.adds[name]
        nothing = np.zeros((1, 2))
        return Stage(part.sum(axis=(2, 3)), part, nothing, nothing)

    def stages(self, found: Explanation) -> dict[str, Stage]:
        return {"stage 1": found.stage1, "stage 2": found.stage2}

    def units(self) -> dict[str, str]:
        return {"stage 1": "cosine", "stage 2": "logit"}


@dataclass
class Drawn:
    """A picture, what was written on it, and of every map its heat and its scale."""

    picture: Picture
    words: list[str]
    heats: list[NDArray[np.float64]]
    scales: list[tuple[float, str]]


def drawn(maps: Maps, monkeypatch: pytest.MonkeyPatch, *, least: tuple[float, float], **options: object) -> Drawn:
    said: list[str] = []
    heats: list[NDArray[np.float64]] = []
    scales: list[tuple[float, str]] = []

    def write(lines: Sequence[tuple[str, tuple[int, int, int]]], width: int, **others: object) -> Picture:
        said.extend(text for text, _ in lines)
        return words(lines, width, **others)  # type: ignore[arg-type]

    def heat(picture: Picture, by: NDArray[np.float64]) -> Picture:
        heats.append(by)
        return heated(picture, by)

    def bar(width: int, most: float, unit: str) -> Picture:
        scales.append((most, unit))
        return colour_bar(width, most, unit)

    for name, one in (("words", write), ("heated", heat), ("colour_bar", bar)):
        monkeypatch.setattr(explaining, name, one)
    frame = np.random.default_rng(0).integers(90, 120, (PATCH_PX, PATCH_PX), np.uint8)
    by_stage = dict(zip(("stage 1", "stage 2"), least, strict=True))
    picture = explaining.draw(maps, frame, [], name="a", least=by_stage, **options)  # type: ignore[arg-type]
    return Drawn(picture, said, heats, scales)


def test_all_labels_of_an_image_have_one_scale_in_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps of two labels, of which one has noise alone: it is faint beside the other, by as much as it is less."""
    maps = Maps({"stage 1": (0.002, 0.2), "stage 2": (-4.0, 0.1)})
    found = drawn(maps, monkeypatch, least=(0.01, 0.01))
    assert found.scales == [(0.2, "cosine a cell"), (4.0, "logit a cell")] * 2
    most = [float(heat.flat[np.abs(heat).argmax()]) for heat in found.heats]
    assert most == pytest.approx([0.01, -1.0, 1.0, 0.025], rel=0.02)  # of a cell's middle


def test_what_is_not_drawn_is_on_the_scale_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever labels are asked for, the same colour is the same figure."""
    maps = Maps({"stage 1": (0.002, 0.2), "stage 2": (-4.0, 0.1)})
    assert drawn(maps, monkeypatch, least=(0.01, 0.01), labels=LABELS[:1]).scales == [
        (0.2, "cosine a cell"),
        (4.0, "logit a cell"),
    ]


def test_an_image_of_noise_alone_has_no_full_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Maps({"stage 1": (0.002, 0.001), "stage 2": (0.05, -0.04)}, probability=(0.01, 0.0))
    found = drawn(noise, monkeypatch, least=(0.1, 3.0), labels=LABELS[:2])
    assert found.scales == [(0.1, "cosine a cell"), (3.0, "logit a cell")] * 2
    assert max(float(np.abs(heat).max()) for heat in found.heats) == pytest.approx(0.02, rel=0.02)


def test_the_least_that_has_full_colour_is_from_the_golden_patches(
    two_stages: Path, screen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, float]] = []

    def draw(*arguments: object, least: dict[str, float], **options: object) -> Picture:
        asked.append(least)
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(explaining, "draw", draw)
    explain(two_stages, [screen], tmp_path)
    manifest = Manifest.read(two_stages)
    golden = read_golden(two_stages, manifest=manifest)
    found = Attribution(two_stages).explain(golden.pixels)
    (least,) = asked
    for name, stage in (("stage 1", found.stage1), ("stage 2", found.stage2)):
        strongest = [
            max(np.abs(stage.map[patch, column]).max() for patch in np.flatnonzero(present))
            for column, limits in enumerate(manifest.labels.values())
            if (present := golden.probability[:, column] >= limits.threshold).any()
        ]
        assert len(strongest) > 1
        assert least[name] == pytest.approx(0.5 * min(strongest))


def test_a_map_that_says_nothing_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    found = drawn(Maps({"stage 1": (0.0, 0.0), "stage 2": (0.0, 0.0)}), monkeypatch, least=(0.0, 0.0))
    assert not any(heat.any() for heat in found.heats)


def test_a_picture_says_in_words_what_was_looked_at_and_what_its_colours_are(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = Maps({"stage 1": (0.1, 0.2), "stage 2": (1.0, 2.0)}, added=1, turned=(0,))
    said = " ".join(drawn(maps, monkeypatch, least=(0.1, 0.1)).words)
    assert "windows: 1, of them added by the second look: 1, looked at turned: 1" in said
    assert "added window 0, 0, looked at turned: 0.900" in said
    assert looks(maps.manifest) in said
    assert f"what a cell ({PATCH_PX // 4} x {PATCH_PX // 4} px) adds to the score above its map" in said
    assert "stage 1: cosine +0.10" in said
    assert "stage 2: probability 0.900" in said
    plain = drawn(replace(maps, added=0, turned=()), monkeypatch, least=(0.1, 0.1)).words
    assert "window 0, 0: 0.900" in plain


def test_which_looks_are_in_the_scores_is_said_for_each_bundle() -> None:
    none = replace(fake_manifest(LABELS, patch_px=PATCH_PX), second_look=SecondLook(score_min=0.05, ratio_max=0.0))
    assert looks(none).startswith("The bundle has no glance: ")
    for asked in ("It asks for no second look.", "It asks for no turned look."):
        assert asked in looks(none)
    every = replace(
        none,
        glance=Glance(doubt_min=0.25),
        second_look=SecondLook(score_min=0.05, ratio_max=0.5),
        turned_look=TurnedLook(score_min=0.1, score_max=0.9, ratio_max=0.2),
    )
    told = looks(every)
    assert "Scores are without the bundle's glance: in service on a CPU, windows of a doubt below 0.25 " in told
    assert "With its second look, as in service: " in told
    assert "With its turned look, as in service: of windows that score 0.1 to 0.9, up to 20% " in told
    assert "no " not in told


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
            assert window.top + 16 <= (y + 0.5) / view.zoom <= window.top + 32
            assert window.left + 32 <= (x + 0.5) / view.zoom <= window.left + 48


def test_where_windows_overlap_the_stronger_map_is_drawn_whatever_its_sign() -> None:
    view = View(np.zeros((64, 96), np.uint8), (Window(0, 0, 0, 0), Window(0, 1, 0, 32)), 64)
    merged = view.merged(np.stack([np.full((4, 4), 0.5), np.full((4, 4), -0.7)]))
    middle = merged[10]
    assert middle[int(20 * view.zoom)] == pytest.approx(0.5)
    assert middle[int(48 * view.zoom)] == middle[int(80 * view.zoom)] == pytest.approx(-0.7)


def test_words_over_a_narrow_screen_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "PANEL_PX", (40, 960))
    found = drawn(Maps({"stage 1": (0.1, 0.2), "stage 2": (-1.25, 2.0)}), monkeypatch, least=(0.1, 0.1))
    (told,) = {text for text in found.words if text.startswith("-1.25 = ")}
    assert wrapped(told, explaining.LEAST_WIDTH_PX) == [told]
    assert found.picture.shape[1] == 4 * explaining.LEAST_WIDTH_PX + 3 * GAP_PX
