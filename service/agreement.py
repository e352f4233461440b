"""Do two verdicts on one screen agree? Those of two runtimes, or a bundle's and what follows from its module.

Verdict, reasons and the labels that are present must be the same. Boxes are drawn around the cells of activation maps
that are warmer than half way to the warmest, so rounding may move an edge by some cells, split a defect in two, or give
or take a cell as warm as that, or a patch that hardly reaches its threshold. It does not put a defect elsewhere. Pure.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from service.verdict import Box, Defect, LabelResult, Outcome

EDGE = 8  # an edge may move by this part of a patch: four cells of the networks here


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


def agree(one: Said, other: Said, *, tolerance: float, patch_px: int, same_windows: bool) -> bool:
    """Whether two verdicts on the same screen agree.

    Args:
        one: a verdict.
        other: another, with the same labels and thresholds.
        tolerance: by how much a score may differ.
        patch_px: side of a window.
        same_windows: whether both come of the same windows. Where scores differ by a hair, so may the windows of a
            second look; one that was looked at for one verdict alone widens, joins or adds defects there.
    """
    edge_px = patch_px // EDGE if same_windows else patch_px
    if (one.verdict, one.reasons, _present(one)) != (other.verdict, other.reasons, _present(other)):
        return False
    for label, found in one.labels.items():
        mine, others = ([defect for defect in said.defects if defect.label == label] for said in (one, other))
        if (found.count, other.labels[label].count) != (len(mine), len(others)):
            return False
        sure = [[d for d in defects if d.score >= found.threshold + tolerance] for defects in (mine, others)]
        doubtful = len(mine) + len(others) - len(sure[0]) - len(sure[1])
        # one may be split in two, or be there for one alone
        if same_windows and abs(len(mine) - len(others)) > 1 + doubtful:
            return False
        if not (_lie_among(sure[0], others, edge_px, patch_px) and _lie_among(sure[1], mine, edge_px, patch_px)):
            return False
    return True


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
