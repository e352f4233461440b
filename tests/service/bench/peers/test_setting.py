"""How a peer is run travels in the environment, and is told to people."""

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bench.peers.setting import Setting

numbers = st.integers(1, 64)


@given(setting=st.builds(Setting, workers=numbers, threads=numbers, patches=numbers, screens=numbers))
def test_a_process_reads_what_it_was_given(setting: Setting) -> None:
    with patch.dict("os.environ", setting.environment()):
        assert Setting() == setting


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (Setting(), "1 worker of 1 thread, 1 patch a run"),
        (Setting(threads=2, ours=True), "1 worker of 2 threads, 1 patch a run, our session"),
        (
            Setting(workers=2, threads=3, patches=5, screens=4),
            "2 workers of 3 threads, 5 patches a run, up to 4 screens a batch",
        ),
    ],
)
def test_it_is_told_in_words(setting: Setting, told: str) -> None:
    assert str(setting) == told
