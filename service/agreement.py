"""Do two verdicts on one screen agree? Those of two runtimes, or a bundle's and what follows from its module.

Scores may differ by the bundle's tolerance, so verdicts may where a score lies that near to a limit: rounding decides
there. Boxes are drawn around the cells of activation maps that are warmer than half way to the warmest, so rounding may
move an edge by some cells, split a defect in two, or give or take a cell as warm as that, or a patch that hardly
reaches its threshold. It does not put a defect elsewhere. Pure.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

from engine import LabelLimits, Manifest
from service.aggregation import PROOF_REASONS
from service.verdict import Box, Defect, LabelResult, Outcome

Agreement = Literal["same", "rounded", "different"]

EDGE = 8  # an edge may move by this part of a patch: four cells of the networks here
ROUNDED_MOST = 0.05  # of the screens: what rounds more than these is another network


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


def agree(one: Said, other: Said, manifest: Manifest, *, tolerance: float, same_windows: bool) -> Agreement:
    """Whether two verdicts on the same screen agree.

    Args:
        one: a verdict.
        other: another, with the same labels and limits.
        manifest: of the bundle that both are of.
        tolerance: by how much a score may differ.
        same_windows: whether both come of the same windows. Where scores differ by a hair, so may the windows of a
            second look; one that was looked at for one verdict alone widens, joins or adds defects there.

    Returns:
        "same": verdict, reasons and the labels that are present are the same, and so are the boxes but for what
        rounding moves. "rounded": one of the former differs, as a score lies at a limit or as a window was looked at
        for one verdict alone. "different": anything else.
    """
    if not all(_boxes_agree(label, one, other, manifest.patch_px, tolerance, same_windows) for label in one.labels):
        return "different"
    pairs = [(found.score, other.labels[label].score) for label, found in one.labels.items()]
    if same_windows and not all(abs(mine - others) <= tolerance for mine, others in pairs):
        return "different"
    if (one.verdict, one.reasons, _present(one)) == (other.verdict, other.reasons, _present(other)):
        return "same"
    at_a_limit = any(
        _near_a_limit(score, limits, tolerance)
        for pair, limits in zip(pairs, manifest.labels.values(), strict=True)
        for score in pair
    )
    if _proofs(one) != _proofs(other) or (same_windows and not at_a_limit):
        return "different"
    return "rounded"


def too_many(rounded: int, screens: int) -> bool:
    """Whether rounding decides more screens than it may: a twentieth, and one of few."""
    return rounded > max(1, ROUNDED_MOST * screens)


def _proofs(said: Said) -> list[str]:
    return [reason for reason in said.reasons if reason in PROOF_REASONS]


def _near_a_limit(score: float, limits: LabelLimits, tolerance: float) -> bool:
    return any(abs(score - limit) <= tolerance for limit in (*limits.review, limits.threshold))


def _boxes_agree(label: str, one: Said, other: Said, patch_px: int, tolerance: float, same_windows: bool) -> bool:
    """Whether two verdicts have the defects of a label in the same places."""
    found = one.labels[label], other.labels[label]
    mine, others = ([defect for defect in said.defects if defect.label == label] for said in (one, other))
    if [result.count for result in found] != [len(mine), len(others)]:
        return False
    if found[0].present != found[1].present and not same_windows:
        return True
    sure = [[d for d in defects if d.score >= found[0].threshold + tolerance] for defects in (mine, others)]
    doubtful = len(mine) + len(others) - len(sure[0]) - len(sure[1])
    # one may be split in two, or be there for one alone
    if same_windows and abs(len(mine) - len(others)) > 1 + doubtful:
        return False
    edge_px = patch_px // EDGE if same_windows else patch_px
    return _lie_among(sure[0], others, edge_px, patch_px) and _lie_among(sure[1], mine, edge_px, patch_px)


def _present(said: Said) -> dict[str, bool]:
    return {label: result.present for label, result in said.labels.items()}


def _lie_among(defects: Iterable[Defect], others: Sequence[Defect], edge_px: int, patch_px: int) -> bool:
    """Whether defects lie where others do: of each strongest patch at least half of them.

    The warmest cell of a patch is in a box whatever was rounded. Another may be in one for one verdict alone, where it
    is as warm as the half way that decides.
    """
    placed = defaultdict(list)
    for defect in defects:
        placed[defect.row, defect.column].append(_lies_among(defect, others, edge_px, patch_px))
    return all(2 * sum(found) >= len(found) for found in placed.values())


def _lies_among(defect: Defect, others: Sequence[Defect], edge_px: int, patch_px: int) -> bool:
    """Whether a defect lies within the box around those that it touches, but for some cells.

    One that crosses several patches may lose or gain one of them, whose score is at the threshold.
    """
    near = [other for other in others if _touch(_grown(defect.box, edge_px), other.box)]
    if not near:
        return False
    across = max(one.patches for one in (defect, *near)) > 1
    return _holds(_grown(_around(near), patch_px if across else edge_px), defect.box)


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
