import pytest

from service.stopwatch import Stopwatch


def test_a_block_is_charged_what_no_block_within_it_took() -> None:
    now_s = [0.0]
    spent = Stopwatch(lambda: now_s[0])
    now_s[0] += 100
    with spent("decode"):
        now_s[0] += 1
        with spent("queue"):
            now_s[0] += 2
            with spent("decode"):
                now_s[0] += 4
        now_s[0] += 8
        with spent("queue"):
            now_s[0] += 16
    now_s[0] += 100
    with spent("decode"):
        now_s[0] += 32
    assert spent.seconds == {"decode": 1 + 4 + 8 + 32, "queue": 2 + 16}


def test_a_block_that_raises_is_charged_as_any() -> None:
    spent = Stopwatch(map(float, range(10)).__next__)
    with spent("decode"), pytest.raises(ValueError, match="broken"), spent("queue"):
        raise ValueError("broken")
    assert spent.seconds == {"decode": 2, "queue": 1}
