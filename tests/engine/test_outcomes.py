"""What scores make of a screen, by the limits of a manifest."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import fake_manifest


@pytest.mark.parametrize(
    ("score", "guard", "outcome"),
    [
        (0.29, 0.0, "pass"),
        (0.3, 0.0, "review"),
        (0.69, 0.0, "review"),
        (0.7, 0.0, "fail"),
        (0.29, 0.05, "review"),  # it might be 0.34
        (0.7, 0.05, "review"),  # it might be 0.65
        (0.75, 0.05, "fail"),
        *[(score, guard, "review") for score in (math.nan, math.inf, -math.inf) for guard in (0.0, 0.05)],
    ],
)
def test_the_outcome_of_a_score(score: float, guard: float, outcome: str) -> None:
    manifest = fake_manifest(("bubble", "scratch"))  # review from 0.3, fail from 0.7
    assert manifest.outcomes([0.1, score], {"scratch": guard}) == ("pass", outcome)
    assert manifest.outcome([0.1, score], {"scratch": guard}) == outcome
    assert manifest.outcome([0.9, score], {"scratch": guard}) == ("fail" if math.isfinite(score) else "review")


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(0, 0.1))
def test_the_gravest_label_decides(scores: list[float], guard: float) -> None:
    manifest = fake_manifest(("bubble", "pinhole", "scratch"))
    bands = dict.fromkeys(manifest.labels, guard)
    found = manifest.outcomes(scores, bands)
    assert manifest.outcome(scores, bands) == max(found, key=("pass", "review", "fail").index)
