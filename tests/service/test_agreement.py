"""Two verdicts agree but for what rounding moves."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.agreement import agree
from service.verdict import Box, Defect, LabelResult, Outcome

PATCH_PX = 1024
TOLERANCE = 0.1


@dataclass(frozen=True)
class Said:
    verdict: Outcome
    reasons: tuple[str, ...]
    labels: dict[str, LabelResult]
    defects: tuple[Defect, ...]


def defect(left: int, top: int, side: int = 64, *, score: float = 0.9, patches: int = 1, row: int = 0) -> Defect:
    box = Box(left=left, top=top, right=left + side, bottom=top + side)
    return Defect(label="bubble", score=score, row=row, column=0, patches=patches, box=box)


def said(*defects: Defect, verdict: Outcome = "fail", present: bool = True, count: int | None = None) -> Said:
    found = LabelResult(score=0.9, count=len(defects) if count is None else count, threshold=0.5, present=present)
    return Said(verdict, ("score_in_fail_range",), {"bubble": found}, defects)


def alike(one: Said, other: Said, *, same_windows: bool = True) -> bool:
    options = {"tolerance": TOLERANCE, "patch_px": PATCH_PX, "same_windows": same_windows}
    both = [agree(*pair, **options) for pair in ((one, other), (other, one))]  # type: ignore[arg-type]
    assert both[0] == both[1]
    return both[0]


SPOT = defect(100, 100)
places = st.integers(0, 900)


@given(places, places, st.integers(-128, 128), st.integers(-128, 128))
def test_a_box_may_move_by_an_eighth_of_a_patch(left: int, top: int, right: int, down: int) -> None:
    one, other = defect(left, top, 200), defect(left + right, top + down, 200)
    assert alike(said(one), said(other))


@pytest.mark.parametrize(
    "other",
    [
        said(defect(860, 860)),  # where a map that was turned shows it
        said(defect(0, 0, 1024)),  # where a map that is lost shows it
        said(),
        said(SPOT, verdict="review"),
        said(SPOT, present=False),
        said(SPOT, count=2),
        said(SPOT, defect(600, 600), defect(900, 600)),
        said(SPOT, defect(600, 600, row=3)),  # in a patch that the other has not
    ],
)
def test_another_place_count_or_verdict_is_another_verdict(other: Said) -> None:
    assert not alike(said(SPOT), other)


@pytest.mark.parametrize(
    "other",
    [
        said(SPOT),
        said(SPOT, defect(600, 600)),  # a cell as warm as half way
        said(SPOT, defect(600, 600, row=3, score=0.55)),  # a patch that hardly reaches its threshold
        said(defect(90, 90, 30), defect(150, 150, 30)),  # split
    ],
)
def test_what_rounding_does_is_no_other_verdict(other: Said) -> None:
    assert alike(said(SPOT), other)


def test_a_defect_over_several_patches_may_lose_one_of_them() -> None:
    long = Box(left=0, top=0, right=2000, bottom=40)
    short = Box(left=0, top=0, right=1024, bottom=40)
    one, other = (
        Defect(label="bubble", score=0.9, row=0, column=0, patches=n, box=box) for n, box in ((2, long), (1, short))
    )
    assert alike(said(one), said(other))
    assert not alike(said(one), said(defect(1100, 0, row=0)))


def test_another_second_look_may_join_and_add_defects_but_not_take_all_of_a_patch_away() -> None:
    apart = said(defect(100, 100), defect(400, 100), defect(700, 100))
    joined = said(defect(100, 100, 664, patches=2))
    assert alike(apart, joined, same_windows=False)
    assert not alike(apart, joined)
    assert not alike(apart, said(defect(3000, 3000)), same_windows=False)
