import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import FrameLimits, LabelLimits, Window, cover
from service.aggregation import FAIL_REASON, PROOF_REASONS, REASONS, REVIEW_REASON, Observed, aggregate, covers
from service.selftest import SelfTestReport
from tests.service.strategies import ANY_SCORE, FRESH, LABELS, PATCH_PX, Screen, frame_of, screen, screens, showing

SEVERITY = ("pass", "review", "fail")


@given(screens(), st.data())
def test_raising_a_score_never_turns_fail_into_pass(screen: Screen, data: st.DataObject) -> None:
    probability = screen.seen.probability.copy()
    cells = st.tuples(*(st.integers(0, size - 1) for size in probability.shape))
    probability[data.draw(cells)] = data.draw(st.floats(0.75, 1, width=32))
    assert screen.scored(probability).judge().verdict == "fail"
    raised = probability.copy()
    for cell in data.draw(st.lists(cells, min_size=1)):
        raised[cell] = max(raised[cell], data.draw(ANY_SCORE))
    assert screen.scored(raised).judge().verdict == "fail"


@given(screens(), st.data())
def test_raising_a_score_never_lowers_the_severity_while_the_proof_holds(screen: Screen, data: st.DataObject) -> None:
    cell = data.draw(st.tuples(*(st.integers(0, size - 1) for size in screen.seen.probability.shape)))
    raised = screen.seen.probability.copy()
    raised[cell] = max(raised[cell], data.draw(ANY_SCORE))
    before, after = screen.judge(), screen.scored(raised).judge()
    assert SEVERITY.index(after.verdict) >= SEVERITY.index(before.verdict)


@given(screens(), st.randoms(use_true_random=False))
def test_the_order_of_the_windows_changes_nothing(screen: Screen, random: Random) -> None:
    order = list(range(len(screen.seen.windows)))
    random.shuffle(order)
    shuffled = replace(
        screen.seen,
        windows=[screen.seen.windows[k] for k in order],
        probability=screen.seen.probability[order],
        activation=screen.seen.activation[order],
    )
    assert aggregate(shuffled, screen.manifest) == screen.judge()


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        # nothing at all
        (0.0, "pass"),
        # the last score under the band
        (float(np.nextafter(np.float32(0.25), np.float32(0))), "pass"),
        # low belongs to the band
        (0.25, "review"),
        # present, and yet in the band: the threshold decides nothing about the screen
        (0.5, "review"),
        # the last score of the band
        (float(np.nextafter(np.float32(0.75), np.float32(0))), "review"),
        # high fails
        (0.75, "fail"),
        (1.0, "fail"),
    ],
)
def test_edges_of_the_review_band(score: float, verdict: str) -> None:
    clean = screen()
    clean.seen.probability[7, 1] = score
    judgement = clean.judge()
    assert judgement.verdict == verdict
    assert judgement.reasons == {"pass": (), "review": (REVIEW_REASON,), "fail": (FAIL_REASON,)}[verdict]
    assert judgement.labels["scratch"].score == score


@given(screens(), st.floats(0, 0.5))
def test_a_guard_band_turns_certainty_into_review_and_nothing_else(screen: Screen, guard: float) -> None:
    plain = screen.judge()
    guarded = aggregate(screen.seen, screen.manifest, dict.fromkeys(LABELS, guard))
    near = any(0.25 - guard <= label.score < 0.75 + guard for label in plain.labels.values())
    if plain.verdict == "fail":
        certain = any(label.score >= 0.75 + guard for label in plain.labels.values())
        assert guarded.verdict == ("fail" if certain else "review")
    else:
        assert guarded.verdict == ("review" if near else plain.verdict)


def test_a_band_without_width_leaves_nothing_to_review() -> None:
    limits = {label: LabelLimits(threshold=0.5, review=(0.5, 0.5)) for label in LABELS}
    for score, verdict in ((0.4999, "pass"), (0.5, "fail")):
        clean = screen()
        clean.seen.probability[0, 0] = score
        assert aggregate(clean.seen, replace(clean.manifest, labels=limits)).verdict == verdict


def test_a_failing_label_outweighs_a_doubtful_one_and_both_are_named() -> None:
    clean = screen()
    clean.seen.probability[0] = (0.3, 0.9)
    judgement = clean.judge()
    assert judgement.verdict == "fail"
    assert judgement.reasons == (FAIL_REASON, REVIEW_REASON)


def lacking_windows(seen: Observed) -> Observed:
    """The frame that arrived is shorter than the one agreed: every pixel of it is covered all the same."""
    height, width = seen.brightness.size
    return replace(seen, expected=cover(height + PATCH_PX, width, patch_px=PATCH_PX))


