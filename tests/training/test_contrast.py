"""Contrast is measured as the renderer means it, whatever lies beside the defect."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.boxes import read_defects
from training.contrast import LEAST_NOISE, measured
from training.images import read_whole, screen_files
from training.screens import render
from training.truth import Defect

SIDE = 96


def square(left: int, top: int, side: int, label: str = "dot", *, masked: bool = False) -> Defect:
    rows, columns = (part.ravel().astype(np.int32) for part in np.mgrid[top : top + side, left : left + side])
    mask = {"rows": rows, "columns": columns} if masked else {}
    return Defect(label=label, left=left, top=top, right=left + side, bottom=top + side, **mask)


def panel(noise: float, *, slope: float = 0.0, seed: int = 0) -> NDArray[np.float64]:
    """Grey with noise, that gets brighter from top to bottom."""
    drawn = np.random.default_rng(seed).normal(100, noise, (SIDE, SIDE))
    return np.asarray(drawn + slope * np.arange(SIDE)[:, None])


def rounded(frame: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.asarray(frame.round().clip(0, 255), np.uint8)


def one(frame: NDArray[np.float64], *defects: Defect) -> float:
    contrast = measured(rounded(frame), defects)[0].contrast
    assert contrast is not None
    return contrast


@given(
    noise=st.floats(1, 6),
    multiple=st.floats(10, 15),
    sign=st.sampled_from([-1, 1]),
    side=st.integers(3, 20),
    place=st.tuples(st.integers(0, SIDE - 20), st.integers(0, SIDE - 20)),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_the_amplitude_over_the_noise(
    noise: float, multiple: float, sign: int, side: int, place: tuple[int, int], masked: bool, seed: int
) -> None:
    left, top = place
    frame = panel(noise, slope=0.02, seed=seed)
    frame[top : top + side, left : left + side] += sign * multiple * noise
    assert 0.75 * multiple < one(frame, square(left, top, side, masked=masked)) < 1.6 * multiple


def test_what_lies_in_other_boxes_is_not_around() -> None:
    """A pinhole in a cloud of dust, whose box is all that is around it, is held against that cloud's ground."""
    frame = panel(2)
    frame[40:44, 40:44] -= 30
    alone = one(frame, square(40, 40, 4))
    frame[20:30, 30:60] += 90
    assert one(frame, square(40, 40, 4), square(10, 10, 70)) == pytest.approx(alone, rel=0.5)
    neighbour = Defect(label="line", left=30, top=20, right=60, bottom=30)
    assert one(frame, square(40, 40, 4), neighbour) == pytest.approx(alone, rel=0.2)


def test_a_frame_without_noise_has_that_of_rounding() -> None:
    frame = np.full((SIDE, SIDE), 50.0)
    frame[10:20, 10:20] = 60
    assert one(frame, square(10, 10, 10)) == pytest.approx(10 / LEAST_NOISE)


def test_what_is_told_is_kept_and_what_fills_the_frame_has_none() -> None:
    frame = rounded(panel(2))
    told = replace(square(3, 3, 5), contrast=7.0)
    assert measured(frame, [told]) == [told]
    assert measured(frame, [told, square(50, 50, 5)])[0] is told
    assert measured(frame, [square(0, 0, SIDE)])[0].contrast is None


def test_of_rendered_screens_it_is_about_what_was_drawn(tmp_path: Path) -> None:
    render(tmp_path / "data", screens=12, seed=5, width=1024, height=1024, clean=0.0, faintest=1.0)
    files = screen_files(tmp_path / "data")
    drawn, found = [], []
    for name, defects in read_defects(tmp_path / "data", screen_files(tmp_path / "data")).items():
        drawn += [defect.contrast for defect in defects]
        untold = [replace(defect, contrast=None) for defect in defects]
        found += [defect.contrast for defect in measured(read_whole(files[name]), untold)]
    ratio = np.array(found, float) / np.array(drawn, float)
    assert len(ratio) > 20
    assert 0.8 < np.median(ratio) < 1.3
    assert ((ratio > 0.5) & (ratio < 2)).mean() > 0.8
