"""Which screens limits can keep apart: the best that one limit for each label can do, all labels together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
WIDTH = 32  # boxes that are followed of each number of defective screens


@dataclass(frozen=True, slots=True, eq=False)
class Screens:
    """Whole screens: `highest` (S, L), the highest score of each label over the patches; `defective` (S,)."""

    highest: NDArray[np.float64]
    defective: Mask

    def __len__(self) -> int:
        return len(self.defective)

    def take(self, which: NDArray[np.int64]) -> "Screens":
        """Those of these numbers, as often as they are named."""
        return Screens(self.highest[which], self.defective[which])


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """The screens whose every score is below one limit for each label.

    `limits` (L,); `clean` and `defective` count the screens inside.
    """

    limits: NDArray[np.float64]
    clean: int
    defective: int


def frontier(
    screens: Screens, floor: NDArray[np.float64], ceiling: NDArray[np.float64], *, place: float, width: int = WIDTH
) -> list[Box]:
    """The boxes worth having, small to large: none has more clean screens and no more defective ones inside.

    Each is as small as the clean screens in it allow: a smaller one loses a clean screen, a larger one can only gain
    defective ones. The search begins with the largest; a step lowers the limit of one label until the defective screen
    with the highest score of that label is outside. Every box worth having is at the end of such steps. To find the
    best is as hard as covering a set, so of each number of defective screens inside only the `width` boxes with most
    clean ones are followed: a beam search, exact while no box has to be dropped.

    Args:
        screens: of both kinds.
        floor: (L,) how low the limits may be.
        ceiling: (L,) how high they may be.
        place: of a limit in the gap between the highest score inside and the lowest that it has to keep outside.
        width: boxes that are followed.
    """
    clean = np.ascontiguousarray(screens.highest[~screens.defective].T)
    bad = np.ascontiguousarray(screens.highest[screens.defective].T)
    least, most = floor[:, None], ceiling[:, None]
    # by the number of defective screens inside: which clean and which defective ones are, and the highest scores
    waiting: dict[int, dict[bytes, tuple[Mask, Mask, NDArray[np.float64]]]] = {}

    def wait(kept: Mask) -> None:
        top = clean[:, kept].max(axis=1, keepdims=True, initial=-1.0)
        kept, left = (((scores <= top) | (scores < least)).all(axis=0) for scores in (clean, bad))
        waiting.setdefault(int(left.sum()), {})[kept.tobytes()] = kept, left, top[:, 0]

    wait(np.asarray((clean < most).all(axis=0)))
    best: list[Box] = []
    while waiting:
        defective = max(waiting)
        followed = sorted(waiting.pop(defective).values(), key=lambda box: -int(box[0].sum()))[:width]
        kept, _, top = followed[0]
        limits = np.minimum(_limits(screens, top, floor, place), ceiling)
        best.append(Box(limits, int(kept.sum()), defective))
        for kept, left, _ in followed:
            for scores, limit, lowest in zip(clean, bad[:, left].max(axis=1, initial=-1.0), floor, strict=True):
                if limit >= lowest:
                    wait(kept & (scores < limit))
    worth: list[Box] = []
    for box in reversed(best):  # from the fewest defective screens inside on
        if not worth or box.clean > worth[-1].clean:
            worth.append(box)
    return worth


def _limits(
    screens: Screens, top: NDArray[np.float64], floor: NDArray[np.float64], place: float
) -> NDArray[np.float64]:
    """Limits above the highest scores (L,) inside, and no lower than the floor.

    Of the screens outside only those count that a label has to keep there: each is left to the label by which it
    stands out most. Where there is none the gap ends at 1.
    """
    out = (screens.highest > top) & (screens.highest >= floor)
    keeper = np.where(out, _logit(screens.highest) - _logit(np.maximum(top, floor)), -np.inf).argmax(axis=1)
    kept = out & (keeper[:, None] == np.arange(len(top)))
    above = np.where(kept, screens.highest, 1.0).min(axis=0)
    return np.where(top < 0, floor, np.maximum(top + place * (above - top), floor))


def _logit(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    within = np.clip(probability, 1e-9, 1 - 1e-9)
    return np.asarray(np.log(within / (1 - within)))