def lacking_pixels(seen: Observed) -> Observed:
    """The frame is larger than its windows."""
    height, width = seen.brightness.size
    return showing(seen, frame_of(height, width + 1))


def lacking_numbers(seen: Observed) -> Observed:
    """The last score of all is none."""
    probability = seen.probability.copy()
    probability[-1, -1] = np.nan
    return replace(seen, probability=probability)


def saturated(seen: Observed) -> Observed:
    frame = np.full(seen.brightness.size, 255, np.uint8)
    frame[0, 0] = 0
    return showing(seen, frame)


LACKING: dict[str, Callable[[Observed], Observed]] = {
    "windows_missing": lacking_windows,
    "pixels_not_covered": lacking_pixels,
    "score_not_finite": lacking_numbers,
    "frame_constant": lambda seen: showing(seen, np.full(seen.brightness.size, 128, np.uint8)),
    "frame_saturated": saturated,
    "self_test_stale": lambda seen: replace(seen, self_test=replace(FRESH, age_s=120.0)),
}


@pytest.mark.parametrize("reason", PROOF_REASONS)
@given(screen=screens(), scores=st.sampled_from([None, 0.0, 1.0]))
def test_a_missing_proof_is_a_review_whatever_the_scores(reason: str, screen: Screen, scores: float | None) -> None:
    if scores is not None:
        screen.seen.probability[:] = scores
    judgement = aggregate(LACKING[reason](screen.seen), screen.manifest)
    assert judgement.verdict == "review"
    assert [code for code in judgement.reasons if code in PROOF_REASONS] == [reason]


def test_reasons_stand_in_the_order_in_which_they_decide() -> None:
    clean = screen()
    clean.seen.probability[0] = (0.9, 0.3)
    seen = replace(lacking_windows(clean.seen), self_test=replace(FRESH, ok=False))
    assert aggregate(seen, clean.manifest).reasons == (
        "windows_missing",
        "self_test_stale",
        FAIL_REASON,
        REVIEW_REASON,
    )
    assert (*PROOF_REASONS, FAIL_REASON, REVIEW_REASON) == REASONS


@given(screens(), st.data())
def test_a_screen_that_lost_a_window_is_no_pass(screen: Screen, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, len(screen.seen.windows) - 1))
    keep = [k for k in range(len(screen.seen.windows)) if k != lost]
    seen = replace(
        screen.seen,
        windows=[screen.seen.windows[k] for k in keep],
        probability=np.zeros((len(keep), len(LABELS)), np.float32),
        activation=screen.seen.activation[keep],
    )
    judgement = aggregate(seen, screen.manifest)
    assert judgement.verdict == "review"
    assert judgement.reasons[0] == "windows_missing"
    assert judgement.proof.windows_inferred == len(keep)
    assert judgement.proof.windows_expected == len(keep) + 1


def test_windows_besides_the_expected_are_counted_apart_and_judged() -> None:
    clean = screen(PATCH_PX, 2 * PATCH_PX)
    windows = (*clean.seen.windows, Window(0, 2, 0, 7))
    seen = replace(
        clean.seen,
        windows=windows,
        probability=np.array([[0, 0], [0, 0], [0, 0.9]], np.float32),
        activation=np.zeros((3, 2, 4, 4), np.float32),
    )
    judgement = aggregate(seen, clean.manifest)
    proof = judgement.proof
    assert (proof.windows_expected, proof.windows_inferred, proof.windows_extra) == (2, 2, 1)
    assert judgement.verdict == "fail"


@given(
    st.lists(st.tuples(st.integers(-6, 30), st.integers(-6, 30)), max_size=12),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.integers(1, 16),
)
def test_covers_agrees_with_painting_every_pixel(
    corners: list[tuple[int, int]], shape: tuple[int, int], patch_px: int
) -> None:
    painted = np.zeros(shape, bool)
    for top, left in corners:
        painted[max(0, top) : max(0, top + patch_px), max(0, left) : max(0, left + patch_px)] = True
    windows = [Window(0, k, top, left) for k, (top, left) in enumerate(corners)]
    assert covers(windows, shape, patch_px) == painted.all()


@given(screens())
def test_covers_is_true_for_a_whole_cover_and_false_without_one_of_its_windows(screen: Screen) -> None:
    windows, shape = tuple(screen.seen.windows), screen.seen.brightness.size
    assert covers(windows, shape, PATCH_PX)
    if screen.manifest.overlap_px == 0 and shape[0] % PATCH_PX == 0 == shape[1] % PATCH_PX:
        assert not any(covers(windows[:k] + windows[k + 1 :], shape, PATCH_PX) for k in range(len(windows)))


