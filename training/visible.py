"""What of each defect lies in each patch: the table `defects.csv` of a cut folder. No torch.

Labels say that a defect is there; this says how large, how faint and how near to the window's border it is, and where.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from engine import Window
from training.rows import read_rows, write_rows

VISIBLE_FILE = "defects.csv"
CROSSED = -1


@dataclass(frozen=True, slots=True)
class Visible:
    """The part of one defect that lies in one patch.

    Attributes:
        label: its label.
        presence: 1, or -1 where too little of it lies here to be sure.
        left, top, right, bottom: of that part, in pixels of the patch; right and bottom exclusive.
        border_px: from the whole defect's box to the nearest border of the window inside the frame; -1 where one cuts
            it, None where the window has none.
        contrast: of the whole defect in multiples of the local noise, told or measured; None where it is not known.
    """

    label: str
    presence: int
    left: int
    top: int
    right: int
    bottom: int
    border_px: int | None
    contrast: float | None

    @property
    def size_px(self) -> int:
        """Its longer side, of what lies in the patch."""
        return max(self.right - self.left, self.bottom - self.top)


def border_px(box: tuple[int, int, int, int], window: Window, patch_px: int, shape: tuple[int, ...]) -> int | None:
    """Pixels from a box to the nearest side of a window, of those sides that are not the frame's own edge.

    Args:
        box: left, top, right and bottom in pixels of the frame.
        window: that it lies in, at least partly.
        patch_px: side of the window.
        shape: (height, width) of the frame.

    Returns:
        The distance, -1 where such a side cuts the box, None where the window has no such side.
    """
    left, top, right, bottom = box
    end_row, end_column = window.top + patch_px, window.left + patch_px
    distances = [
        *([top - window.top] if window.top > 0 else []),
        *([left - window.left] if window.left > 0 else []),
        *([end_row - bottom] if end_row < shape[0] else []),
        *([end_column - right] if end_column < shape[1] else []),
    ]
    return max(min(distances), CROSSED) if distances else None


def write_visible(folder: Path, patches: Iterable[tuple[str, Sequence[Visible]]]) -> None:
    """Write the table of a cut folder, from the name of each patch's image and what lies in it."""
    header = ["img_names", *(field.name for field in fields(Visible))]
    rows = ((name, *astuple(one)) for name, seen in patches for one in seen)
    write_rows(folder / VISIBLE_FILE, header, rows)


def read_visible(folder: Path) -> dict[str, list[Visible]]:
    """What lies in each patch that holds something, by the name of its image.

    Raises:
        ValueError: the folder was cut before there was such a table, or a row of it is malformed.
    """
    table = folder / VISIBLE_FILE
    if not table.is_file():
        raise ValueError(f"{folder} has no {VISIBLE_FILE}: make it anew by `python -m training cut`")
    found: dict[str, list[Visible]] = {}
    for index, row in enumerate(read_rows(table)):
        try:
            one = Visible(
                label=row["label"],
                presence=int(row["presence"]),
                left=int(row["left"]),
                top=int(row["top"]),
                right=int(row["right"]),
                bottom=int(row["bottom"]),
                border_px=int(row["border_px"]) if row["border_px"] else None,
                contrast=float(row["contrast"]) if row["contrast"] else None,
            )
            found.setdefault(row["img_names"], []).append(one)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{table}, row {index}: {error!r}") from error
    return found
