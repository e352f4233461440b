"""Two batches are under way at a time, in their order, and none is left under way."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Batch, Features
from engine.batches import Batches
from engine.errors import InferenceError

NO_MAP = np.zeros((1, 1, 1, 1), np.float32)


class Device:
    """Answers a batch by its own number; counts what is under way."""

    def __init__(self, *, fails_to_begin: int = -1, fails: int = -1) -> None:
        self.begun: list[int] = []
        self.waited: list[int] = []
        self.most = 0
        self._fails_to_begin = fails_to_begin
        self._fails = fails

    def begin(self, batch: Batch) -> Callable[[], Features]:
        number = int(batch.pixels[0, 0, 0, 0])
        if number == self._fails_to_begin:
            raise InferenceError("not begun")
        self.begun.append(number)
        self.most = max(self.most, len(self.begun) - len(self.waited))

        def wait() -> Features:
            self.waited.append(number)
            if number == self._fails:
                raise InferenceError("failed")
            answer = np.full((1, 1), number, np.float32)
            return Features(
                label_features=answer[:, None], stage1=answer, activation=NO_MAP, doubt=np.ones(1, np.float32)
            )

        return wait


def patches(count: int) -> list[Batch]:
    return [Batch(np.full((1, 1, 1, 1), number, np.uint8)) for number in range(count)]


def numbers(answers: Iterator[Features]) -> list[int]:
    return [int(answer.stage1[0, 0]) for answer in answers]


@given(count=st.integers(0, 12), under_way=st.integers(1, 5))
def test_answers_come_in_order_and_no_more_than_asked_are_under_way(count: int, under_way: int) -> None:
    device = Device()
    answers = Batches(begin=device.begin, under_way=under_way).stream(patches(count))
    assert numbers(answers) == list(range(count))
    assert device.waited == device.begun == list(range(count))
    assert device.most == min(under_way, count)


@given(count=st.integers(1, 12), taken=st.integers(1, 12))
def test_left_before_its_end_nothing_is_under_way(count: int, taken: int) -> None:
    device = Device()
    answers = Batches(begin=device.begin).stream(patches(count))
    for _, _ in zip(range(taken), answers, strict=False):
        pass
    answers.close()
    assert sorted(device.waited) == device.begun


@pytest.mark.parametrize("failing", [{"fails_to_begin": 2}, {"fails": 1}, {"fails": 4}])
def test_a_batch_that_fails_ends_it_and_leaves_nothing_under_way(failing: dict[str, int]) -> None:
    device = Device(**failing)
    with pytest.raises(InferenceError):
        numbers(Batches(begin=device.begin).stream(patches(5)))
    assert sorted(device.waited) == device.begun


def test_what_the_source_raises_goes_through_and_leaves_nothing_under_way() -> None:
    def source() -> Iterator[Batch]:
        yield from patches(2)
        raise OSError("the lines broke off")

    device = Device()
    with pytest.raises(OSError, match="broke off"):
        numbers(Batches(begin=device.begin).stream(source()))
    assert sorted(device.waited) == device.begun == [0, 1]


def test_one_batch_is_waited_for() -> None:
    device = Device()
    assert int(Batches(begin=device.begin).run(patches(4)[3]).stage1[0, 0]) == 3
    assert device.waited == [3]