@pytest.mark.parametrize(
    ("pixels", "reasons"),
    [
        # one grey level: a lamp that is off, or a camera that sends nothing
        ([128] * 256, ("frame_constant",)),
        ([0] * 256, ("frame_constant",)),
        # one level too few between darkest and brightest
        ([100] * 200 + [103] * 56, ("frame_constant",)),
        # just enough
        ([100] * 200 + [104] * 56, ()),
        # half of it at 255, which the manifest allows
        ([255] * 128 + [100] * 128, ()),
        # one pixel more
        ([255] * 129 + [100] * 127, ("frame_saturated",)),
        # the brightest level that is not saturated
        ([254] * 200 + [100] * 56, ()),
        # white from edge to edge
        ([255] * 256, ("frame_constant", "frame_saturated")),
    ],
)
def test_frame_checks(pixels: list[int], reasons: tuple[str, ...]) -> None:
    one_patch = screen(PATCH_PX, PATCH_PX)
    frame = np.array(pixels, np.uint8).reshape(PATCH_PX, PATCH_PX)
    judgement = aggregate(showing(one_patch.seen, frame), one_patch.manifest)
    assert judgement.reasons == reasons
    assert judgement.verdict == ("review" if reasons else "pass")


@pytest.mark.parametrize(
    ("report", "verdict"),
    [
        (FRESH, "pass"),
        (replace(FRESH, age_s=0.0), "pass"),
        # the last moment
        (replace(FRESH, age_s=119.9), "pass"),
        (replace(FRESH, age_s=120.0), "review"),
        # failed a moment after it had succeeded
        (replace(FRESH, ok=False), "review"),
        # has not run yet, or never succeeded
        (SelfTestReport(ok=False, age_s=None, difference=None, detail="has not run yet"), "review"),
    ],
)
def test_a_pass_needs_a_fresh_self_test(report: SelfTestReport, verdict: str) -> None:
    clean = screen()
    judgement = aggregate(replace(clean.seen, self_test=report), clean.manifest)
    assert judgement.verdict == verdict
    assert judgement.reasons == (("self_test_stale",) if verdict == "review" else ())
    assert judgement.proof.self_test_age_s == report.age_s


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@given(screen=screens(), data=st.data())
def test_a_score_that_is_no_number_is_a_review_and_can_be_sent(bad: float, screen: Screen, data: st.DataObject) -> None:
    cell = data.draw(st.tuples(*(st.integers(0, size - 1) for size in screen.seen.probability.shape)))
    screen.seen.probability[cell] = bad
    judgement = screen.judge()
    assert judgement.verdict == "review"
    assert judgement.reasons[0] == "score_not_finite"
    assert not judgement.proof.finite
    json.dumps(asdict(judgement), allow_nan=False)
    assert all(0 <= label.score <= 1 for label in judgement.labels.values())


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        # a patch without a score
        (14, 2),
        # a score without a patch
        (16, 2),
        # another bundle's labels: one of them would be judged by nobody
        (15, 3),
        (15, 1),
    ],
)
def test_scores_of_other_windows_or_labels_are_refused(rows: int, labels: int) -> None:
    clean = screen()
    assert clean.seen.probability.shape == (15, 2)
    with pytest.raises(ValueError, match="do not fit"):
        clean.scored(np.zeros((rows, labels), np.float32)).judge()
    with pytest.raises(ValueError, match="do not fit"):
        aggregate(
            replace(clean.seen, activation=np.zeros((rows, labels, 4, 4), np.float32)),
            clean.manifest,
        )


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_a_frame_without_light_is_no_image_whatever_its_noise(sigma: float) -> None:
    """The lamp is off: the sensor's noise and a hot pixel are all that there is."""
    noise = 3.5 + sigma * np.random.default_rng(0).standard_normal((2048, 1024))
    dark = np.clip(np.rint(noise), 0, 255).astype(np.uint8)
    dark[5, 5] = 255
    wide = screen(PATCH_PX, PATCH_PX)
    manifest = replace(wide.manifest, frame=FrameLimits(saturated_ratio_max=0.2, contrast_min=2))
    assert "frame_constant" in aggregate(showing(wide.seen, dark), manifest).reasons
    lit = np.clip(dark + np.linspace(0, 3, 1024), 0, 255).astype(np.uint8)
    assert "frame_constant" not in aggregate(showing(wide.seen, lit), manifest).reasons
