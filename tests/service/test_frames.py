"""Memory of frames: lent again once nobody has it, never before, and not kept without a bound."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import Window, cut
from service.frames import FrameMemory


def address(array: NDArray[np.uint8]) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def test_what_is_over_is_lent_again() -> None:
    memory = FrameMemory()
    frame = memory.lend(100)
    before = address(frame)
    del frame
    assert memory.free_bytes == 100
    assert address(memory.lend(100)) == before


@pytest.mark.parametrize(
    "view",
    [
        lambda frame: frame.reshape(10, 10),
        lambda frame: frame.reshape(10, 10)[2:][:, 3:].T[::2],
        lambda frame: frame.data,
        lambda frame: cut(frame.reshape(10, 10), [Window(0, 0, 2, 0), Window(0, 1, 2, 5)], 5)[1:],
        lambda frame: frame.reshape(10, 10).data[4:],
    ],
)
def test_a_view_holds_it(view: object) -> None:
    memory = FrameMemory()
    frame = memory.lend(100)
    held = view(frame)  # type: ignore[operator]
    del frame
    assert memory.free_bytes == 0
    del held
    assert memory.free_bytes == 100


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.integers(0, 8))
def test_no_two_have_the_same_and_no_more_is_kept_than_may_be(sizes: list[int], most: int) -> None:
    memory = FrameMemory(kept_bytes=most)
    lent: list[NDArray[np.uint8]] = []
    for number, size in enumerate(sizes):
        frame = memory.lend(size)
        frame[:] = number
        lent.append(frame)
        if number % 3 == 2:
            lent = lent[len(lent) // 2 :]
        assert memory.free_bytes <= most
    kept = sizes[len(sizes) - len(lent) :]
    for number, (frame, size) in enumerate(zip(lent, kept, strict=True), start=len(sizes) - len(lent)):
        assert frame.tolist() == [number] * size


def test_frames_of_another_size_take_the_place_of_those_before() -> None:
    memory = FrameMemory()
    for frame in [memory.lend(100) for _ in range(3)]:
        del frame
    memory.lend(50)
    assert memory.free_bytes == 50


def test_threads_share_it() -> None:
    memory, wrong = FrameMemory(), []

    def post(number: int) -> None:
        for _ in range(500):
            frame = memory.lend(1000)
            frame[:] = number
            if (frame != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=post, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert memory.free_bytes <= 4 * 1000
