"""Screens with boxes to patches with labels: the `cut` command. numpy and OpenCV only.

Reads the data form (`screens/`, `boxes.csv`, `masks/`, `conditions.csv`, `splits.csv` or `folds.csv`) and writes
`images/*.png`, `labels.csv`, `windows.csv`, `defects.csv`, `splits.csv`, `maps.npz` and `cut.json`. The split is by
screen, never by patch.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
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
from training.images import read_whole
from training.patches import CutSummary, Patches, summarise, write_tables
from training.rows import read_rows
from training.truth import CELL_PX, PARTS, Defect, Rule
from training.visible import Visible, border_px

PART_OF_TRAINING_FOR_VALIDATION = 0.15
_FEWEST_GROUPS = 4  # of training screens, of which one may be drawn whole
SUFFIXES = (".png", ".jpg", ".jpeg")  # of screens, in capitals or not
NO_SCREEN = ".png or .jpg"


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


def is_utf8(name: str) -> bool:
    """Whether tables can hold the name of a file: one out of an archive of another system may be other bytes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def screen_files(source: Path) -> dict[str, Path]:
    """Screen name to image file, sorted by name.

    Raises:
        ValueError: there are none, two of one name, or one whose name is not UTF-8.
    """
    files: dict[str, Path] = {}
    for path in sorted((source / "screens").glob("*")):
        if not is_utf8(path.name):
            raise ValueError(f"{source / 'screens'} holds {path.name!a}, whose name is not UTF-8: no table can hold it")
        if path.suffix.lower() in SUFFIXES and files.setdefault(path.stem, path) != path:
            raise ValueError(f"{files[path.stem]} and {path.name} are one screen: names are told apart without suffix")
    if not files:
        raise ValueError(f"{source / 'screens'} holds no {NO_SCREEN}")
    return files


def read_parts(source: Path, screens: Sequence[str], *, test_fold: int | None) -> dict[str, str]:
    """Part of each screen: train, validation or test.

    Where the folder names no validation part, 15 % of the training screens, see `draw_validation`.

    Raises:
        ValueError: neither splits.csv nor folds.csv, a screen is missing from it, or the fold does not exist.
    """
    table = source / "folds.csv"
    if table.is_file():
        folds = read_folds(source)
        if test_fold not in folds.values():
            raise ValueError(f"--test-fold must be one of {sorted(set(folds.values()))}")
        parts = {screen: "test" if fold == test_fold else "train" for screen, fold in folds.items()}
    elif (source / "splits.csv").is_file():
        if test_fold is not None:
            raise ValueError(f"--test-fold needs {table}")
        table = source / "splits.csv"
        parts = _one_each(table, "part")
    else:
        raise ValueError(f"{source} has neither splits.csv nor folds.csv")
    missing = [screen for screen in screens if screen not in parts]
    if missing:
        raise ValueError(f"no part is given for screen {missing[0]} (and {len(missing) - 1} more)")
    known = set(screens)
    absent = [screen for screen in parts if screen not in known]
    if absent:
        raise ValueError(
            f"a part is given for {absent[0]} (and {len(absent) - 1} more), but no such {NO_SCREEN} is there"
        )
    unknown = set(parts.values()) - set(PARTS)
    if unknown:
        raise ValueError(f"unknown part {sorted(unknown)[0]!r}: train, validation or test")
    kept = {screen: parts[screen] for screen in screens}
    if "validation" in parts.values():
        return kept
    return draw_validation(kept, _columns(table))


def read_folds(source: Path) -> dict[str, int]:
    """Fold of each screen.

    Raises:
        ValueError: folds.csv cannot be read, or has a fold that is no number.
    """
    table = source / "folds.csv"
    folds = _one_each(table, "fold")
    try:
        return {screen: int(fold) for screen, fold in folds.items()}
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from error


def _one_each(table: Path, column: str) -> dict[str, str]:
    """What a table says of each screen, of which it may say nothing twice."""
    found: dict[str, str] = {}
    for row in read_rows(table, "screen", column):
        screen, told = row["screen"], row[column]
        if found.setdefault(screen, told) != told:
            raise ValueError(f"{table}: screen {screen!r} is in {column} {found[screen]} and {told}")
    return found


def _columns(table: Path) -> dict[str, dict[str, str]]:
    """What else a division tells of each screen, such as its board or phone, by column."""
    rows = read_rows(table, "screen")
    names = rows[0].keys() - {"screen", "part", "fold"} if rows else ()
    return {name: {row["screen"]: row.get(name) or "" for row in rows} for name in names}


def draw_validation(parts: Mapping[str, str], columns: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Parts by screen with 15 % of the training screens, drawn with a fixed seed, as validation part.

    Whole groups are drawn where `columns` tell of some, such as phones, that the parts hold apart: a network that is
    chosen by phones it has learnt is flattered. They may be up to 30 % together, and where no group is as small as that
    single screens are drawn. Of several such columns that with the fewest groups counts.

    Args:
        parts: train or test, by screen.
        columns: values of each screen; an empty one is a group of that screen alone.
    """
    training = sorted(screen for screen, part in parts.items() if part == "train")
    wanted = round(PART_OF_TRAINING_FOR_VALIDATION * len(training))
    held = [groups for _, values in sorted(columns.items()) if (groups := _groups_apart(parts, values))]
    small = [[group for group in groups if len(group) <= 2 * wanted] for groups in held]
    groups = min(filter(None, small), key=len, default=[[screen] for screen in training])
    drawn: list[str] = []
    for index in np.random.default_rng(0).permutation(len(groups)):
        if len(drawn) < wanted and len(drawn) + len(groups[index]) <= 2 * wanted:
            drawn += groups[index]
    return {screen: "validation" if screen in drawn else part for screen, part in parts.items()}


def _groups_apart(parts: Mapping[str, str], values: Mapping[str, str]) -> list[list[str]]:
    """The training screens by their value, where no value is in two parts; none where that groups nothing."""
    inside: dict[str, set[str]] = {}
    groups: dict[str, list[str]] = {}
    for screen, part in sorted(parts.items()):
        value = values.get(screen, "")
        if value:
            inside.setdefault(value, set()).add(part)
        if part == "train":
            groups.setdefault(value or f"\n{screen}", []).append(screen)
    apart = all(len(found) == 1 for found in inside.values())
    return list(groups.values()) if apart and _FEWEST_GROUPS <= len(groups) < sum(map(len, groups.values())) else []


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
        _write_png(out / "images" / f"{name}.png", patch)
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


def _write_png(path: Path, patch: NDArray[np.uint8]) -> None:
    # level 1: a noisy frame hardly compresses, and higher levels take four times as long
    if not cv2.imwrite(str(path), patch, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f"{path} could not be written")
