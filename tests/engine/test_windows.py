import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Window, cover, cut

PATCHES = st.integers(1, 40)


@st.composite
def frames(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """(height, width, patch_px, overlap_px) that can be covered."""
    patch_px = draw(PATCHES)
    height = draw(st.integers(patch_px, patch_px * 6))
    width = draw(st.integers(patch_px, patch_px * 6))
    return height, width, patch_px, draw(st.integers(0, patch_px - 1))


@given(frames())
def test_every_pixel_is_covered_by_equal_windows_inside_the_frame(frame: tuple[int, int, int, int]) -> None:
    height, width, patch_px, overlap_px = frame
    covered = np.zeros((height, width), bool)
    for window in cover(height, width, patch_px=patch_px, overlap_px=overlap_px):
        assert 0 <= window.top <= height - patch_px
        assert 0 <= window.left <= width - patch_px
        covered[window.top : window.top + patch_px, window.left : window.left + patch_px] = True
    assert covered.all()


@given(frames())
def test_windows_are_a_grid_in_row_order(frame: tuple[int, int, int, int]) -> None:
    height, width, patch_px, overlap_px = frame
    windows = cover(height, width, patch_px=patch_px, overlap_px=overlap_px)
    rows, columns = windows[-1].row + 1, windows[-1].column + 1
    assert [(w.row, w.column) for w in windows] == [(r, c) for r in range(rows) for c in range(columns)]
    assert len({(w.row, w.top) for w in windows}) == rows
    assert len({(w.column, w.left) for w in windows}) == columns
    assert [w.top for w in windows[::columns]] == sorted({w.top for w in windows})
    assert [w.left for w in windows[:columns]] == sorted({w.left for w in windows})


@given(frames())
def test_neighbours_overlap_enough_and_no_window_is_spare(frame: tuple[int, int, int, int]) -> None:
    height, width, patch_px, overlap_px = frame
    windows = cover(height, width, patch_px=patch_px, overlap_px=overlap_px)
    for length, starts in (
        (height, sorted({w.top for w in windows})),
        (width, sorted({w.left for w in windows})),
    ):
        steps = np.diff(starts)
        assert (steps <= patch_px - overlap_px).all()
        # one window fewer, as far apart as allowed, would not reach the edge
        reach = patch_px + (len(starts) - 2) * (patch_px - overlap_px)
        assert len(starts) == 1 or reach < length


@given(frames())
def test_last_window_ends_on_the_edge(frame: tuple[int, int, int, int]) -> None:
    height, width, patch_px, overlap_px = frame
    last = cover(height, width, patch_px=patch_px, overlap_px=overlap_px)[-1]
    assert (last.top + patch_px, last.left + patch_px) == (height, width)


@pytest.mark.parametrize(
    ("size", "overlap_px", "count", "last"),
    [
        # the default frame: 5 columns, 10 rows, nothing shared
        ((10240, 5120), 0, 50, Window(9, 4, 9216, 4096)),
        # one pixel more in each direction: one more row and column, shifted inwards
        ((10241, 5121), 0, 66, Window(10, 5, 9217, 4097)),
        # no multiple of the patch
        ((4096, 3000), 0, 12, Window(3, 2, 3072, 1976)),
        # exactly one patch
        ((1024, 1024), 0, 1, Window(0, 0, 0, 0)),
        # overlap that divides evenly: stride 512
        ((2048, 1024), 512, 3, Window(2, 0, 1024, 0)),
        # the largest overlap: a window at every pixel
        ((1026, 1024), 1023, 3, Window(2, 0, 2, 0)),
    ],
)
def test_known_frames(size: tuple[int, int], overlap_px: int, count: int, last: Window) -> None:
    windows = cover(*size, patch_px=1024, overlap_px=overlap_px)
    assert len(windows) == count
    assert windows[0] == Window(0, 0, 0, 0)
    assert windows[-1] == last


@pytest.mark.parametrize(
    ("size", "patch_px", "overlap_px", "message"),
    [
        ((1023, 5120), 1024, 0, "5120 x 1023 pixels is smaller than a patch of 1024"),
        ((5120, 1023), 1024, 0, "smaller than a patch"),
        ((0, 0), 1, 0, "smaller than a patch"),
        ((64, 64), 64, 64, r"overlap_px must be in \[0, 64\)"),
        ((64, 64), 64, -1, "overlap_px must be"),
        ((64, 64), 0, 0, "patch_px must be at least 1"),
    ],
)
def test_impossible_sizes_are_refused(size: tuple[int, int], patch_px: int, overlap_px: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cover(*size, patch_px=patch_px, overlap_px=overlap_px)


@given(frames())
def test_patches_are_the_pixels_under_the_windows(frame: tuple[int, int, int, int]) -> None:
    height, width, patch_px, overlap_px = frame
    pixels = np.random.default_rng(height).integers(0, 256, (height, width), np.uint8)
    windows = cover(height, width, patch_px=patch_px, overlap_px=overlap_px)
    patches = cut(pixels, windows, patch_px)
    assert patches.shape == (len(windows), 1, patch_px, patch_px)
    assert patches.dtype == np.uint8
    rebuilt = np.zeros_like(pixels)
    for patch, window in zip(patches, windows, strict=True):
        rebuilt[window.top : window.top + patch_px, window.left : window.left + patch_px] = patch[0]
    assert (rebuilt == pixels).all()


@pytest.mark.parametrize(
    ("places", "same"),
    [
        ([(4, 0), (4, 8), (4, 16)], True),
        ([(4, 1), (4, 4)], True),  # they overlap
        ([(3, 5)], True),
        ([(4, 0), (4, 8), (4, 15)], False),  # the last was shifted inwards
        ([(4, 8), (4, 0)], False),
        ([(4, 8), (4, 8)], True),
        ([(0, 8), (8, 0)], False),
        ([(0, 5), (4, 5), (8, 5)], True),
        ([(0, 5), (4, 5), (7, 5)], False),
        ([(6, 8), (7, 12), (8, 16)], True),
        ([(8, 16), (7, 12), (6, 8)], False),
    ],
)
def test_patches_by_equal_steps_are_the_frames_own_memory(places: list[tuple[int, int]], same: bool) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (16, 24), np.uint8)
    patches = cut(frame, [Window(0, 0, top, left) for top, left in places], 8)
    assert np.shares_memory(patches, frame) == same
    assert not patches.flags.writeable
    for patch, (top, left) in zip(patches, places, strict=True):
        assert (patch[0] == frame[top : top + 8, left : left + 8]).all()


def test_cutting_nothing_gives_no_patches() -> None:
    assert cut(np.zeros((8, 8), np.uint8), (), 4).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("window", [Window(0, 0, 5, 0), Window(0, 0, 0, 5), Window(0, 0, -1, 0)])
def test_a_window_outside_the_frame_is_refused(window: Window) -> None:
    with pytest.raises(ValueError, match="leaves the frame"):
        cut(np.zeros((8, 8), np.uint8), [window], 4)


def test_a_frame_with_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        cut(np.zeros((8, 8, 3), np.uint8), [Window(0, 0, 0, 0)], 4)
