from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.examples import FAIL, PASS
from service.overlay import LABEL_COLOURS, MARGIN_PX, draw
from service.picture import COLUMNS, LEAST_SIDE_PX, TAG_PX, TILE_PX, closeups, write
from service.verdict import Box, Defect, Verdict

GREY = 90
STEP = TILE_PX + MARGIN_PX
LABELS = list(FAIL.labels)
Picture = NDArray[np.uint8]


def plain(height: int, width: int) -> Picture:
    return np.full((height, width), GREY, np.uint8)


def verdict_of(*defects: tuple[str, float, tuple[int, int, int, int]]) -> Verdict:
    """Of label, score and box of each."""
    found = (
        Defect(label=label, score=score, row=0, column=0, patches=1, box=Box(left=x, top=y, right=right, bottom=bottom))
        for label, score, (x, y, right, bottom) in defects
    )
    return replace(FAIL, defects=tuple(sorted(found, key=lambda defect: -defect.score)))


def labels_of(strip: Picture) -> list[str]:
    """Whose colour each tile has, column by column."""
    rows, columns = max(1, len(strip) // STEP), strip.shape[1] // STEP
    corners = [strip[y * STEP + 2, x * STEP + MARGIN_PX + 2] for x in range(columns) for y in range(rows)]
    colours: Sequence[tuple[int, ...]] = [tuple(int(part) for part in corner) for corner in corners]
    return [LABELS[LABEL_COLOURS.index(colour)] for colour in colours if colour in LABEL_COLOURS]


def test_a_pinhole_fills_some_of_its_tile() -> None:
    frame = plain(4096, 3072)
    frame[2000:2010, 1500:1510] = 130
    strip = closeups(frame, verdict_of(("pinhole", 0.9, (1488, 1984, 1520, 2016))), 1600)
    tile = strip[TAG_PX + 2 : TILE_PX - 2, MARGIN_PX + 2 : STEP - 2]
    scale = TILE_PX / LEAST_SIDE_PX
    bright = (tile[:, :, 0] == 255).sum()
    assert bright == pytest.approx((10 * scale) ** 2, rel=0.3)  # stretched: 40 grey levels are black and white
    assert tile[0, 0, 0] < 80


def test_each_label_has_its_turn_the_surest_first() -> None:
    spot = (100, 100, 130, 130)
    verdict = verdict_of(
        ("scratch", 0.99, spot), ("scratch", 0.98, spot), ("scratch", 0.97, spot), ("pinhole", 0.6, spot)
    )
    assert labels_of(closeups(plain(700, 800), verdict, 2 * STEP)) == ["pinhole", "scratch", "scratch", "scratch"]


def test_a_screen_without_a_defect_has_no_tiles() -> None:
    assert closeups(plain(700, 800), PASS, 700).shape == (700, 0, 3)


def test_noise_is_not_stretched_to_look_like_something() -> None:
    frame = plain(700, 800) + np.random.default_rng(0).integers(0, 3, (700, 800)).astype(np.uint8)
    strip = closeups(frame, verdict_of(("bubble", 0.9, (300, 300, 400, 400))), 700)
    tile = strip[TAG_PX + 2 : TILE_PX - 2, MARGIN_PX + 2 : STEP - 2, 0]
    assert tile.std() < 15


places = st.integers(0, 400)


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.integers(1, 900),
    st.lists(
        st.tuples(st.sampled_from(LABELS), st.floats(0, 1), st.tuples(places, places, places, places)), max_size=9
    ),
)
def test_any_defects_of_any_frame_are_drawn(
    height: int, width: int, beside: int, drawn: list[tuple[str, float, tuple[int, int, int, int]]]
) -> None:
    boxes = []
    for label, score, (x, y, dx, dy) in drawn:
        left, top = min(x, width - 1), min(y, height - 1)
        boxes.append((label, score, (left, top, min(left + dx + 1, width), min(top + dy + 1, height))))
    strip = closeups(plain(height, width), verdict_of(*boxes), beside)
    shown = min(len(boxes), COLUMNS * max(1, beside // STEP))
    assert strip.shape == (beside, -(-shown // max(1, beside // STEP)) * STEP, 3)


def test_a_picture_is_a_png_whatever_its_name(tmp_path: Path) -> None:
    verdict, frame = verdict_of(("scratch", 0.9, (100, 100, 200, 200))), plain(700, 800)
    overlay = draw(frame, verdict)
    for name in ("picture.png", "picture.jpg", "picture"):
        write(tmp_path / name, frame, verdict)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        read = cv2.imread(str(tmp_path / name))
        assert read is not None
        np.testing.assert_array_equal(read[:, : overlay.shape[1]], overlay)
        np.testing.assert_array_equal(read[:, overlay.shape[1] :], closeups(frame, verdict, len(overlay)))


def test_a_picture_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        write(tmp_path / "absent" / "picture.png", plain(700, 800), PASS)
