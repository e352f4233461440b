import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.reader import Reader

MOVES = st.lists(st.tuples(st.sampled_from(["read", "set", "current", "end"]), st.integers(-20, 20)), max_size=20)


@given(st.binary(max_size=40), MOVES)
def test_it_reads_as_a_file_in_memory_does(data: bytes, moves: list[tuple[str, int]]) -> None:
    mine, known = Reader(memoryview(data)), io.BytesIO(data)
    for move, number in moves:
        if move == "read":
            assert mine.read(number) == known.read(number)
        elif move == "set":
            at = abs(number)
            assert mine.seek(at) == known.seek(at)
        else:
            whence = io.SEEK_CUR if move == "current" else io.SEEK_END
            base = known.tell() if move == "current" else len(data)
            if base + number >= 0:  # where BytesIO goes to the beginning instead
                assert mine.seek(number, whence) == known.seek(number, whence)
        assert mine.tell() == known.tell()


def test_nothing_lies_before_the_beginning() -> None:
    with pytest.raises(ValueError, match="no byte -1"):
        Reader(b"abc").seek(-1)


def test_a_length_that_a_header_made_up_takes_no_memory() -> None:
    assert Reader(b"abc").read(2**62) == b"abc"
