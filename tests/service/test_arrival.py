import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.arrival import STEPS, Arrival
from service.errors import IncompleteBody
from tests.service.devices import GUARD_S


@given(st.integers(1, 400), st.integers(1, 9), st.data())
def test_lines_are_told_once_whole_and_the_last_only_at_the_end(height: int, width: int, data: st.DataObject) -> None:
    arrival = Arrival(height, width)
    size = height * width
    seen = 0
    for count in sorted(data.draw(st.lists(st.integers(0, size), max_size=20))):
        arrival.received(count)
        try:
            lines = arrival.wait(seen, 0.0)
        except TimeoutError:
            assert min(count // width, height - 1) - seen < max(1, height // STEPS)
        else:
            assert seen < lines <= count // width
            seen = lines
    assert seen < height
    arrival.finish()
    assert arrival.wait(seen, 0.0) == height


def test_what_is_written_to_the_buffer_are_the_pixels() -> None:
    arrival = Arrival(3, 4)
    arrival.buffer[:] = bytes(range(12))
    np.testing.assert_array_equal(arrival.pixels, np.arange(12).reshape(3, 4))


def test_whoever_waits_is_woken_by_lines_and_by_a_failure() -> None:
    arrival, begun = Arrival(1000, 2), threading.Event()

    def wait(seen: int) -> int:
        begun.set()
        return arrival.wait(seen, GUARD_S)

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(wait, 0)
        assert begun.wait(GUARD_S)
        arrival.received(2 * 300)
        assert answer.result(GUARD_S) == 300
        answer = pool.submit(wait, 300)
        error = IncompleteBody("gone")
        arrival.fail(error)
        assert repr(answer.exception(GUARD_S)) == repr(error)
    # and no lines any more, also those that had come
    with pytest.raises(IncompleteBody):
        arrival.wait(0, 0.0)


def receive_less(arrival: Arrival) -> None:
    """A sender that goes away."""
    try:
        raise IncompleteBody("gone")
    except IncompleteBody as error:
        arrival.fail(error)


def test_a_frame_that_failed_is_not_held_in_memory() -> None:
    # by the collector alone it would be freed at some time, and a frame of 50 MB should not wait for that
    arrival = Arrival(1000, 2)
    held = weakref.ref(arrival.pixels)
    gc.disable()
    try:
        receive_less(arrival)
        with pytest.raises(IncompleteBody, match="gone"):
            arrival.wait(0, 0.0)
        del arrival
        assert held() is None
    finally:
        gc.enable()
