"""Probabilities and activation maps of one screen to its verdict: step 7 of an inspection. Pure.

The score of a label on a screen is its highest over the windows. A pass is proven, never a default: where a proof is
missing the screen goes to review, whatever its scores; then a score decides for fail, then for review.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from engine import NO_GUARD, FrameLimits, Manifest, Window, warm_cells
from service.meter import Brightness
from service.selftest import SelfTestReport
from service.verdict import Box, Defect, FrameSizeFrom, LabelResult, Outcome, Proof

# why a screen did not pass, in the order in which they decide
PROOF_REASONS = (
    "windows_missing",
    "pixels_not_covered",
    "score_not_finite",
    "frame_constant",
    "frame_saturated",
    "self_test_stale",
)
FAIL_REASON = "score_in_fail_range"
REVIEW_REASON = "score_in_review_band"
REASONS = (*PROOF_REASONS, FAIL_REASON, REVIEW_REASON)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """Everything that is known of one screen before it is judged.

    Attributes:
        brightness: of the frame, whose size it has.
        size_from: who agreed its size.
        expected: windows that cover a frame of the agreed size.
        windows: the K windows that were inferred.
        windows_turned: how many of them were looked at in all positions.
        windows_cleared: how many of them a glance alone has seen.
        probability: (K, C) scores of those windows, labels in the manifest's order.
        activation: (K, C, h, w) where each label was seen, without an absolute level.
        self_test: of the device that ran the screen.
    """

    brightness: Brightness
    size_from: FrameSizeFrom
    expected: Sequence[Window]
    windows: Sequence[Window]
    windows_turned: int
    windows_cleared: int
    probability: NDArray[np.float32]
    activation: NDArray[np.float32]
    self_test: SelfTestReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What follows from `Observed`: the parts of `Verdict` that it decides."""

    verdict: Outcome
    reasons: tuple[str, ...]
    labels: dict[str, LabelResult]
    defects: tuple[Defect, ...]
    proof: Proof


def aggregate(seen: Observed, manifest: Manifest, guard: Mapping[str, float] = NO_GUARD) -> Judgement:
    """Judge one screen.

    Args:
        seen: what is known of it.
        manifest: of the bundle that scored it.
        guard: guard band by label: how far a score may move with the slot of its patch in a batch.

    Raises:
        ValueError: the scores or the maps are not those of these windows and labels.
    """
    form = (len(seen.windows), len(manifest.labels))
    if seen.probability.shape != form or seen.activation.shape[:2] != form:
        raise ValueError(f"scores {seen.probability.shape} and maps {seen.activation.shape} do not fit {form}")
    finite = bool(np.isfinite(seen.probability).all())
    labels: dict[str, LabelResult] = {}
    defects: list[Defect] = []
    # as float64, so that a score meets every limit as the number that the answer shows; one that is infinite or
    # none is in no range: the proof fails on it, and JSON could not carry it
    scores = np.nan_to_num(seen.probability.astype(np.float64), nan=0.0, posinf=1.0, neginf=0.0)
    for index, (label, limits) in enumerate(manifest.labels.items()):
        found = locate(
            label,
            scores[:, index],
            seen.activation[:, index],
            seen.windows,
            threshold=limits.threshold,
            patch_px=manifest.patch_px,
        )
        score = float(scores[:, index].max(initial=0.0))
        labels[label] = LabelResult(
            score=score, count=len(found), threshold=limits.threshold, present=score >= limits.threshold
        )
        defects += found
    proof = Proof(
        frame_size_from=seen.size_from,
        windows_expected=len(seen.expected),
        windows_inferred=len(set(seen.expected) & set(seen.windows)),
        windows_extra=len(set(seen.windows) - set(seen.expected)),
        windows_turned=seen.windows_turned,
        windows_cleared=seen.windows_cleared,
        covered=covers(seen.windows, seen.brightness.size, manifest.patch_px),
        finite=finite,
        self_test_age_s=seen.self_test.age_s,
    )
    missing = tuple(missing_proofs(proof, seen, manifest.frame))
    verdict, reasons = decide(missing, labels, manifest, guard)
    # one order, whatever the order of windows and labels
    defects.sort(key=lambda d: (-d.score, d.label, d.box.top, d.box.left, d.box.bottom, d.box.right))
    return Judgement(verdict=verdict, reasons=reasons, labels=labels, defects=tuple(defects), proof=proof)


def decide(
    missing: tuple[str, ...], labels: dict[str, LabelResult], manifest: Manifest, guard: Mapping[str, float]
) -> tuple[Outcome, tuple[str, ...]]:
    """Verdict and reasons: a missing proof, then fail, then review, then pass; of the scores as the manifest says."""
    scores = [labels[label].score for label in manifest.labels]
    found = manifest.outcomes(scores, guard)
    reasons = (
        *missing,
        *([FAIL_REASON] if "fail" in found else []),
        *([REVIEW_REASON] if "review" in found else []),
    )
    return "review" if missing else manifest.outcome(scores, guard), reasons


