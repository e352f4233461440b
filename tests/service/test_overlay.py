from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.examples import FAIL, PASS, VERDICTS
from service.overlay import (
    BACKGROUND,
    LABEL_COLOURS,
    LEAST_BOX_PX,
    LEAST_WIDTH_PX,
    LONGEST_PX,
    MARGIN_PX,
    ROW_PX,
    VERDICT_COLOURS,
    Colour,
    draw,
)
from service.verdict import Box, Defect, LabelResult, Verdict

GREY = 90
LEGEND_PX = 5 * ROW_PX + MARGIN_PX  # a line for the verdict, and one for each of four labels
COLOUR = dict(zip(PASS.labels, LABEL_COLOURS, strict=False))
Picture = NDArray[np.uint8]


def plain(height: int, width: int) -> Picture:
    return np.full((height, width), GREY, np.uint8)


def with_defects(*boxes: tuple[int, int, int, int], label: str = "scratch") -> Verdict:
    """A verdict with these boxes (left, top, right, bottom), the first the surest."""
    defects = tuple(
        Defect(
            label=label,
            score=0.99 - index / 1000,
            row=0,
            column=0,
            patches=1,
            box=Box(left=left, top=top, right=right, bottom=bottom),
        )
        for index, (left, top, right, bottom) in enumerate(boxes)
    )
    return replace(FAIL, defects=defects)


