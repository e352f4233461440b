import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from service.meter import BLOCKS, LEAST_OF_BLOCK, STEP, Brightness, BrightnessMeter, FrameDigest

LEVELS = st.sampled_from([0, 3, 128, 254, 255])
# the shorter side of a frame whose lines are not all looked at
LARGE = STEP * LEAST_OF_BLOCK * BLOCKS
FRAMES = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=120), elements=LEVELS
) | hnp.arrays(np.uint8, st.tuples(st.integers(LARGE, LARGE + 90), st.just(LARGE)), elements=LEVELS, fill=LEVELS)


def slowly(frame: NDArray[np.uint8]) -> Brightness:
    """As the docstring says it, block by block."""
    side = max(1, min(frame.shape) // BLOCKS)
    step = 7 if side >= 140 else 1
    looked_at = np.arange(len(frame)) % step == 0
    height, width = frame.shape

    def blocks(length: int) -> list[slice]:
        starts = range(0, length - side + 1, side)
        return [slice(start, start + side if start + 2 * side <= length else length) for start in starts]

    means = [
        int(np.rint(frame[rows][looked_at[rows]][:, columns].mean()))
        for rows in blocks(height)
        for columns in blocks(width)
    ]
    saturated = float((frame[looked_at] == 255).mean())
    return Brightness(size=(height, width), contrast=max(means) - min(means), saturated_ratio=saturated)


@given(FRAMES, st.lists(st.integers(0, 120) | st.integers(0, LARGE + 90), max_size=6))
def test_in_whatever_pieces_the_lines_come_the_frame_is_as_bright(frame: NDArray[np.uint8], cuts: list[int]) -> None:
    meter = BrightnessMeter(*frame.shape)
    for lines in np.split(frame, sorted(min(cut, len(frame)) for cut in cuts)):
        meter.add(lines)
    assert meter.brightness == Brightness.of(frame) == slowly(frame)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_frame_of_one_level_has_no_contrast(level: int) -> None:
    found = Brightness.of(np.full((100, 70), level, np.uint8))
    assert (found.contrast, found.saturated_ratio) == (0, float(level == 255))


@pytest.mark.parametrize("sigma", [3.0, 5.0])
@pytest.mark.parametrize("size", [(10_000, 5_000), (4_000, 3_000), (9_000, 4_500), (7_700, 4_500), (2_300, 1_100)])
def test_the_noise_of_a_dark_frame_is_no_contrast_whatever_its_size(size: tuple[int, int], sigma: float) -> None:
    """What is left of a side beyond its last whole block may be a few pixels, whose mean is noise."""
    noise = np.random.default_rng(0).normal(12, sigma, (size[0] // 10, size[1])).clip(0, 255).astype(np.uint8)
    frame = np.tile(noise, (10, 1))
    assert Brightness.of(frame).contrast < 2


def test_a_tall_block_of_bright_lines_does_not_overflow() -> None:
    # 2,000 lines a block: its sums pass 2**24 and are exact all the same
    frame = np.full((2_000, 2_000 * BLOCKS), 255, np.uint8)
    frame[:, :2_000] = 254
    meter = BrightnessMeter(2_000 * BLOCKS, 2_000 * BLOCKS)
    meter.add(frame)
    assert meter.brightness.contrast == 1


@pytest.mark.parametrize("kinds", range(2, STEP))
@pytest.mark.parametrize("width", [1_280, 1_920, 2_560, 3_200, 3_840, 4_480, 5_120])
def test_lines_that_are_lit_by_turns_are_all_looked_at(width: int, kinds: int) -> None:
    # one in so many of its lines is too bright, as an exposure of several kinds makes them
    for bright in range(kinds):
        frame = np.full((10_240, width), 100, np.uint8)
        frame[bright::kinds] = 255
        assert Brightness.of(frame).saturated_ratio == pytest.approx(1 / kinds, rel=0.01)


def digest_of(pixels: NDArray[np.uint8], pieces: int = 1) -> str:
    digest = FrameDigest()
    for lines in np.array_split(pixels, pieces):
        digest.add(lines)
    return digest.end(*pixels.shape)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_a_digest_tells_sizes_and_pixels_apart_however_they_came(
    height: int, width: int, pieces: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    digest = digest_of(pixels)
    assert len(digest) == 32
    assert digest_of(pixels, pieces) == digest
    other = pixels.copy()
    other[-1, -1] ^= 1
    assert digest_of(other) != digest
    if height != width:
        assert digest_of(pixels.reshape(width, height)) != digest