def missing_proofs(proof: Proof, seen: Observed, limits: FrameLimits) -> Iterator[str]:
    """The reason code of each proof that a pass would need and that is not there."""
    if not proof.windows_inferred == proof.windows_expected > 0:
        yield "windows_missing"
    if not proof.covered:
        yield "pixels_not_covered"
    if not proof.finite:
        yield "score_not_finite"
    if seen.brightness.contrast < limits.contrast_min:
        yield "frame_constant"
    if seen.brightness.saturated_ratio > limits.saturated_ratio_max:
        yield "frame_saturated"
    if not (seen.self_test.ok and seen.self_test.fresh):
        yield "self_test_stale"


def covers(windows: Sequence[Window], shape: tuple[int, ...], patch_px: int) -> bool:
    """Whether every pixel of a frame of `shape` (height, width) lies in a window."""
    tops = np.array([window.top for window in windows])
    lefts = np.array([window.left for window in windows])
    if not len(tops):
        return False
    # between two neighbouring edges of windows the cover is the same: one look at each such cell is enough
    ys = np.unique(np.clip([*tops, *(tops + patch_px), 0], 0, shape[0]))
    xs = np.unique(np.clip([*lefts, *(lefts + patch_px), 0], 0, shape[1]))
    if ys[-1] < shape[0] or xs[-1] < shape[1]:
        return False
    covered = np.zeros((len(ys) - 1, len(xs) - 1), np.bool_)
    for top, left in zip(tops, lefts, strict=True):
        rows, columns = (ys[:-1] >= top) & (ys[1:] <= top + patch_px), (xs[:-1] >= left) & (xs[1:] <= left + patch_px)
        covered |= rows[:, None] & columns
    return bool(covered.all())


@dataclass(frozen=True, slots=True)
class _Cell:
    """One warm cell of a window's map, in pixels of the frame."""

    window: int
    box: Box


def locate(
    label: str,
    scores: NDArray[np.float64],
    activation: NDArray[np.float32],
    windows: Sequence[Window],
    *,
    threshold: float,
    patch_px: int,
) -> list[Defect]:
    """The defects of one label: warm cells of the windows that have it, joined over the borders of windows.

    Cells that touch, or have the room of one cold cell between them, belong to one defect: a scratch over five
    patches is one.

    Args:
        label: its name.
        scores: (K,) of the windows.
        activation: (K, h, w) of the windows.
        windows: K.
        threshold: score from which a window has the label.
        patch_px: side of a window.
    """
    present = [k for k in range(len(windows)) if scores[k] >= threshold]
    cells = [cell for k in present for cell in _warm_cells(k, activation[k], windows[k], patch_px)]
    if not cells:
        return []
    cells_across = max(activation.shape[1:])
    # without a map there are no cells to skip: a clean window between two others keeps them apart
    gap_px = patch_px // cells_across if cells_across > 1 else 0
    groups: dict[int, list[_Cell]] = {}
    for cell, group in zip(cells, _joined([cell.box for cell in cells], gap_px), strict=True):
        groups.setdefault(group, []).append(cell)
    return [_defect(label, group, scores, windows) for group in groups.values()]


def _warm_cells(index: int, activation: NDArray[np.float32], window: Window, patch_px: int) -> Iterator[_Cell]:
    height, width = activation.shape
    warm = warm_cells(activation)
    if not warm.any():  # it says only that the defect is in the window
        right, bottom = window.left + patch_px, window.top + patch_px
        yield _Cell(index, Box(left=window.left, top=window.top, right=right, bottom=bottom))
        return
    for row, column in np.argwhere(warm).tolist():
        yield _Cell(
            index,
            Box(
                left=window.left + column * patch_px // width,
                top=window.top + row * patch_px // height,
                right=window.left + -(-(column + 1) * patch_px // width),
                bottom=window.top + -(-(row + 1) * patch_px // height),
            ),
        )


def _joined(boxes: Sequence[Box], gap_px: int) -> list[int]:
    """The group of each box: boxes that touch, or lie no more than `gap_px` apart on either axis, share one."""
    # each grown to one side only, so that two meet where the gap between them is one `gap_px` and not two
    corners = np.array([(box.left, box.top, box.right + gap_px, box.bottom + gap_px) for box in boxes])
    # windows may start anywhere: a grid of all the edges that there are is exact, and small
    xs, ys = np.unique(corners[:, 0::2]), np.unique(corners[:, 1::2])
    lefts, rights = np.searchsorted(xs, corners[:, 0::2]).T
    tops, bottoms = np.searchsorted(ys, corners[:, 1::2]).T
    grid = np.zeros((len(ys), len(xs)), np.uint8)
    for left, top, right, bottom in zip(lefts, tops, rights, bottoms, strict=True):
        grid[top:bottom, left:right] = 1
    _, regions = cv2.connectedComponents(grid, connectivity=8)
    return [int(group) for group in regions[tops, lefts]]


def _defect(label: str, cells: Sequence[_Cell], scores: NDArray[np.float64], windows: Sequence[Window]) -> Defect:
    crossed = {cell.window for cell in cells}
    # equal scores: the first in row order, whatever the order of the windows
    strongest = max(crossed, key=lambda k: (float(scores[k]), -windows[k].top, -windows[k].left))
    return Defect(
        label=label,
        score=float(scores[strongest]),
        row=windows[strongest].row,
        column=windows[strongest].column,
        patches=len(crossed),
        box=Box(
            left=min(cell.box.left for cell in cells),
            top=min(cell.box.top for cell in cells),
            right=max(cell.box.right for cell in cells),
            bottom=max(cell.box.bottom for cell in cells),
        ),
    )
