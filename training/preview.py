"""Contact sheets of rendered screens, for the eye: crops at native resolution around defects."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.boxes import SIDES
from training.images import read_whole
from training.pictures import crop, tiles
from training.rows import read_rows

_CROP_PX = 256
_COLUMNS, _ROWS = 6, 4
_WHOLE_PX = 1400  # longer side of the downscaled frame


def write_previews(folder: Path) -> None:
    """Write `preview_<label>.png`, `preview_clean.png` and `preview_frames.png` beside the screens.

    The crops of a label run from its weakest to its strongest defect; ticks at a crop's edges point at it.
    """
    boxes = read_rows(folder / "boxes.csv")
    contrasts = [float(row["contrast"]) for row in read_rows(folder / "conditions.csv")]
    names = [row["screen"] for row in read_rows(folder / "splits.csv")]
    for label in sorted({row["label"] for row in boxes}):
        rows = sorted((k for k, row in enumerate(boxes) if row["label"] == label), key=contrasts.__getitem__)
        chosen = [rows[round(k)] for k in np.linspace(0, len(rows) - 1, min(_COLUMNS * _ROWS, len(rows)))]
        crops = [_around_box(folder, boxes[k]) for k in chosen]
        cv2.imwrite(str(folder / f"preview_{label}.png"), tiles(crops, min(_COLUMNS, len(crops))))
    defective = {row["screen"] for row in boxes}
    clean = [name for name in names if name not in defective][: _COLUMNS * _ROWS]
    if clean:
        crops = [
            crop(frame := _read(folder, name), frame.shape[0] // 2, frame.shape[1] // 2, _CROP_PX)[0] for name in clean
        ]
        cv2.imwrite(str(folder / "preview_clean.png"), tiles(crops, min(_COLUMNS, len(crops))))
    cv2.imwrite(str(folder / "preview_frames.png"), _whole(folder, names[:6]))


def _around_box(folder: Path, row: dict[str, str]) -> NDArray[np.uint8]:
    left, top, right, bottom = (int(row[side]) for side in SIDES)
    middle_row, middle_column = (top + bottom) // 2, (left + right) // 2
    if max(right - left, bottom - top) > _CROP_PX:  # the middle of a long scratch's box may lie off the scratch
        with np.load(folder / "masks" / f"{row['screen']}.npz", allow_pickle=False) as arrays:
            rows, columns = arrays["row"], arrays["column"]
        inside = np.flatnonzero((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right))
        pixel = inside[len(inside) // 2]
        middle_row, middle_column = int(rows[pixel]), int(columns[pixel])
    around, _, _ = crop(_read(folder, row["screen"]), middle_row, middle_column, _CROP_PX)
    around[:4, _CROP_PX // 2] = 255
    around[_CROP_PX // 2, :4] = 255
    return around


def _whole(folder: Path, names: list[str]) -> NDArray[np.uint8]:
    frames = [_read(folder, name) for name in names]
    scale = _WHOLE_PX / 2 / max(frames[0].shape)
    return np.hstack([cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for f in frames])


def _read(folder: Path, name: str) -> NDArray[np.uint8]:
    return read_whole(folder / "screens" / f"{name}.png")
