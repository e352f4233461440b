"""One verdict of each kind, for the API's documentation. `tests/golden/verdict_*.json` hold their exact JSON."""

from service.verdict import Box, Defect, LabelResult, Model, Proof, Timing, Verdict

_MODEL = Model(name="screens-light", version="1", limits=1)
_PROOF = Proof(
    frame_size_from="setting",
    windows_expected=50,
    windows_inferred=50,
    windows_extra=0,
    windows_turned=0,
    windows_cleared=0,
    covered=True,
    finite=True,
    self_test_age_s=12.5,
)
_TIMING = Timing(receive_s=0.038, decode_s=0.021, queue_s=0.0, features_s=0.25, reasoning_s=0.004, aggregate_s=0.019)
_CLEAN = LabelResult(score=0.03125, count=0, threshold=0.5, present=False)

PASS = Verdict(
    screen_id="SN-000017",
    verdict="pass",
    reasons=(),
    model=_MODEL,
    labels={"bubble": _CLEAN, "pinhole": _CLEAN, "scratch": _CLEAN, "tin_ash": _CLEAN},
    defects=(),
    proof=_PROOF,
    timing=_TIMING,
)
FAIL = Verdict(
    screen_id="SN-000018",
    verdict="fail",
    reasons=("score_in_fail_range",),
    model=_MODEL,
    labels={
        "bubble": _CLEAN,
        "pinhole": _CLEAN,
        "scratch": LabelResult(score=0.96875, count=1, threshold=0.5, present=True),
        "tin_ash": _CLEAN,
    },
    defects=(
        Defect(
            label="scratch",
            score=0.96875,
            row=3,
            column=1,
            patches=2,
            box=Box(left=1216, top=3936, right=1472, bottom=4672),
        ),
    ),
    proof=_PROOF,
    timing=_TIMING,
)
REVIEW = Verdict(
    screen_id="SN-000019",
    verdict="review",
    reasons=("self_test_stale", "score_in_review_band"),
    model=_MODEL,
    labels={
        "bubble": _CLEAN,
        "pinhole": LabelResult(score=0.4375, count=0, threshold=0.5, present=False),
        "scratch": _CLEAN,
        "tin_ash": _CLEAN,
    },
    defects=(),
    proof=Proof(
        frame_size_from="header",
        windows_expected=50,
        windows_inferred=50,
        windows_extra=0,
        windows_turned=0,
        windows_cleared=0,
        covered=True,
        finite=True,
        self_test_age_s=131.5,  # null would be right too, but FastAPI leaves it out of its document
    ),
    timing=_TIMING,
)
VERDICTS = {"pass": PASS, "fail": FAIL, "review": REVIEW}
