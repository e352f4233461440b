"""The worst mistakes come first, and unknown labels are none."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from tests.bundles import tiny_bundle
from tests.training.data_form import write_screens
from training.__main__ import app
from training.cutting import cut
from training.mistakes import COLUMNS, CROP_PX, mistakes, shown, worst

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
    found = worst(bundle, [data], tmp_path / "worst.png", part=None, count=5)
    arguments = ["worst", "--bundle", str(bundle), "--data", str(data), "--part", "all", "--count", "5"]
    answer = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "again.png")])
    assert answer.exit_code == 0, answer.output
    assert f"dot: {len(found['dot'].missed)} missed, 0 false alarms" in answer.output
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "worst.png").read_bytes()
    assert list(found) == list(LABELS)
    assert all(len(wrong.missed) >= 5 for wrong in found.values())
    with Image.open(tmp_path / "worst.png") as sheet:
        assert sheet.width == COLUMNS * (CROP_PX + 2)
        rows = (sheet.height - 100) // (CROP_PX + 2)
    assert rows >= 2


def test_a_picture_of_no_kind_is_refused(data: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", labels=LABELS, patch_px=64)
    with pytest.raises(ValueError, match="extension"):
        worst(bundle, [data], tmp_path / "worst.txt", part="test", count=2)
