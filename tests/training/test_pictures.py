"""Pieces of pictures: at the right place, in the right colour, whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.pictures import (
    BACKGROUND,
    BAR_PX,
    PAPER,
    QUIET,
    colour_bar,
    crop,
    heated,
    over_pixels,
    tiles,
    words,
    wrapped,
)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 64), st.sampled_from([-1.0, 1.0]), st.integers(0, 2**32))
def test_a_single_cell_is_drawn_with_its_own_value_however_small_the_picture(
    height: int, width: int, cells: int, value: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    part = np.zeros((cells, cells))
    row, column = rng.integers(cells, size=2)
    part[row, column] = value
    found = over_pixels(part, (height, width))
    assert found.shape == (height, width)
    assert found[int((row + 0.5) * height / cells), int((column + 0.5) * width / cells)] == value
    assert np.abs(found).max() == pytest.approx(1)


def test_heat_of_nothing_changes_nothing_and_signs_have_their_colours() -> None:
    grey = np.full((1, 3, 3), 128, np.uint8)
    calm, warm, cold = heated(grey, np.array([[0.0, 1.0, -1.0]]))[0].tolist()
    assert calm == [128, 128, 128]
    assert warm[0] > 180 > warm[2]
    assert cold[2] > 150 > cold[0]


@pytest.mark.parametrize("width", [40, 481])
def test_a_scale_has_the_colours_of_the_heat_and_its_numbers(width: int) -> None:
    strip = colour_bar(width, 3.04, "logit a cell")
    assert strip.shape[1:] == (width, 3)
    dark = np.full((1, 2, 3), BACKGROUND, np.uint8)
    ends = heated(dark, np.array([[-1.0, 1.0]]))[0]
    np.testing.assert_array_equal(strip[0, [0, -1]], ends)
    np.testing.assert_array_equal(strip[0, width // 2], PAPER)
    quarters = strip[BAR_PX // 2, [width // 4, 3 * width // 4]].astype(int)
    assert quarters[0, 2] > quarters[0, 0]  # bluish against it, reddish for it
    assert quarters[1, 0] > quarters[1, 2]
    written = (strip[BAR_PX:] != BACKGROUND).any(axis=2)
    numbers, unit = np.array_split(written, 2)
    third = width // 3
    for part in (numbers[:, :third], numbers[:, third : 2 * third], numbers[:, 2 * third :], unit):
        assert part.any()


def test_a_scale_tells_its_numbers_apart() -> None:
    assert (colour_bar(200, 3.0, "logit a cell") != colour_bar(200, 4.0, "logit a cell")).any()
    assert (colour_bar(200, 3.0, "logit a cell") != colour_bar(200, 3.0, "cosine a cell")).any()


def test_long_words_are_wrapped_to_what_a_strip_shows() -> None:
    text = "of windows that score from one tenth to nine tenths a mean is taken"
    for width in (90, 200, 2000):
        lines = wrapped(text, width)
        assert " ".join(lines) == text
        for line in lines:
            wide, narrow = (words([(line, QUIET)], size)[:, :width] for size in (2000, width))
            np.testing.assert_array_equal(wide, narrow)
            assert (words([(line, QUIET)], 2000)[:, width:] == BACKGROUND).all()
    assert len(wrapped(text, 2000)) == 1
    assert len(wrapped(text, 90)) > 5
    assert wrapped("unbreakable", 20) == ["unbreakable"]


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
