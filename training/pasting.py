"""Screens with pieces of others pasted in, to learn from where nobody has labelled: the `paste` command.

Where a piece was pasted is known without a label. A trunk that has learnt to tell it (Li et al., "CutPaste", CVPR 2021)
knows how the screens look, and what does not belong there; a run on the labels of a few screens begins with it.

Writes the data form with one label: `screens/*.png`, `boxes.csv`, `masks/*.npz` and `splits.csv`.
"""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from training.boxes import box_row, write_boxes, write_masks
from training.conversion.names import shortened
from training.conversion.regions import regions
from training.images import read_whole, screen_files, write_png
from training.membership import read_parts
from training.rows import write_rows
from training.truth import Defect

LABEL = "pasted"
_A_PATCH = 1.5  # pieces, on average
_SMALLEST, _LARGEST = 1 / 53, 1 / 5.3  # longer side of a piece, of a patch's
_LONGEST = 6.0  # times as long as wide
_LIGHTER = 40.0  # grey levels at most by which half of the pieces are lighter or darker than where they come from
_SEEN = 16  # grey levels by which a pixel has changed for the eye
_FEWEST = 16  # such pixels, or nothing was pasted


def paste(
    source: Path, out: Path, *, patch_px: int = 1024, times: int = 1, seed: int = 0, test_fold: int | None = None
) -> dict[str, int]:
    """Write pasted copies of every screen that is not in the test part; the counts of screens by part, and of pieces.

    Args:
        source: a folder in the data form; `boxes.csv` is not read, and without `splits.csv` and `folds.csv` no screen
            is in a test part.
        out: a folder that does not exist yet or is empty.
        patch_px: side of the patches that the copies are to be cut into; what is pasted is 1/53 to 1/5 of it.
        times: copies of each training screen, each with other pieces; of one of validation there is one.
        seed: with a copy's number it decides all of it.
        test_fold: where there is folds.csv, the fold that is left out.

    Raises:
        ValueError: there are fewer than two screens, one is smaller than a patch or cannot be read, its part is not
            told, there is no such fold, or `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty")
    files = screen_files(source)
    divided = any((source / table).is_file() for table in ("splits.csv", "folds.csv"))
    if test_fold is not None and not divided:
        raise ValueError(f"--test-fold {test_fold}: {source} has no folds.csv")
    parts = read_parts(source, list(files), test_fold=test_fold) if divided else dict.fromkeys(files, "train")
    learnt = [name for name, part in parts.items() if part == "train"]
    if len(learnt) < 2:
        raise ValueError(f"{source} has {len(learnt)} screens to learn from: pieces of one are pasted into another")
    copies = [
        (name, k) for name in files if parts[name] != "test" for k in range(times if parts[name] == "train" else 1)
    ]
    (out / "screens").mkdir(parents=True)
    (out / "masks").mkdir()
    boxes: list[tuple[object, ...]] = []
    rows: list[tuple[str, str, str]] = []
    for number, (name, k) in enumerate(track(copies, description="paste")):
        rng = np.random.default_rng([seed, number])
        donor = rng.choice([other for other in learnt if other != name])
        frame, defects = pasted(read_whole(files[name]), read_whole(files[donor]), rng, patch_px=patch_px)
        copy = shortened(f"{name}-{k}")
        write_png(out / "screens" / f"{copy}.png", frame)
        write_masks(out / "masks" / f"{copy}.npz", defects, first=len(boxes))
        boxes += [box_row(copy, defect) for defect in defects]
        rows.append((copy, parts[name], name))
    write_boxes(out, boxes)
    write_rows(out / "splits.csv", ["screen", "part", "of"], rows)  # by the last `cut` holds copies of one together
    return {**Counter(part for _, part, _ in rows), "pieces": len(boxes)}


def pasted(
    frame: NDArray[np.uint8], donor: NDArray[np.uint8], rng: np.random.Generator, *, patch_px: int
) -> tuple[NDArray[np.uint8], list[Defect]]:
    """A copy of a frame (H, W) with pieces of another one, and a defect for each region that differs by them.

    Raises:
        ValueError: one of both is smaller than a patch.
    """
    if min(*frame.shape, *donor.shape) < patch_px:
        raise ValueError(f"a screen of {frame.shape[1]} x {frame.shape[0]} px is smaller than a patch of {patch_px}")
    result = frame.copy()
    for _ in range(rng.poisson(_A_PATCH * frame.size / patch_px**2)):
        piece = _piece(donor, rng, patch_px)
        height, width = piece.shape[1:]
        top, left = (int(rng.integers(end - side + 1)) for end, side in zip(frame.shape, piece.shape[1:], strict=True))
        place = result[top : top + height, left : left + width]
        place[:] = np.where(piece[1], piece[0], place)
    changed = np.abs(result.astype(np.int16) - frame) >= _SEEN
    # pixels of one piece that are like what was there do not make two of it
    near = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    rows, columns = (at.astype(np.int32) for at in np.nonzero(near))
    found = regions(rows, columns, LABEL) if len(rows) else []
    return result, [one for one in found if one.area_px >= _FEWEST]


def _piece(donor: NDArray[np.uint8], rng: np.random.Generator, patch_px: int) -> NDArray[np.uint8]:
    """Grey levels and shape (2, h, w) of a piece: an ellipse or a bar of any direction, from anywhere."""
    longer = patch_px * float(np.exp(rng.uniform(np.log(_SMALLEST), np.log(_LARGEST))))
    sides = max(3.0, longer), max(3.0, longer / float(np.exp(rng.uniform(0, np.log(_LONGEST)))))
    reach = int(np.ceil(np.hypot(*sides))) + 2
    shape = np.zeros((reach, reach), np.uint8)
    oblong = ((reach / 2, reach / 2), sides, float(rng.uniform(0, 180)))
    if rng.random() < 0.5:
        cv2.ellipse(shape, oblong, 1, -1)
    else:
        cv2.fillPoly(shape, [cv2.boxPoints(oblong).astype(np.int32)], 1)
    top, left = (int(rng.integers(end - reach + 1)) for end in donor.shape)
    grey = np.rot90(donor[top : top + reach, left : left + reach], int(rng.integers(4))).astype(np.float32)
    if rng.random() < 0.5:
        grey = grey + rng.uniform(-_LIGHTER, _LIGHTER)
    return np.stack([grey.round().clip(0, 255).astype(np.uint8), shape])
