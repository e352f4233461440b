"""The worst mistakes come first, and unknown labels are none."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont
from typer.testing import CliRunner

from engine import Glance
from tests.bundles import BACKGROUND, grey_of, tiny_bundle
from tests.training.data_form import write_screens
from training import mistakes as sheet_of
from training.__main__ import app
from training.cutting import cut
from training.mistakes import COLUMNS, CROP_PX, fitted, mistakes, shown, worst
from training.pictures import FOR, Colour, Picture, words

LABELS = ("dot", "line")


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]), st.sampled_from([1, 0, -1])), min_size=1))
def test_mistakes_are_those_of_a_loop(patches: list[tuple[float, int]]) -> None:
    probability = np.array([[score] for score, _ in patches], np.float32)
    (found,) = mistakes(probability, np.array([[truth] for _, truth in patches], np.int8), [0.5])
    missed = [k for k, (score, truth) in enumerate(patches) if truth == 1 and score < 0.5]
    false_alarms = [k for k, (score, truth) in enumerate(patches) if truth == 0 and score >= 0.5]
    assert found.missed == sorted(missed, key=lambda k: patches[k][0])
    assert found.false_alarms == sorted(false_alarms, key=lambda k: -patches[k][0])


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_half_of_either_kind_unless_there_are_fewer(missed: int, false_alarms: int, count: int) -> None:
    one, other = shown(list(range(missed)), list(range(false_alarms)), count)
    assert len(one) + len(other) == min(count, missed + false_alarms)
    assert len(one) >= min(missed, count // 2)
    assert len(other) >= min(false_alarms, count // 2)
    assert one == list(range(len(one)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    cut(write_screens(folder / "source", screens=15), folder / "cut", patch_px=64, labels=LABELS)
    return folder / "cut"


def test_the_sheet_has_a_row_of_tiles_for_each_kind_of_mistake(data: Path, tmp_path: Path) -> None:
    """The hand-made bundle looks for grey levels that dots and lines do not have: all are missed."""
    bundle = tiny_bundle(tmp_path / "bundle", labels=LABELS, patch_px=64)
    sheet = worst(bundle, [data], tmp_path / "worst.png", part=None, count=5)
    arguments = ["worst", "--bundle", str(bundle), "--data", str(data), "--part", "all", "--count", "5"]
    answer = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "again.png"), "--json", "-"])
    assert answer.exit_code == 0, answer.output
    missed = {label: len(wrong.missed) for label, wrong in sheet.mistakes.items()}
    assert f"dot: {missed['dot']} missed, 0 false alarms" in answer.stderr
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "worst.png").read_bytes()
    assert list(missed) == list(LABELS)
    assert all(count >= 5 for count in missed.values())
    told = json.loads(answer.stdout)
    assert told["mistakes"] == {label: {"missed": count, "false_alarms": 0} for label, count in missed.items()}
    assert [(tile["label"], tile["patch"]) for tile in told["tiles"]] == [(t.label, t.patch) for t in sheet.tiles]
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.width == COLUMNS * (CROP_PX + 2)
        rows = (picture.height - 100) // (CROP_PX + 2)
    assert rows >= 2


def test_each_tile_is_told_by_patch_label_and_score(data: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", labels=LABELS, patch_px=64)
    sheet = worst(bundle, [data], tmp_path / "worst.png", part=None, count=5)
    arguments = ["worst", "--bundle", str(bundle), "--data", str(data), "--part", "all", "--count", "5"]
    answer = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "worst.png")])
    rows = [line.replace("│", " ").split() for line in answer.stdout.splitlines() if line.startswith("│")]
    assert len(sheet.tiles) == 10
    assert rows == [[tile.label, tile.mistake, f"{tile.score:.3f}", tile.patch] for tile in sheet.tiles]


@given(st.text(st.sampled_from("abWi_-0"), min_size=1, max_size=80))
def test_a_long_name_keeps_both_ends(name: str) -> None:
    told, font = fitted(name, 244), ImageFont.load_default(14)
    assert font.getlength(told) <= 244
    first, cut_out, last = told.partition("...")
    assert name.startswith(first)
    assert name.endswith(last)
    if cut_out:
        assert abs(len(first) - len(last)) <= 1
        more = len(first) + len(last) + 1  # for which there is no room
        assert font.getlength(f"{name[: more // 2]}...{name[more // 2 - more :]}") > 244
    else:
        assert first == name


def test_two_patches_of_a_screen_with_a_long_name_have_captions_of_their_own() -> None:
    names = [f"line3_2026-05-01T12-30-22_SN0123456789_{row:02d}_03" for row in range(2)]
    one, other = (words([(fitted(name, CROP_PX - 12), FOR)], CROP_PX) for name in names)
    assert (one != other).any()
    assert not (one[:, -6:] != one[0, 0]).any()  # nothing is cut off


def test_a_defect_that_the_glance_missed_is_told_from_one_that_the_network_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spot that the network sees, of a doubt below the glance's limit: its map is warm, and the caption says why."""
    image = np.full((64, 64), BACKGROUND, np.uint8)
    image[16:24, 16:24] = grey_of(0) + 2  # three quarters of the activation that there may be, and of the doubt
    source = tmp_path / "source"
    (source / "screens").mkdir(parents=True)
    cv2.imwrite(str(source / "screens" / "s0.png"), image)
    (source / "boxes.csv").write_text("screen,label,left,top,right,bottom,area_px\ns0,dot,16,16,24,24,64\n")
    (source / "splits.csv").write_text("screen,part\ns0,test\n")
    cut(source, tmp_path / "cut", patch_px=64, labels=LABELS)
    said: list[tuple[str, Colour]] = []

    def heard(lines: list[tuple[str, Colour]], width: int, *, size: int = 14) -> Picture:
        said.extend(lines)
        return words(lines, width, size=size)

    monkeypatch.setattr(sheet_of, "words", heard)
    plain = tiny_bundle(tmp_path / "plain", labels=LABELS)
    assert worst(plain, [tmp_path / "cut"], tmp_path / "none.png", part="test", count=2).tiles == []
    glancing = tiny_bundle(tmp_path / "glancing", labels=LABELS, glance=Glance(doubt_min=0.9))
    (tile,) = worst(glancing, [tmp_path / "cut"], tmp_path / "worst.png", part="test", count=2).tiles
    assert (tile.patch, tile.mistake, tile.doubt) == ("s0_00_00.png", "missed", 0.75)
    assert "cleared by the glance, doubt 0.75" in [line for line, _ in said]
    with Image.open(tmp_path / "worst.png") as picture:
        sheet = np.asarray(picture)[-CROP_PX:]  # without the captions
    assert (sheet == FOR).all(axis=-1).any()  # the network's map is drawn


def test_a_picture_of_no_kind_is_refused(data: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", labels=LABELS, patch_px=64)
    with pytest.raises(ValueError, match="extension"):
        worst(bundle, [data], tmp_path / "worst.txt", part="test", count=2)
