"""Frames whose window border runs through a defect: what lies on a border by chance is too little to measure on.

Each defect of a data folder gives one frame of two by two windows, cut out of its screen so that a border between them
crosses the defect or passes it closely. numpy and OpenCV only.
"""

from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from training.boxes import box_row, read_defects, write_boxes
from training.images import read_whole, screen_files
from training.truth import Defect

BESIDE_PX = 16  # a border passes a defect nearer than this


def cross(source: Path, out: Path, *, patch_px: int, most: int, seed: int) -> int:
    """Write such frames as a folder in the data form; the number of them.

    boxes.csv names the one defect that a frame is about: others on it may be cut off by the frame's own edge, so false
    boxes and verdicts of these frames say nothing.

    Args:
        source: folder in the data form.
        out: folder to write.
        patch_px: side of a window; the frames are twice that high and wide.
        most: frames at most; the defects are drawn from all.
        seed: of which defects, and where a border runs.

    Raises:
        ValueError: no screen is large enough around any defect.
    """
    rng = np.random.default_rng(seed)
    files = screen_files(source)
    defects = [(screen, defect) for screen, found in sorted(read_defects(source, files).items()) for defect in found]
    chosen = [defects[k] for k in sorted(rng.permutation(len(defects))[:most])]
    (out / "screens").mkdir(parents=True)
    rows: list[tuple[object, ...]] = []
    open_screen, image = "", np.empty((0, 0), np.uint8)
    for screen, defect in track(chosen, "frames with a defect on a border"):
        if screen != open_screen:
            open_screen, image = screen, read_whole(files[screen])
        corner = _corner(defect, image.shape, patch_px, rng)
        if corner is None:
            continue
        name, (top, left), side = f"crossing_{len(rows):04d}", corner, 2 * patch_px
        if not cv2.imwrite(str(out / "screens" / f"{name}.png"), image[top : top + side, left : left + side]):
            raise OSError(f"{out / 'screens' / name}.png could not be written")
        cropped = Defect(
            label=defect.label,
            left=max(defect.left - left, 0),
            top=max(defect.top - top, 0),
            right=min(defect.right - left, side),
            bottom=min(defect.bottom - top, side),
        )
        rows.append(box_row(name, cropped))
    if not rows:
        raise ValueError(f"{source} has no defect with room for two windows around it")
    write_boxes(out, rows)
    return len(rows)


def _corner(defect: Defect, shape: tuple[int, ...], patch_px: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """Top and left of a frame in a screen of that shape, or None where the defect is too near to the screen's edge."""
    spans = ((defect.top, defect.bottom), (defect.left, defect.right))
    for crossed in rng.permutation(2).tolist():  # the axis that the border cuts
        corner = [0, 0]
        low, high = spans[crossed]
        corner[crossed] = int(rng.integers(low - BESIDE_PX + 1, high + BESIDE_PX)) - patch_px
        along = 1 - crossed
        middle, room = sum(spans[along]) // 2, shape[along] - 2 * patch_px
        # anywhere else along the other axis, but with the defect's middle well inside
        first, last = max(0, middle - 2 * patch_px + patch_px // 16), min(room, middle - patch_px // 16)
        if 0 <= corner[crossed] <= shape[crossed] - 2 * patch_px and first <= last:
            corner[along] = int(rng.integers(first, last + 1))
            return corner[0], corner[1]
    return None
