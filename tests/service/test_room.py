import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import DeadlineExceeded
from service.room import Room


def test_what_fits_is_held_at_once_and_given_back() -> None:
    room = Room(100)
    with room.hold(60, timeout_s=0), room.hold(40, timeout_s=0):
        assert room.held_bytes == 100
    assert room.held_bytes == 0


def test_what_does_not_fit_in_time_is_late_and_holds_nothing() -> None:
    room = Room(100)
    with room.hold(60, timeout_s=0):
        with pytest.raises(DeadlineExceeded, match="41 bytes"), room.hold(41, timeout_s=0.01):
            pass
        with room.hold(40, timeout_s=0):  # nobody who went away is waited for
            pass


def test_what_is_larger_than_all_of_it_goes_alone() -> None:
    room = Room(100)
    with room.hold(1000, timeout_s=0), pytest.raises(DeadlineExceeded), room.hold(1, timeout_s=0.01):
        pass
    assert room.held_bytes == 0


def test_small_ones_do_not_pass_a_large_one_that_waits() -> None:
    room, order, waiting = Room(100), list[int](), threading.Event()

    def hold(size: int) -> None:
        waiting.set()
        with room.hold(size, timeout_s=10):
            order.append(size)

    with ThreadPoolExecutor(2) as pool:
        with room.hold(60, timeout_s=0):
            pool.submit(hold, 100)
            while not room.waiting:
                waiting.wait(0.001)
            late = pool.submit(hold, 1)
            with pytest.raises(TimeoutError):
                late.result(0.05)
        late.result(10)
    assert order == [100, 1]


def test_a_wait_that_was_cancelled_leaves_no_trace() -> None:
    room = Room(100)

    async def cancelled() -> None:
        first = await room.enter(80, timeout_s=1)
        second = asyncio.create_task(room.enter(80, timeout_s=10))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        with pytest.raises(DeadlineExceeded):
            await room.enter(80, timeout_s=0.01)
        room.leave(first)
        room.leave(await room.enter(100, timeout_s=1))

    asyncio.run(cancelled())
    assert room.held_bytes == 0
    assert not room.waiting


@given(st.lists(st.integers(0, 150), min_size=1, max_size=12))
def test_there_is_never_more_held_than_there_is_room(sizes: list[int]) -> None:
    room, seen = Room(100), list[int]()

    def hold(size: int) -> None:
        with room.hold(size, timeout_s=10):
            seen.append(room.held_bytes)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, sizes))
    assert len(seen) == len(sizes)
    assert max(seen) <= 100
    assert room.held_bytes == 0
