"""Memory of frames: lent again once nobody has it, never before, and not kept without a bound."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import Window, cut
from service.arrival import Arrival
from service.errors import IncompleteBody
from service.frames import FrameMemory


def address(array: NDArray[np.uint8]) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def test_what_is_over_is_lent_again() -> None:
    memory = FrameMemory(worth_bytes=1)
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
def test_a_view_holds_it(view: Callable[[NDArray[np.uint8]], object]) -> None:
    memory = FrameMemory(worth_bytes=1)
    frame = memory.lend(100)
    held = view(frame)
    del frame
    assert memory.free_bytes == 0
    del held
    assert memory.free_bytes == 100


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.integers(0, 8))
def test_no_two_have_the_same_and_no_more_is_kept_than_may_be(sizes: list[int], most: int) -> None:
    memory = FrameMemory(kept_bytes=most, worth_bytes=1)
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


def test_lines_of_two_sizes_both_find_theirs() -> None:
    memory = FrameMemory(worth_bytes=1)
    frames = [memory.lend(size) for size in (100, 50)]
    before = sorted(map(address, frames))
    del frames
    for _ in range(3):
        assert sorted(address(memory.lend(size)) for size in (100, 50)) == before


def test_the_size_that_came_last_stays() -> None:
    memory = FrameMemory(kept_bytes=120, worth_bytes=1)
    for size in (50, 60, 100):
        memory.lend(size)
    assert memory.free_bytes == 100


def test_what_is_small_or_too_large_is_not_kept() -> None:
    memory = FrameMemory(kept_bytes=100, worth_bytes=10)
    for size in (1, 9, 101):
        memory.lend(size)
    assert memory.free_bytes == 0
    memory.lend(10)
    assert memory.free_bytes == 10


def test_a_frame_that_failed_leaves_its_memory_to_the_next() -> None:
    arrival = Arrival(2048, 1024)
    before = address(arrival.pixels)
    arrival.fail(IncompleteBody("gone"))
    del arrival
    assert address(Arrival(2048, 1024).pixels) == before


def test_threads_share_it() -> None:
    memory, wrong = FrameMemory(kept_bytes=2000, worth_bytes=1), []

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
    assert memory.free_bytes <= 2000
