"""Screens with boxes to patches with labels: the `cut` command. numpy and OpenCV only.

Reads the data form (`screens/`, `boxes.csv`, `masks/`, `conditions.csv`, `splits.csv` or `folds.csv`) and writes
`images/*.png`, `labels.csv`, `windows.csv`, `defects.csv`, `splits.csv`, `maps.npz` and `cut.json`. The split is by
screen, never by patch.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from engine import Window, cover
from training.boxes import read_defects
from training.contrast import measured
from training.conversion.names import LABEL, LABEL_RULE
from training.images import read_whole, screen_files, write_png
from training.membership import read_parts
from training.patches import CutSummary, Patches, summarise, write_tables
from training.truth import CELL_PX, Defect, Rule
from training.visible import Visible, border_px


def cut(
    source: Path,
    out: Path,
    *,
    patch_px: int = 1024,
    stride_px: int | None = None,
    rule: Rule = "known",
    test_fold: int | None = None,
    labels: Sequence[str] = (),
    first: int | None = None,
    shrink: int = 1,
) -> CutSummary:
    """Cut every screen of a data folder into equal patches and label them.

    Args:
        source: a folder in the data form.
        out: a folder that does not exist yet or is empty.
        patch_px: side of a patch, a multiple of 32.
        stride_px: step of the window, at most `patch_px`; None: no overlap.
        rule: "known" marks too small a part of a defect as unknown; "paper" drops such patches.
        test_fold: where the folder has folds.csv, the fold to test on.
        labels: the labels in order; empty: those that boxes.csv names, sorted.
        first: cut only so many screens, by their names; the parts and labels are those of the whole folder.
        shrink: take every screen so many times smaller before it is cut; `patch_px` and `stride_px` are then of the
            smaller one. The service does not shrink, so `export` refuses a run on such patches.

    Raises:
        ValueError: the folder is not in the data form, a size does not fit, `out` is not empty, boxes.csv names a label
            that is not among `labels`, or a screen cannot be cut; the message names it, and no image is left.
    """
    stride_px = patch_px if stride_px is None else stride_px
    if patch_px <= 0 or patch_px % CELL_PX:
        raise ValueError(f"--patch must be a positive multiple of {CELL_PX}, not {patch_px}")
    if not 0 < stride_px <= patch_px:
        raise ValueError(f"--stride must lie in 1..{patch_px}, not {stride_px}")
    if shrink < 1:
        raise ValueError(f"--shrink must be at least 1, not {shrink}")
    if first is not None and first < 1:
        raise ValueError(f"--first must be at least 1, not {first}")
    if out.exists() and any(out.iterdir()):
        unfinished = "" if (out / "cut.json").exists() else ": without cut.json it is no whole cut, and may be deleted"
        raise ValueError(f"{out} is not empty{unfinished}")
    screens = screen_files(source)
    parts = read_parts(source, list(screens), test_fold=test_fold)
    defects = read_defects(source, screens)
    labels = _choose_labels(defects, labels)
    screens = dict(itertools.islice(screens.items(), first))
    (out / "images").mkdir(parents=True)
    pixels: dict[str, str] = {}  # of each screen, by which it is known whatever it is called

    def cut_screen(name: str) -> Patches:
        try:
            frame = _frame_of(screens[name], defects.get(name, []))
            pixels[name] = hashlib.sha256(repr(frame.shape).encode() + frame.tobytes()).hexdigest()[:16]
            smaller = [defect.shrunk(shrink) for defect in measured(frame, defects.get(name, []))]
            return _cut_frame(
                name, _shrunk(frame, shrink), out, smaller, labels, patch_px=patch_px, stride_px=stride_px, rule=rule
            )
        except ValueError as error:
            raise ValueError(f"screen {name!r}: {error}") from error

    try:
        with ThreadPoolExecutor() as pool:
            done = list(track(pool.map(cut_screen, screens), total=len(screens), description="cut"))
    except ValueError:
        shutil.rmtree(out / "images")  # so that the same command can be given again
        raise
    write_tables(out, dict(zip(screens, done, strict=True)), labels, {name: parts[name] for name in screens})
    summary = summarise(dict(zip(screens, done, strict=True)), labels, parts)
    facts = {"source": source.resolve().name, "patch_px": patch_px, "stride_px": stride_px, "rule": rule}
    told = {**facts, "shrink": shrink, **asdict(summary), "screens": {name: pixels[name] for name in screens}}
    (out / "cut.json").write_text(json.dumps(told, indent=2) + "\n")
    return summary


def _choose_labels(defects: dict[str, list[Defect]], wanted: Sequence[str]) -> list[str]:
    found = {defect.label for on_screen in defects.values() for defect in on_screen}
    if again := [label for label in wanted if wanted.count(label) > 1]:
        raise ValueError(f"the label {again[0]!r} is there twice")
    if wanted and not found <= set(wanted):
        raise ValueError(f"boxes.csv names {sorted(found - set(wanted))[0]!r}, which is not among the labels")
    if not wanted and not found:
        raise ValueError("boxes.csv names no label: give them by --label")
    if odd := [label for label in [*wanted, *sorted(found)] if not LABEL.fullmatch(label)]:
        raise ValueError(f"{odd[0]!r} is no label: {LABEL_RULE} (as in every bundle)")
    return list(wanted) or sorted(found)


def _frame_of(path: Path, defects: list[Defect]) -> NDArray[np.uint8]:
    frame = read_whole(path)
    for defect in defects:  # of a frame of another size, or rows and columns confused: it would be labelled elsewhere
        if defect.right > frame.shape[1] or defect.bottom > frame.shape[0]:
            raise ValueError(
                f"boxes.csv has a {defect.label} on {path.stem} that ends at {defect.right}, {defect.bottom}, beyond "
                f"the frame of {frame.shape[1]} x {frame.shape[0]}"
            )
    return frame


def _shrunk(frame: NDArray[np.uint8], by: int) -> NDArray[np.uint8]:
    """Means of squares of pixels; a remainder at the right and the bottom is lost."""
    if by == 1:
        return frame
    height, width = frame.shape[0] // by, frame.shape[1] // by
    whole = np.ascontiguousarray(frame[: height * by, : width * by])
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _cut_frame(
    screen: str,
    frame: NDArray[np.uint8],
    out: Path,
    defects: list[Defect],
    labels: list[str],
    *,
    patch_px: int,
    stride_px: int,
    rule: Rule,
) -> Patches:
    windows: list[Window] = []
    names: list[str] = []
    rows: list[NDArray[np.int8]] = []
    cells: list[NDArray[np.int64]] = []
    visible: list[list[Visible]] = []
    dropped = 0
    for window in cover(*frame.shape, patch_px=patch_px, overlap_px=patch_px - stride_px):
        presence, touched = _label_window(defects, labels, window, patch_px, rule=rule)
        if rule == "paper" and (presence < 0).any():
            dropped += 1
            continue
        name = f"{screen}_{window.row:02d}_{window.column:02d}"
        patch = frame[window.top : window.top + patch_px, window.left : window.left + patch_px]
        write_png(out / "images" / f"{name}.png", patch)
        cells.append(np.insert(touched, 0, len(names), axis=1))
        windows.append(window)
        names.append(name)
        rows.append(presence)
        visible.append(_visible(defects, window, patch_px, frame.shape, rule=rule))
    return Patches(
        windows,
        names,
        np.array(rows, np.int8).reshape(-1, len(labels)),
        np.concatenate([*cells, np.empty((0, 5), np.int64)]).astype(np.int32),
        visible,
        dropped,
    )


def _visible(
    defects: list[Defect], window: Window, patch_px: int, shape: tuple[int, ...], *, rule: Rule
) -> list[Visible]:
    seen = []
    for one in defects:
        if presence := one.presence(window, patch_px, rule=rule):
            distance = border_px(one.box, window, patch_px, shape)
            seen.append(Visible(one.label, presence, *one.extent(window, patch_px), distance, one.contrast))
    return seen


def _label_window(
    defects: list[Defect], labels: list[str], window: Window, patch_px: int, *, rule: Rule
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Labels (L,) and map cells (n, 4): label, row, column, value. Where defects disagree 1 beats -1 beats 0."""
    presence = np.zeros(len(labels), np.int8)
    side = -(-patch_px // CELL_PX)
    maps = np.zeros((len(labels), side, side), np.int8)
    for defect in defects:
        found = defect.presence(window, patch_px, rule=rule)
        if found == 0:
            continue
        index = labels.index(defect.label)
        presence[index] = found if presence[index] != 1 else 1
        touched = defect.cells(window, patch_px)
        maps[index][touched & (maps[index] != 1)] = found
    where = np.argwhere(maps != 0)
    return presence, np.column_stack([where, maps[maps != 0]])
