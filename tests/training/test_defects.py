from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from training.defects import DEFECTS, LABELS, LOOK_ALIKES

Draw = Callable[[np.random.Generator, int], NDArray[np.float32]]
SEEDS = range(30)


def extent_px(shape: NDArray[np.float32]) -> int:
    rows, columns = np.nonzero(np.abs(shape) > 0.3)
    return int(max(np.ptp(rows), np.ptp(columns))) + 1


def strongest(shape: NDArray[np.float32]) -> float:
    return float(np.abs(shape).max())


@pytest.mark.parametrize("draw", [*DEFECTS.values(), *LOOK_ALIKES.values()])
@pytest.mark.parametrize("limit_px", [100, 2000])
def test_a_drawing_is_finite_and_nothing_at_its_border(draw: Draw, limit_px: int) -> None:
    for seed in SEEDS:
        shape = draw(np.random.default_rng(seed), limit_px)
        assert shape.dtype == np.float32
        assert np.isfinite(shape).all()
        border = np.concatenate([shape[0], shape[-1], shape[:, 0], shape[:, -1]])
        assert np.abs(border).max() < 0.1
        assert 0.3 < strongest(shape) < 2.5


@pytest.mark.parametrize("draw", DEFECTS.values())
def test_the_same_seed_draws_the_same(draw: Draw) -> None:
    np.testing.assert_array_equal(draw(np.random.default_rng(4), 500), draw(np.random.default_rng(4), 500))


@pytest.mark.parametrize(
    ("label", "smallest_px", "largest_px"),
    [
        ("bubble", 15, 520),  # 30 to 400 across, elliptical; an arc may be half of it
        ("pinhole", 2, 20),
        ("scratch", 10, 3100),  # an interrupted one may keep less than its 30
        ("tin_ash", 15, 560),
    ],
)
def test_sizes_stay_in_their_range(label: str, smallest_px: int, largest_px: int) -> None:
    sizes = [extent_px(DEFECTS[label](np.random.default_rng(seed), 5000)) for seed in SEEDS]
    assert smallest_px <= min(sizes)
    assert max(sizes) <= largest_px
    assert max(sizes) > 1.8 * min(sizes)  # a range, not one size


@pytest.mark.parametrize("label", LABELS)
def test_the_limit_holds_in_small_frames(label: str) -> None:
    for seed in SEEDS:
        assert extent_px(DEFECTS[label](np.random.default_rng(seed), 60)) <= 1.35 * 60


def test_tin_ash_is_many_specks_and_a_pinhole_is_one() -> None:
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        specks, _ = cv2.connectedComponents((np.abs(DEFECTS["tin_ash"](rng, 5000)) > 0.3).astype(np.uint8))
        dots, _ = cv2.connectedComponents((DEFECTS["pinhole"](rng, 5000) > 0.3).astype(np.uint8))
        assert specks - 1 >= 4
        assert dots - 1 == 1


def test_a_scratch_is_thin() -> None:
    for seed in SEEDS:
        inside = (DEFECTS["scratch"](np.random.default_rng(seed), 1000) > 0.5).astype(np.uint8)
        assert cv2.distanceTransform(inside, cv2.DIST_L2, 3).max() <= 4


def test_no_look_alike_is_as_small_as_a_pinhole() -> None:
    for draw in LOOK_ALIKES.values():
        assert min(extent_px(draw(np.random.default_rng(seed), 2000)) for seed in SEEDS) > 10
