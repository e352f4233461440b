"""The growth part on a bundle of small patches, and its picture; what it measures at full size is not looked at."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from service.bench import growth, picture
from service.bench.curves import Curve, Panel
from service.bench.line import cpu_s
from service.bench.report import BenchError
from service.bench.work import Work
from tests.bundles import BACKGROUND, tiny_bundle

FRAME = np.random.default_rng(3).integers(BACKGROUND - 20, BACKGROUND + 21, (192, 128), np.uint8)
ALPHABET = ("a", "b", "c", "d", "e", "f")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(bundle=tiny_bundle(tmp_path / "bundle"), frames=[FRAME], seconds=0.1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(folder: Path, labels: Sequence[int], patch_px: int) -> None:
        for count in labels:
            tiny_bundle(folder / str(count), labels=ALPHABET[:count], patch_px=patch_px)

    monkeypatch.setattr(growth, "AREAS", ((1, 1), (2, 1), (3, 2)))
    monkeypatch.setattr(growth, "LABELS", (2, 3))
    monkeypatch.setattr(growth, "TOGETHER", (1, 8))
    monkeypatch.setattr(growth, "IN_FLIGHT", (1, 2))
    monkeypatch.setattr(growth, "REPEATS", (2, 2))
    monkeypatch.setattr(growth, "_make_untrained", make)


def test_every_question_has_its_curves(work: Work) -> None:
    told = list[str]()
    rows = list(growth.measure(Work(bundle=work.bundle, frames=[FRAME], seconds=0.1, tell=told.append)))
    assert [row.name for row in rows] == [
        "Frame area, Mpx",
        "Labels, labels",
        "Reasoning, patches together",
        "Screens in flight, screens",
    ]
    area, labels, together, flight = (row.figures for row in rows)
    assert area["sizes"] == [64 * 64 / 1e6, 2 * 64 * 64 / 1e6, 6 * 64 * 64 / 1e6]
    assert (labels["sizes"], together["sizes"], flight["sizes"]) == ([2, 3], [1, 8], [1, 2])
    assert set(area["curves"]) == {"wall", "CPU", "decode", "features", "reasoning", "aggregate"}
    assert set(together["curves"]) == {"wall", "CPU"}
    assert set(flight["curves"]) == {*area["curves"], "receive", "queue"}
    assert area["samples"] == [2, 2, 2]
    assert all(rate > 0 for rate in flight["screens_per_s"])
    assert "2 screens in flight" in told
    for figures in (area, labels, together, flight):
        wall = figures["curves"]["wall"]
        assert all(0 < low <= high for low, high in zip(wall["low_s"], wall["high_s"], strict=True))


def test_without_networks_of_many_labels_the_rest_is_measured(
    work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise BenchError("no torch")

    monkeypatch.setattr(growth, "_make_untrained", refuse)
    monkeypatch.setattr(growth, "_area", growth._together)
    monkeypatch.setattr(growth, "_in_flight", growth._together)
    rows = list(growth.measure(work))
    assert [row.found.partition(":")[0] == "not measured" for row in rows] == [False, True, False, False]
    assert [row.passed for row in rows] == [None, False, None, None]


def test_stages_are_measured_of_the_frame_that_was_asked_for(work: Work) -> None:
    frame = growth._frame(work, 500, 300)
    assert frame.shape == (500, 300)
    assert np.array_equal(frame[192:384, 128:256], FRAME)


def test_the_cpu_time_of_this_process_rises() -> None:
    import os

    before = cpu_s(os.getpid())
    total = 0
    while cpu_s(os.getpid()) == before:
        total += sum(range(1000))
    assert total


def panel(title: str, names: Sequence[str] = ("wall", "CPU", "features")) -> Panel:
    curve = Curve(sizes=(1, 2, 4, 8), low_s=(1, 1, 2, 4), median_s=(2, 2, 4, 8), high_s=(3, 3, 5, 9))
    return Panel(title=title, unit="units", curves=dict.fromkeys(names, curve), figures={})


@pytest.mark.parametrize("panels", [1, 3])
def test_the_picture_is_drawn_at_its_size(panels: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[bench]'")
    picture.draw([panel(str(number)) for number in range(panels)], tmp_path / "growth.png")
    drawn = cv2.imread(str(tmp_path / "growth.png"))
    assert drawn is not None
    assert drawn.shape == (1280, 1600, 3)
    assert drawn.min() < 30  # black lines
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50


def test_without_matplotlib_it_is_said_before_anything_is_measured(
    work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    asked = Work(bundle=work.bundle, frames=[FRAME], seconds=0.1, picture=tmp_path / "growth.png")
    with pytest.raises(BenchError, match=r"pip install '\.\[bench\]'"):
        next(growth.measure(asked))
