"""Which windows are looked at turned, and that the mean of all positions is the same however the window lies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from engine import NO_TURNED_LOOK, POSITIONS, Features, TurnedLook, in_doubt, look_turned, turned

LOOK = TurnedLook(score_min=0.125, score_max=0.875, ratio_max=0.25)
SIDE = 4


def scores(*values: float) -> NDArray[np.float32]:
    """Of windows whose second label none has."""
    return np.array([[value, 0.0] for value in values], np.float32)


# --- the rule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "doubtful"),
    [(0.0, False), (0.1249, False), (0.125, True), (0.8749, True), (0.875, False), (1.0, False), (np.nan, False)],
)
def test_only_a_score_that_is_neither_near_to_nil_nor_to_one_is_doubtful(score: float, doubtful: bool) -> None:
    assert in_doubt(scores(0.0, score, 1.0), LOOK) == ((1,) if doubtful else ())


def test_the_most_doubtful_come_first_and_are_told_in_the_order_of_the_windows() -> None:
    of_eight = scores(0.7, 0.0, 0.4, 0.2, 0.0, 0.5, 1.0, 0.0)
    assert in_doubt(of_eight, LOOK) == (2, 5)  # a quarter of them


def test_a_screen_of_few_windows_may_look_at_one() -> None:
    assert in_doubt(scores(0.4), LOOK) == (0,)
    assert in_doubt(scores(0.4, 0.5, 0.6), LOOK) == (1,)


def test_a_bundle_that_does_not_ask_looks_at_none() -> None:
    assert in_doubt(scores(0.4, 0.5), NO_TURNED_LOOK) == ()


SCORES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.integers(1, 3)),
    elements=st.floats(0, 1, width=32) | st.just(np.float32(np.nan)),
)


@given(SCORES, st.floats(0, 0.25))
def test_those_looked_at_are_doubtful_and_few(probability: NDArray[np.float32], ratio_max: float) -> None:
    look = TurnedLook(score_min=0.125, score_max=0.875, ratio_max=ratio_max)
    found = in_doubt(probability, look)
    doubtful = ((probability >= 0.125) & (probability < 0.875)).any(axis=1)
    assert set(found) <= set(np.flatnonzero(doubtful).tolist())
    assert len(found) == min(int(doubtful.sum()), look.most(len(probability)))
    assert list(found) == sorted(set(found))


# --- the positions -----------------------------------------------------------------------------------

# what is nowhere the same in two positions
PLACES = np.arange(1, SIDE * SIDE + 1, dtype=np.float32).reshape(SIDE, SIDE) ** 2


def see(patches: NDArray[np.uint8]) -> Features:
    """A network to which position matters: it weighs each pixel by its place; one label, maps as fine as the patch."""
    weighed = patches.astype(np.float32) * PLACES
    total = weighed.sum(axis=(2, 3))
    return Features(
        label_features=np.stack([total, -total], axis=-1),
        stage1=total,
        activation=weighed,
        doubt=np.ones(len(total), np.float32),
    )


def looked_at(patches: NDArray[np.uint8], *doubtful: int) -> Features:
    """Patches of which those are looked at in all positions; by default all."""
    return look_turned(see(patches), doubtful or range(len(patches)), lambda k: see(turned(patches[k, 0])))


PATCHES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(1), st.just(SIDE), st.just(SIDE)))


def test_the_positions_of_a_square_are_eight() -> None:
    patch = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
    views = [patch, *turned(patch)[:, 0]]
    assert len(views) == POSITIONS == len({view.tobytes() for view in views})
    turns = {np.rot90(side, k).tobytes() for side in (patch, patch[::-1]) for k in range(4)}
    assert {view.tobytes() for view in views} == turns


@given(PATCHES)
def test_in_whatever_position_a_patch_comes_the_mean_is_the_same(patches: NDArray[np.uint8]) -> None:
    wanted = looked_at(patches)
    for k in range(1, 4):
        for mirrored in (False, True):
            other = np.rot90(patches[..., ::-1] if mirrored else patches, k, axes=(2, 3))
            found = looked_at(np.ascontiguousarray(other))
            np.testing.assert_allclose(found.stage1, wanted.stage1, rtol=1e-5)
            np.testing.assert_allclose(found.label_features, wanted.label_features, rtol=1e-5)
            # the map lies as the patch does: turned back, it is the same
            back = np.rot90(found.activation, -k, axes=(2, 3))
            np.testing.assert_allclose(back[..., ::-1] if mirrored else back, wanted.activation, rtol=1e-5)


def test_other_windows_stay_as_they_were_seen() -> None:
    patches = np.random.default_rng(0).integers(0, 255, (5, 1, SIDE, SIDE)).astype(np.uint8)
    features, mean, wanted = see(patches), looked_at(patches, 1, 3), looked_at(patches)
    for k in range(5):
        expected = wanted if k in (1, 3) else features
        np.testing.assert_allclose(mean.label_features[k], expected.label_features[k], rtol=1e-5)
        np.testing.assert_allclose(mean.stage1[k], expected.stage1[k], rtol=1e-5)
        np.testing.assert_allclose(mean.activation[k], expected.activation[k], rtol=1e-5)


def test_what_was_seen_is_not_written_to() -> None:
    patches = np.random.default_rng(0).integers(0, 255, (2, 1, SIDE, SIDE)).astype(np.uint8)
    features, others = see(patches), see(turned(patches[1, 0]))
    before = [one.copy() for one in (features.stage1, features.activation, others.stage1, others.activation)]
    look_turned(features, (1,), lambda _: others)
    after = [features.stage1, features.activation, others.stage1, others.activation]
    assert all((one == other).all() for one, other in zip(before, after, strict=True))


def test_what_is_no_number_in_one_position_is_none_in_the_mean() -> None:
    patches = np.ones((1, 1, SIDE, SIDE), np.uint8)
    others = see(turned(patches[0, 0]))
    others.stage1[3] = np.nan
    assert np.isnan(look_turned(see(patches), (0,), lambda _: others).stage1).all()


@pytest.mark.parametrize(("windows", "most"), [(1, 1), (10, 1), (11, 2), (30, 3), (50, 5)])
def test_a_tenth_of_the_windows_is_rounded_up_and_no_further(windows: int, most: int) -> None:
    assert TurnedLook(score_min=0.1, score_max=0.9, ratio_max=0.1).most(windows) == most
