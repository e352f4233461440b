"""The defects of a data folder: `boxes.csv` with its masks and contrasts, which refer to its rows by their number."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from training.rows import read_arrays, read_rows, write_rows
from training.truth import Defect

SIDES = ("left", "top", "right", "bottom")
BOX_COLUMNS = ("screen", "label", *SIDES, "area_px")
RENUMBERED = (
    "masks and conditions.csv refer to rows of boxes.csv by their number, from 0: where rows were moved or deleted, "
    "remove the folder masks and conditions.csv"
)

_Number = TypeVar("_Number", int, float)
Mask = tuple[NDArray[np.int32], NDArray[np.int32]]  # rows and columns of its pixels


def read_defects(source: Path, screens: Collection[str]) -> dict[str, list[Defect]]:
    """Defects of each screen that has any, with their masks and contrasts where there are some.

    Args:
        source: a folder in the data form.
        screens: names of those that it holds.

    Raises:
        ValueError: boxes.csv is missing or malformed, names a screen that is not there, or masks or contrasts are not
            of its rows; the message names the file.
    """
    table = source / "boxes.csv"
    if not table.is_file():
        raise ValueError(f"{table} is missing")
    contrasts = _Contrasts(source / "conditions.csv")
    found: dict[str, list[Defect]] = {}
    masks: dict[str, dict[int, Mask]] = {}
    for index, row in enumerate(read_rows(table, "screen", "label", *SIDES)):
        where, screen = f"{table}, row {index} below the header", row["screen"]
        if screen not in screens:  # its defects would silently be nowhere
            raise ValueError(f"{table} names the screen {screen!r}, which is not there (names have no suffix)")
        if screen not in masks:
            masks[screen] = _masks_of(source / "masks" / f"{screen}.npz")
        rows, columns = masks[screen].pop(index, (None, None))
        defect = Defect(
            label=row["label"],
            **_box(row, where),
            rows=rows,
            columns=columns,
            contrast=contrasts.of(index, screen, row["label"]),
        )
        if rows is not None and columns is not None and not _lies_in(defect, rows, columns):
            raise ValueError(
                f"{source / 'masks' / screen}.npz: pixels of row {index} lie outside its box: {RENUMBERED}"
            )
        found.setdefault(screen, []).append(defect)
    for path in sorted((source / "masks").glob("*.npz")):
        if left := masks.get(path.stem, {}) or (path.stem not in masks and _masks_of(path)):
            raise ValueError(f"{path}: pixels of row {min(left)}, which is none of this screen: {RENUMBERED}")
    return found


def read_masks(path: Path) -> dict[int, Mask]:
    """Rows and columns of the pixels of one screen's defects, by their row of boxes.csv.

    Raises:
        ValueError: the file cannot be read, or holds no masks.
    """
    rows, columns, ids = read_arrays(path, ("row", "column", "id"))
    if not rows.shape == columns.shape == ids.shape == (rows.size,):
        raise ValueError("row, column and id are not equally long")
    if (np.minimum(rows, columns) < 0).any():
        raise ValueError("pixels lie above or left of the screen")
    order = np.argsort(ids, kind="stable")
    values, starts = np.unique(ids[order], return_index=True)
    split = zip(np.split(rows[order], starts[1:]), np.split(columns[order], starts[1:]), strict=True)
    return dict(zip(values.tolist(), split, strict=True)) if len(ids) else {}


def box_row(screen: str, defect: Defect) -> tuple[object, ...]:
    """A row of boxes.csv."""
    return screen, defect.label, *defect.box, defect.area_px


def write_boxes(folder: Path, rows: Iterable[tuple[object, ...]]) -> None:
    """Write boxes.csv, of what `box_row` gives."""
    write_rows(folder / "boxes.csv", BOX_COLUMNS, rows)


def write_masks(path: Path, defects: Sequence[Defect], *, first: int) -> int:
    """Write the pixels of one screen's defects, of those that have any; their number.

    Args:
        path: of the file, which is not written where none has any.
        defects: of the screen.
        first: row of boxes.csv of the first of them.
    """
    masked = [(first + k, defect.rows, defect.columns) for k, defect in enumerate(defects)]
    kept = [(np.full(len(r), k, np.int32), r, c) for k, r, c in masked if r is not None and c is not None]
    if kept:
        ids, rows, columns = (np.concatenate(arrays) for arrays in zip(*kept, strict=True))
        np.savez_compressed(path, row=rows, column=columns, id=ids)
    return len(kept)


def _box(row: Mapping[str, str], where: str) -> dict[str, int]:
    box = {}
    for side in SIDES:
        try:
            box[side] = int(row[side])
        except ValueError as error:
            raise ValueError(f"{where}: {side} is {row[side]!r}, which is no whole number") from error
    if not (0 <= box["left"] < box["right"] and 0 <= box["top"] < box["bottom"]):
        raise ValueError(f"{where}: an empty or negative box")
    return box


def _lies_in(defect: Defect, rows: NDArray[np.int32], columns: NDArray[np.int32]) -> bool:
    return bool(
        defect.top <= rows.min()
        and rows.max() < defect.bottom
        and defect.left <= columns.min()
        and columns.max() < defect.right
    )


class _Contrasts:
    """What conditions.csv tells of rows of boxes.csv; nothing where there is no such table."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._rows: dict[int, Mapping[str, str]] = {}
        if table.is_file():
            for row in read_rows(table, "id", "contrast"):
                self._rows[self._number(row["id"], int)] = row

    def of(self, index: int, screen: str, label: str) -> float | None:
        """The contrast of a row of boxes.csv, which is of this screen and label; None where nothing is told."""
        row = self._rows.get(index)
        if row is None:
            return None
        if (row.get("screen", screen), row.get("label", label)) != (screen, label):
            raise ValueError(f"{self._table}: id {index} is of another screen or label: {RENUMBERED}")
        return self._number(row["contrast"], float)

    def _number(self, text: str, kind: type[_Number]) -> _Number:
        try:
            return kind(text)
        except ValueError as error:
            raise ValueError(f"{self._table}: {text!r} is no number") from error


def _masks_of(path: Path) -> dict[int, Mask]:
    if not path.is_file():
        return {}
    try:
        return read_masks(path)
    except ValueError as error:
        raise ValueError(f"{path} holds no masks: {error}") from error
