"""Two verdicts agree but for what rounding moves."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine import FrameLimits, LabelLimits, Manifest
from engine.looks import NO_SECOND_LOOK
from service.agreement import Agreement, agree, too_many
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


def said(
    *defects: Defect,
    verdict: Outcome = "fail",
    score: float = 0.9,
    count: int | None = None,
    reasons: tuple[str, ...] = ("score_in_fail_range",),
) -> Said:
    count = len(defects) if count is None else count
    found = LabelResult(score=score, count=count, threshold=0.5, present=score >= 0.5)
    return Said(verdict, reasons, {"bubble": found}, defects)


MANIFEST = Manifest(
    name="one",
    version="1",
    labels={"bubble": LabelLimits(threshold=0.5, review=(0.3, 0.7))},
    patch_px=PATCH_PX,
    overlap_px=0,
    second_look=NO_SECOND_LOOK,
    batch_size=1,
    frame=FrameLimits(contrast_min=0.0, saturated_ratio_max=1.0),
    files={},
    parity_tolerance={},
    data_id="",
    training={},
)


def agreement(one: Said, other: Said, *, same_windows: bool = True) -> Agreement:
    options = {"tolerance": TOLERANCE, "same_windows": same_windows}
    both = [agree(*pair, MANIFEST, **options) for pair in ((one, other), (other, one))]  # type: ignore[arg-type]
    assert both[0].agreement == both[1].agreement
    assert [bool(found.why) for found in both] == [both[0].agreement != "same"] * 2
    return both[0].agreement


def alike(one: Said, other: Said, *, same_windows: bool = True) -> bool:
    return agreement(one, other, same_windows=same_windows) == "same"


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
        said(SPOT, score=0.79),  # further than a score may move
        said(SPOT, reasons=("frame_constant", "score_in_fail_range")),
        said(SPOT, count=2),
        said(SPOT, defect(600, 600), defect(900, 600)),  # one cell may be warm for one alone, not two
        said(SPOT, defect(100, 3300, row=3)),  # in a patch that the other has not
    ],
)
def test_another_place_count_or_verdict_is_another_verdict(other: Said) -> None:
    assert agreement(said(SPOT), other) == "different"


@pytest.mark.parametrize(
    "other",
    [
        said(SPOT),
        said(SPOT, defect(600, 600)),  # a cell as warm as half way
        said(SPOT, defect(100, 3300, row=3, score=0.55)),  # a patch that hardly reaches its threshold
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


def test_a_defect_that_covers_whole_patches_for_one_alone_is_another() -> None:
    scratch = Box(left=1000, top=500, right=1060, bottom=520)
    whole = Box(left=0, top=0, right=2048, bottom=1024)
    one, other = (Defect(label="bubble", score=0.9, row=0, column=0, patches=2, box=box) for box in (scratch, whole))
    assert agreement(said(one), said(other)) == "different"


def test_a_doubtful_defect_may_be_missing_but_not_lie_elsewhere_in_its_patch() -> None:
    def beside(*others: Defect) -> Said:
        return said(SPOT, *others)

    here, there = (defect(x, 3100, row=3, score=0.55) for x in (100, 800))
    assert alike(beside(here), beside())
    assert agreement(beside(here), beside(there)) == "different"


def test_up_to_a_quarter_of_the_defects_may_be_there_for_one_alone_and_is_counted_as_rounding() -> None:
    rows = [defect(100, 1024 * row, row=row) for row in range(3)]
    for strays, wanted in ((1, "same"), (2, "rounded"), (3, "different")):
        more = [defect(900, 1024 * row, row=row) for row in range(strays)]
        assert agreement(said(*rows), said(*rows, *more)) == wanted, strays


def test_a_defect_of_another_label_is_another() -> None:
    found = {label: LabelResult(score=0.9, count=1, threshold=0.5, present=True) for label in ("bubble", "pinhole")}
    far = defect(100, 8000, row=8)
    one, other = (
        Said("fail", ("score_in_fail_range",), found, (replace(spot, label="bubble"), replace(beside, label="pinhole")))
        for spot, beside in ((SPOT, far), (far, SPOT))
    )
    manifest = replace(MANIFEST, labels=dict.fromkeys(found, MANIFEST.labels["bubble"]))
    assert agree(one, other, manifest, tolerance=TOLERANCE, same_windows=True).agreement == "different"
    assert agree(one, one, manifest, tolerance=TOLERANCE, same_windows=True) == ("same", "")


def test_what_another_second_look_changes_is_counted_as_rounding() -> None:
    apart = said(defect(100, 100), defect(400, 100), defect(700, 100))
    joined = said(defect(100, 100, 664, patches=2))
    assert alike(apart, joined, same_windows=False)  # by any windows it is the same place
    for other in (said(defect(3000, 3000, row=2)), PASS, said(SPOT, score=0.79)):
        assert agreement(said(SPOT), other, same_windows=False) == "rounded"
        assert agreement(said(SPOT), other) == "different"
    unproven = said(SPOT, reasons=("frame_constant", "score_in_fail_range"))
    assert agreement(said(SPOT), unproven, same_windows=False) == "different"


FAIL = said(defect(100, 100, score=0.71), score=0.71)
REVIEW = said(defect(100, 100, score=0.65), score=0.65, verdict="review", reasons=("score_in_review_band",))
ABSENT = said(score=0.45, verdict="review", reasons=("score_in_review_band",))
PRESENT = said(defect(100, 100, score=0.54), score=0.54, verdict="review", reasons=("score_in_review_band",))
PASS = said(score=0.29, verdict="pass", reasons=())
BAND = said(score=0.35, verdict="review", reasons=("score_in_review_band",))


@pytest.mark.parametrize(("one", "other"), [(FAIL, REVIEW), (ABSENT, PRESENT), (PASS, BAND)])
def test_where_a_score_lies_at_a_limit_rounding_decides(one: Said, other: Said) -> None:
    assert agreement(one, other) == "rounded"


@given(st.floats(0, 1), st.floats(-TOLERANCE, TOLERANCE))
@example(0.07449737886001696, 0.1)  # whose difference is more than 0.1 by rounding
@example(0.45, 0.1)
def test_whatever_rounding_does_to_a_score_is_forgiven_and_no_more(score: float, by: float) -> None:
    def judged(score: float) -> Said:
        spots = (defect(100, 100, score=score),) if score >= 0.5 else ()
        outcome = MANIFEST.outcome([score], {})
        reasons = {"pass": (), "review": ("score_in_review_band",), "fail": ("score_in_fail_range",)}[outcome]
        return said(*spots, score=score, verdict=outcome, reasons=reasons)

    moved = float(np.clip(score + by, 0, 1))
    assert agreement(judged(score), judged(moved)) != "different"
    beyond = score + 0.11 if score < 0.5 else score - 0.11
    assert agreement(judged(score), judged(beyond)) == "different"


def test_a_verdict_that_no_limit_explains_is_another() -> None:
    assert agreement(said(SPOT), said(SPOT, verdict="review", reasons=("score_in_review_band",))) == "different"


def test_a_proof_that_one_lacks_is_no_rounding() -> None:
    unproven = said(*FAIL.defects, score=0.65, verdict="review", reasons=("self_test_stale", "score_in_review_band"))
    assert agreement(FAIL, unproven) == "different"


def test_rounding_may_decide_one_screen_of_few_and_a_twentieth_of_many() -> None:
    assert [too_many(rounded, 6) for rounded in (0, 1, 2)] == [False, False, True]
    assert [too_many(rounded, 100) for rounded in (5, 6)] == [False, True]
