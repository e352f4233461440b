"""A patch and its mirror image around it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.mirror import write_mirrored


@given(count=st.integers(1, 3), side=st.integers(1, 12), beyond=st.integers(0, 11), seed=st.integers(0, 9))
def test_it_is_numpys_reflection(count: int, side: int, beyond: int, seed: int) -> None:
    beyond = min(beyond, side - 1)
    patches = np.random.default_rng(seed).integers(0, 256, (count, 1, side, side), np.uint8)
    memory = np.full((count, 1, side + 2 * beyond, side + 2 * beyond), 77, np.uint8)
    write_mirrored(patches, memory)
    around = [(0, 0), (0, 0), (beyond, beyond), (beyond, beyond)]
    np.testing.assert_array_equal(memory, np.pad(patches, around, mode="reflect"))


@pytest.mark.parametrize("side", [8, 12])
def test_it_reads_the_pixels_of_a_frame_where_they_lie(side: int) -> None:
    frame = np.arange(400, dtype=np.uint8).reshape(20, 20)
    memory = np.zeros((1, 1, side, side), np.uint8)
    write_mirrored(frame[None, None, 3:11, 5:13], memory)
    beyond = (side - 8) // 2
    np.testing.assert_array_equal(memory[0, 0], np.pad(frame[3:11, 5:13], beyond, mode="reflect"))
