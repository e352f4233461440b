"""Do two verdicts on one screen agree? Those of two runtimes, or a bundle's and what follows from its module.

Scores may differ by the bundle's tolerance, so verdicts may where a score lies that near to a limit: rounding decides
there. Boxes are drawn around the cells of activation maps that are warmer than half way to the warmest, so rounding may
move an edge by some cells, split a defect in two, or give or take a cell as warm as that, or a patch that hardly
reaches its threshold. It does not put a defect elsewhere. Pure.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol

from engine import LabelLimits, Manifest
from service.aggregation import PROOF_REASONS
from service.verdict import Box, Defect, LabelResult, Outcome

Agreement = Literal["same", "rounded", "different"]

EDGE = 8  # an edge may move by this part of a patch: four cells of the networks here
STRAYS_MOST = 1  # defects of a screen that one verdict has alone: a cell may be as warm as the half way that decides
STRAYS_RATIO_MOST = 0.25  # of the defects of both; up to here it is still rounding, and counted as such
HAIR = 1e-6  # scores are float32
ROUNDED_MOST = 0.05  # of the screens: what rounds more than these is another network


class Comparison(NamedTuple):
    """Whether two verdicts agree, and what tells them apart: nothing where they are the same."""

    agreement: Agreement
    why: str = ""


class Said(Protocol):
    """What a verdict says of a screen."""

    @property
    def verdict(self) -> Outcome:
        """What becomes of it."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why."""

    @property
    def labels(self) -> Mapping[str, LabelResult]:
        """What it has, by label."""

    @property
    def defects(self) -> Sequence[Defect]:
        """Where."""


def agree(one: Said, other: Said, manifest: Manifest, *, tolerance: float, same_windows: bool) -> Comparison:
    """Whether two verdicts on the same screen agree, and why not.

    Args:
        one: a verdict.
        other: another, with the same labels and limits.
        manifest: of the bundle that both are of.
        tolerance: by how much a score may differ.
        same_windows: whether both come of the same windows, looked at alike. Where scores differ by a hair, so may the
            windows of a second look and those looked at turned, and what is seen in one that is so for one alone.

    Returns:
        "same": verdict, reasons, the labels that are present and the boxes are the same, but for what rounding moves.
        "rounded": they are not, as a score lies at a limit, some cells of maps are warm for one alone, or a window was
        looked at for one alone.
        "different": anything else.
    """
    if _proofs(one) != _proofs(other):
        return Comparison("different", f"proofs are missing: {_both(_proofs(one), _proofs(other))}")
    if not (_counts_its_defects(one) and _counts_its_defects(other)):
        return Comparison("different", "a count is not that of its boxes")
    looked_elsewhere: Agreement = "different" if same_windows else "rounded"
    if score := _score_apart(one, other, tolerance):
        return Comparison(looked_elsewhere, score)
    strays = _strays(one, other, manifest.patch_px // EDGE, manifest.patch_px, tolerance)
    most = max(STRAYS_MOST, STRAYS_RATIO_MOST * (len(one.defects) + len(other.defects)))
    if strays > most:
        return Comparison(looked_elsewhere, "boxes that one alone has, or has elsewhere")
    if strays > STRAYS_MOST:
        return Comparison("rounded", f"{strays:.0f} boxes that one alone has")
    if (one.verdict, one.reasons, _present(one)) == (other.verdict, other.reasons, _present(other)):
        return Comparison("same")
    # a limit that lies between two scores is near to both
    limits = (manifest.labels[label] for label in one.labels)
    at_a_limit = any(map(partial(_near_a_limit, tolerance=tolerance), one.labels.values(), limits))
    told = [
        f"{said.verdict} ({', '.join([*said.reasons, *_present(said)]) or 'nothing there'})" for said in (one, other)
    ]
    if at_a_limit:
        return Comparison("rounded", f"a score at a limit: {' and '.join(told)}")
    return Comparison("different", f"verdict, reasons or labels: {' and '.join(told)}")


def too_many(rounded: int, screens: int) -> bool:
    """Whether rounding decides more screens than it may: a twentieth, and one of few."""
    return rounded > max(1, ROUNDED_MOST * screens)


def _proofs(said: Said) -> list[str]:
    return [reason for reason in said.reasons if reason in PROOF_REASONS]


def _both(one: Sequence[str], other: Sequence[str]) -> str:
    return " and ".join(", ".join(words) or "none" for words in (one, other))


def _present(said: Said) -> list[str]:
    return [label for label, found in said.labels.items() if found.present]


def _score_apart(one: Said, other: Said, tolerance: float) -> str:
    """The first label whose scores differ by more than the tolerance; empty where none does."""
    for label, found in one.labels.items():
        others = other.labels[label].score
        if not abs(found.score - others) <= tolerance + HAIR:  # nor where one is no number
            return f"{label} scores {found.score:.4g} and {others:.4g}, which differ by more than {tolerance:g}"
    return ""


def _near_a_limit(found: LabelResult, limits: LabelLimits, *, tolerance: float) -> bool:
    return any(abs(found.score - limit) <= tolerance + HAIR for limit in (*limits.review, limits.threshold))


def _counts_its_defects(said: Said) -> bool:
    there = Counter(defect.label for defect in said.defects)
    return all(found.count == there[label] for label, found in said.labels.items())


def _strays(one: Said, other: Said, edge_px: int, patch_px: int, tolerance: float) -> float:
    """How many defects of one verdict the other does not have, on both sides; infinitely many where none may be.

    A patch that hardly reaches its threshold may have the label for one verdict alone, and then all of its defects. In
    one that has it for both, so that there is another defect no further than its side, a cell may be warm for one
    alone. What both have is in the same place.
    """
    strays = 0.0
    for said, beside in ((one, other), (other, one)):
        for defect in said.defects:
            others = [found for found in beside.defects if found.label == defect.label]
            near, within = ([o for o in others if _touch(_grown(defect.box, px), o.box)] for px in (edge_px, patch_px))
            alone = not any((found.row, found.column) == (defect.row, defect.column) for found in others)
            if near:
                strays += 0 if _lies_among(defect, near, edge_px, patch_px) else math.inf
            elif not (alone and defect.score < said.labels[defect.label].threshold + tolerance + HAIR):
                strays += 1 if within else math.inf
    return strays


def _lies_among(defect: Defect, near: Sequence[Defect], edge_px: int, patch_px: int) -> bool:
    """Whether a defect lies within the box around those that it touches, but for some cells.

    One that crosses several patches may lose or gain one of them, whose score is at the threshold.
    """
    lost = any(other.patches != defect.patches for other in near)
    return _holds(_grown(_around(near), patch_px if lost else edge_px), defect.box)


def _around(defects: Sequence[Defect]) -> Box:
    boxes = [defect.box for defect in defects]
    return Box(
        left=min(box.left for box in boxes),
        top=min(box.top for box in boxes),
        right=max(box.right for box in boxes),
        bottom=max(box.bottom for box in boxes),
    )


def _grown(box: Box, by_px: int) -> Box:
    return Box(left=box.left - by_px, top=box.top - by_px, right=box.right + by_px, bottom=box.bottom + by_px)


def _touch(one: Box, other: Box) -> bool:
    return one.left < other.right and other.left < one.right and one.top < other.bottom and other.top < one.bottom


def _holds(room: Box, box: Box) -> bool:
    return room.left <= box.left and room.top <= box.top and box.right <= room.right and box.bottom <= room.bottom
