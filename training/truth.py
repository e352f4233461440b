"""What is true of a screen: a defect as boxes.csv and its mask have it, and what a window shows of it."""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from engine import Window

Rule = Literal["known", "paper"]
PARTS = ("train", "validation", "test")  # of a data set; a screen is in one of them
CELL_PX = 32  # side of a map cell: the trunks' stride
VISIBLE_SHARE = 0.2  # of a defect's area; more than this in a patch makes its label present


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One row of boxes.csv: where a defect lies, in pixels of its screen; right and bottom exclusive.

    `rows` and `columns` are its pixels where there is a mask, else None; `contrast` is in multiples of the local noise,
    None where `conditions.csv` does not tell and it has not been measured.
    """

    label: str
    left: int
    top: int
    right: int
    bottom: int
    rows: NDArray[np.int32] | None = None
    columns: NDArray[np.int32] | None = None
    contrast: float | None = None

    @classmethod
    def of_pixels(
        cls, label: str, rows: NDArray[np.int32], columns: NDArray[np.int32], *, contrast: float | None = None
    ) -> Self:
        """That of a mask, with the box about it; of (n,) each, n at least 1."""
        return cls(
            label=label,
            left=int(columns.min()),
            top=int(rows.min()),
            right=int(columns.max()) + 1,
            bottom=int(rows.max()) + 1,
            rows=rows,
            columns=columns,
            contrast=contrast,
        )

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom."""
        return self.left, self.top, self.right, self.bottom

    @property
    def size_px(self) -> int:
        """The longer side of its box."""
        return max(self.right - self.left, self.bottom - self.top)

    @property
    def area_px(self) -> int:
        """Its pixels, or those of its box where there is no mask."""
        if self.rows is None:
            return (self.right - self.left) * (self.bottom - self.top)
        return len(self.rows)

    def presence(self, window: Window, patch_px: int, *, rule: Rule = "known") -> int:
        """1 present, -1 unknown (some of it, but too little to be sure), 0 absent in this window.

        Present: more than 20 % of the area lies in the window, or, by the rule "known", the part inside is at least P/8
        long by its mask, P/2 by its box. Without the second clause a scratch over five patches would be labelled
        nowhere; the paper has no such clause.
        """
        if self.rows is None or self.columns is None:
            height = min(self.bottom, window.top + patch_px) - max(self.top, window.top)
            width = min(self.right, window.left + patch_px) - max(self.left, window.left)
            if height <= 0 or width <= 0:
                return 0
            share = height * width / ((self.bottom - self.top) * (self.right - self.left))
            long = rule == "known" and max(height, width) >= patch_px / 2
            return 1 if long or share > VISIBLE_SHARE else -1
        rows, columns = self._inside(window, patch_px)
        if len(rows) == 0:
            return 0
        long = rule == "known" and int(max(np.ptp(rows), np.ptp(columns))) + 1 >= patch_px / 8
        return 1 if long or len(rows) / len(self.rows) > VISIBLE_SHARE else -1

    def shrunk(self, by: int) -> "Defect":
        """The same defect on a screen that is so many times smaller."""
        if by == 1:
            return self
        rows, columns = self.rows, self.columns
        if rows is not None and columns is not None:
            rows, columns = np.unique(np.stack([rows, columns]) // by, axis=1)
        return Defect(
            label=self.label,
            left=self.left // by,
            top=self.top // by,
            right=-(-self.right // by),
            bottom=-(-self.bottom // by),
            rows=rows,
            columns=columns,
            contrast=self.contrast,
        )

    def cells(self, window: Window, patch_px: int) -> NDArray[np.bool_]:
        """Map cells (h, w) of the window that the defect touches."""
        side = -(-patch_px // CELL_PX)
        touched = np.zeros((side, side), bool)
        if self.rows is None or self.columns is None:
            left, top, right, bottom = self.extent(window, patch_px)
            if bottom > top and right > left:
                touched[top // CELL_PX : -(-bottom // CELL_PX), left // CELL_PX : -(-right // CELL_PX)] = True
            return touched
        rows, columns = self._inside(window, patch_px)
        touched[(rows - window.top) // CELL_PX, (columns - window.left) // CELL_PX] = True
        return touched

    def extent(self, window: Window, patch_px: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what lies in the window, in pixels of the patch; some of it must."""
        if self.rows is None or self.columns is None:
            left, top = max(self.left - window.left, 0), max(self.top - window.top, 0)
            return left, top, min(self.right - window.left, patch_px), min(self.bottom - window.top, patch_px)
        rows, columns = self._inside(window, patch_px)
        left, top = int(columns.min()) - window.left, int(rows.min()) - window.top
        return left, top, left + int(np.ptp(columns)) + 1, top + int(np.ptp(rows)) + 1

    def _inside(self, window: Window, patch_px: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        assert self.rows is not None
        assert self.columns is not None
        inside = (self.rows >= window.top) & (self.rows < window.top + patch_px)
        inside &= (self.columns >= window.left) & (self.columns < window.left + patch_px)
        return self.rows[inside], self.columns[inside]
