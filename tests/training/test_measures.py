import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.measures import bootstrap_means, f_measure, wilson


@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilsons_interval_ends_where_the_count_is_1_96_deviations_away(total: int, share: float) -> None:
    count = round(share * total)
    found = wilson(count, total)
    assert (found.hits, found.total, found.ratio) == (count, total, count / total)
    assert 0 <= found.low <= found.ratio + 1e-12
    assert found.ratio - 1e-12 <= found.high <= 1
    for end in (found.low, found.high):
        deviation = math.sqrt(end * (1 - end) / total)
        assert abs(found.ratio - end) == pytest.approx(1.959964 * deviation, abs=1e-6)


def test_nothing_found_and_nothing_right_is_no_f() -> None:
    assert f_measure(0.0, 0.0) == 0
    assert f_measure(1.0, 0.5) == pytest.approx(2 / 3)


def test_a_draw_that_lacks_a_kind_says_nothing_of_it() -> None:
    """The first kind is on one screen alone, which a third of the draws have not."""
    values = [np.array([1.0, 1.0]), np.array([0.0, 1.0, 0.0])]
    screens = [np.array([0, 0]), np.array([0, 1, 2])]
    (one, other), mean = bootstrap_means(values, screens)
    assert one == (1.0, None, None, 2)
    assert other[:3] == pytest.approx((1 / 3, 0, 1))
    assert mean.value == pytest.approx((1 + 1 / 3) / 2)
    assert mean.high == 1
    assert mean.low == 0  # a draw of the last screen alone has the second kind, and none of the first