def extent(picture: Picture, colour: Colour) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of everything of one colour, below the legend."""
    rows, columns = np.nonzero((picture[LEGEND_PX:] == colour).all(2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def outlined(picture: Picture, box: tuple[int, int, int, int], colour: Colour) -> bool:
    """Whether all four edges of a box of the picture (legend aside) are drawn."""
    below = (picture[LEGEND_PX:] == colour).all(2)
    left, top, right, bottom = box
    edges = below[top, left:right], below[bottom - 1, left:right], below[top:bottom, left], below[top:bottom, right - 1]
    return all(edge.mean() > 0.95 for edge in edges)  # a name may hide a corner


def test_a_small_frame_keeps_its_size_under_the_legend() -> None:
    picture = draw(plain(700, 800), PASS)
    assert picture.shape == (700 + LEGEND_PX, 800, 3)
    assert (picture[LEGEND_PX:] == GREY).all()


@pytest.mark.parametrize(
    ("size", "small"),
    [
        # the default frame
        ((10240, 5120), (1600, 800)),
        # lying down
        ((1000, 3200), (500, 1600)),
        # exactly as long as a picture may be
        ((1600, 1600), (1600, 1600)),
        # a strip: never less than a pixel
        ((64, 640000), (1, 1600)),
    ],
)
def test_a_large_frame_becomes_small(size: tuple[int, int], small: tuple[int, int]) -> None:
    picture = draw(plain(*size), PASS)
    assert picture.shape == (small[0] + LEGEND_PX, max(small[1], LEAST_WIDTH_PX), 3)
    assert max(small) <= LONGEST_PX


def test_a_narrow_frame_is_widened_for_the_legend_and_not_stretched() -> None:
    picture = draw(plain(300, 100), PASS)
    assert picture.shape[1] == LEAST_WIDTH_PX
    assert (picture[LEGEND_PX:, :100] == GREY).all()
    assert (picture[LEGEND_PX:, 100:] == BACKGROUND).all()


def test_the_frame_itself_is_not_changed() -> None:
    frame = plain(700, 800)
    draw(frame, with_defects((100, 100, 200, 200)))
    assert (frame == GREY).all()


def test_a_defect_is_outlined_in_the_colour_of_its_label() -> None:
    verdict = with_defects((300, 400, 500, 480))
    picture = draw(plain(700, 800), verdict)
    assert outlined(picture, (300, 400, 500, 480), COLOUR["scratch"])
    for label, colour in COLOUR.items():
        drawn = (picture[LEGEND_PX:] == colour).all(2).any()
        assert drawn == (label == "scratch")


def test_boxes_shrink_with_their_frame() -> None:
    picture = draw(plain(6400, 3200), with_defects((400, 800, 1200, 2000)))
    assert outlined(picture, (100, 200, 300, 500), COLOUR["scratch"])


@pytest.mark.parametrize(
    ("box", "drawn"),
    [
        # would be half a pixel: grown on all sides
        ((1600, 1600, 1602, 1602), (392, 392, 409, 409)),
        # in a corner of the frame: grown inwards
        ((0, 0, 2, 2), (0, 0, 17, 17)),
        ((3198, 6398, 3200, 6400), (783, 1583, 800, 1600)),
        # long and thin: grown across alone
        ((400, 1600, 2000, 1604), (100, 392, 500, 409)),
    ],
)
def test_a_dot_is_drawn_large_enough_to_be_seen(
    box: tuple[int, int, int, int], drawn: tuple[int, int, int, int]
) -> None:
    picture = draw(plain(6400, 3200), with_defects(box))
    assert min(drawn[2] - drawn[0], drawn[3] - drawn[1]) >= LEAST_BOX_PX
    assert outlined(picture, drawn, COLOUR["scratch"])


def test_names_of_close_defects_do_not_cover_each_other() -> None:
    apart = [(100 + 200 * index, 300, 150 + 200 * index, 350) for index in range(3)]
    close = [(100 + 20 * index, 300, 150 + 20 * index, 350) for index in range(3)]
    areas = []
    for boxes in (apart, close):
        with_names = draw(plain(700, 800), with_defects(*boxes))
        # the ink of the names, which no outline but only a name lays on the label's colour
        areas.append(int((with_names[LEGEND_PX:] == COLOUR["scratch"]).all(2).sum()))
    # three filled tags in either picture; where the boxes overlap, only their outlines lose
    assert areas[1] > 0.9 * areas[0]


def test_a_crowd_is_drawn_without_names_rather_than_not_at_all() -> None:
    boxes = [(10 * column, 10 * row, 10 * column + 9, 10 * row + 9) for row in range(70) for column in range(80)]
    picture = draw(plain(700, 800), with_defects(*boxes))
    assert picture.shape == (700 + LEGEND_PX, 800, 3)


@pytest.mark.parametrize("kind", VERDICTS)
def test_the_legend_has_the_colour_of_the_verdict(kind: str) -> None:
    legend = draw(plain(700, 800), VERDICTS[kind])[:LEGEND_PX]
    shown = {name: bool((legend == colour).all(2).any()) for name, colour in VERDICT_COLOURS.items()}
    assert shown == {name: name == kind for name in VERDICT_COLOURS}


def test_the_legend_has_a_line_for_each_label_in_its_colour() -> None:
    legend = draw(plain(700, 800), PASS)[:LEGEND_PX]
    tops = [int(np.nonzero((legend == colour).all(2).any(1))[0].min()) for colour in COLOUR.values()]
    assert np.diff(tops).tolist() == [ROW_PX] * 3


def test_more_labels_than_colours_use_them_again() -> None:
    clean = LabelResult(score=0.0, count=0, threshold=0.5, present=False)
    verdict = replace(with_defects((100, 100, 200, 200), label="l7"), labels={f"l{k}": clean for k in range(8)})
    picture = draw(plain(700, 800), verdict)
    assert picture.shape[0] == 700 + 9 * ROW_PX + MARGIN_PX
    assert (picture[-500:] == LABEL_COLOURS[7 % len(LABEL_COLOURS)]).all(2).any()


@given(st.integers(64, 900), st.integers(64, 900), st.data())
def test_whatever_the_boxes_nothing_is_drawn_outside_of_the_frame(height: int, width: int, data: st.DataObject) -> None:
    def box(draw_: st.DrawFn) -> tuple[int, int, int, int]:
        left, top = draw_(st.integers(0, width - 1)), draw_(st.integers(0, height - 1))
        return left, top, draw_(st.integers(left + 1, width)), draw_(st.integers(top + 1, height))

    boxes = data.draw(st.lists(st.composite(box)(), min_size=1, max_size=4))
    picture = draw(plain(height, width), with_defects(*boxes))
    assert picture.shape == (height + LEGEND_PX, max(width, LEAST_WIDTH_PX), 3)
    # the surest defect's outline is drawn, and in it is what was boxed
    left, top, right, bottom = extent(picture, COLOUR["scratch"])
    assert left <= min(b[0] for b in boxes)
    assert top <= min(b[1] for b in boxes)
    assert right >= max(b[2] for b in boxes)
    assert bottom >= max(b[3] for b in boxes)


def test_a_dark_frame_is_shown_brighter_and_the_legend_says_so() -> None:
    dark = np.full((700, 800), 20, np.uint8)
    picture = draw(dark, PASS)
    assert (picture[LEGEND_PX:] == 160).all()
    legend = draw(plain(700, 800), PASS)[:ROW_PX]
    assert (picture[:ROW_PX] != legend).any()
    assert (draw(np.zeros((700, 800), np.uint8), PASS)[LEGEND_PX:] == 0).all()
