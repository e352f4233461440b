"""A folder in the data form, looked at: `screens/`, `boxes.csv`, `masks/`, `splits.csv` or `folds.csv`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.boxes import SIDES, Mask, read_masks
from training.conversion.names import LABEL, SCREEN
from training.images import NO_SCREEN, SUFFIXES, is_utf8
from training.membership import draw_validation
from training.validation.findings import Finding, Picture, Report
from training.validation.parts import Parts, find_absent, find_groups, find_leaks, listed, rank, read_parts
from training.validation.sight import Sight, see_all
from training.validation.tables import read_table

Edges = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Box:
    """A row of boxes.csv that can be read; `area_px` where it is a number."""

    row: int
    screen: str
    label: str
    edges: Edges
    area_px: float | None


def validate_form(folder: Path, *, labels: Sequence[str] = (), patch_px: int = 1024) -> Report:
    """Look at every file of a folder in the data form.

    Args:
        folder: the folder.
        labels: that boxes may have; empty: any.
        patch_px: side of the patches that it is to be cut into.

    Raises:
        ValueError: it has no screen at all.
    """
    files, findings = _find_screens(folder)
    boxes, unread = _read_boxes(folder / "boxes.csv")
    findings += unread
    parts, found = read_parts(folder, files)
    findings += found
    if set(parts.of.values()) <= {"train", "test"}:
        parts.of.update(draw_validation(parts.of, parts.columns))  # as `cut` would
    sights, found = see_all(files)
    findings += found
    findings += _check_sizes(files, sights, patch_px)
    findings += _check_boxes(files, boxes, sights)
    findings += _check_labels(boxes, labels)
    if not boxes and not labels and not unread:
        findings.append(Finding("label", "boxes.csv names no label: name those that there should be by --label"))
    findings += _check_conditions(folder / "conditions.csv", boxes)
    findings += _check_masks(folder, files, boxes) if boxes else []  # of a table that cannot be read none would fit
    divided = {name: sight for name, sight in sights.items() if name in parts.of}
    findings += find_leaks(divided, files, parts.of)
    findings += find_groups(parts)
    counts = _count(parts, boxes)
    present = {box.label for box in boxes if LABEL.fullmatch(box.label)}
    findings += find_absent(counts, labels or sorted(present), "screen")
    return Report(folder, "data form", counts, findings)


def _find_screens(folder: Path) -> tuple[dict[str, Path], list[Finding]]:
    files: dict[str, Path] = {}
    findings = []
    entries = sorted((folder / "screens").glob("*"))
    for path in entries:
        if path.suffix.lower() not in SUFFIXES:
            findings.append(Finding("ignored", f"screens/{path.name} is no {NO_SCREEN}"))
        elif not is_utf8(path.name):
            findings.append(Finding("image", f"screens/{path.name!a}: its name is not UTF-8, and no table can hold it"))
        elif path.stem in files:
            findings.append(Finding("twice", f"screens/{files[path.stem].name} and {path.name} are one screen"))
        else:
            files[path.stem] = path
            if not SCREEN.fullmatch(path.stem):
                findings.append(Finding("name", f"screens/{path.name}: the service would call it otherwise"))
    if not files:
        raise ValueError(f"{folder / 'screens'} holds no {NO_SCREEN}")
    return files, findings


def _read_boxes(table: Path) -> tuple[list[Box], list[Finding]]:
    rows, findings = read_table(table, ["screen", "label", *SIDES])
    boxes = []
    for number, row in rows:
        try:
            left, top, right, bottom = (int(row[side]) for side in SIDES)
        except ValueError:
            findings.append(Finding("table", f"boxes.csv, row {number}: edges are whole pixels, not {_edges(row)}"))
            continue
        try:
            area = float(row.get("area_px", ""))
        except ValueError:
            area = None
        boxes.append(Box(number, row["screen"], row["label"], (left, top, right, bottom), area))
    return boxes, findings


def _check_sizes(files: Mapping[str, Path], sights: Mapping[str, Sight], patch_px: int) -> list[Finding]:
    by_size: dict[tuple[int, int], list[str]] = {}
    for name, sight in sights.items():
        by_size.setdefault(sight.size, []).append(name)
    usual = max(by_size, key=lambda size: len(by_size[size]), default=None)
    findings = []
    for size, names in by_size.items():
        what, pictures = f"{listed(names)}: {_size(size)} px", tuple(Picture(files[n], n) for n in names[:4])
        if min(size) < patch_px:
            findings.append(Finding("small", f"{what}, a patch {patch_px} x {patch_px}", pictures))
        if usual is not None and size != usual:
            findings.append(Finding("odd_size", f"{what}, most have {_size(usual)}", pictures))
    return findings


def _check_boxes(files: Mapping[str, Path], boxes: Sequence[Box], sights: Mapping[str, Sight]) -> list[Finding]:
    findings = []
    first: dict[tuple[str, str, Edges], int] = {}
    for box in boxes:
        left, top, right, bottom = box.edges
        what = f"boxes.csv, row {box.row}: {box.label} on {box.screen}"
        before = first.setdefault((box.screen, box.label, box.edges), box.row)
        if box.screen not in files:
            findings.append(Finding("missing", f"{what}, a screen that is not there"))
        elif left >= right or top >= bottom:
            findings.append(Finding("box", f"{what} is empty: {_between(box)}"))
        elif min(left, top) < 0 or (box.screen in sights and _beyond(box, sights[box.screen])):
            size = f"{_size(sights[box.screen].size)} px" if box.screen in sights else "the image"
            picture = Picture(files[box.screen], f"{box.screen}, row {box.row}", box.edges)
            findings.append(Finding("box", f"{what} leaves {size}: {_between(box)}", (picture,)))
        elif before != box.row:
            picture = Picture(files[box.screen], f"{box.screen}, row {box.row}", box.edges)
            findings.append(Finding("box_again", f"{what} is in row {before} already", (picture,)))
    return findings


def _check_labels(boxes: Sequence[Box], labels: Sequence[str]) -> list[Finding]:
    findings = []
    for label, count in sorted(Counter(box.label for box in boxes).items()):
        if not LABEL.fullmatch(label):
            findings.append(Finding("label", f"boxes.csv has {label!r} {count} times: a-z, 0-9 and _ make a label"))
        elif labels and label not in labels:
            findings.append(Finding("label", f"boxes.csv has {label!r} {count} times, which was not asked for"))
    return findings


def _check_conditions(table: Path, boxes: Sequence[Box]) -> list[Finding]:
    """What `cut` would refuse: contrasts that are no numbers, or of other rows than they say."""
    if not table.is_file():
        return []
    rows, findings = read_table(table, ["id", "contrast"])
    by_row = {box.row: box for box in boxes}
    for number, row in rows:
        what = f"{table.name}, row {number}"
        try:
            box, _ = by_row.get(int(row["id"])), float(row["contrast"])
        except ValueError:
            findings.append(Finding("table", f"{what}: {row['id']!r} and {row['contrast']!r} are to be numbers"))
            continue
        theirs = box and (row.get("screen", box.screen), row.get("label", box.label))
        if box is not None and theirs != (box.screen, box.label):
            findings.append(Finding("table", f"{what}: row {row['id']} of boxes.csv is of another screen or label"))
    return findings


def _check_masks(folder: Path, files: Mapping[str, Path], boxes: Sequence[Box]) -> list[Finding]:
    findings = []
    on_screen: dict[str, list[Box]] = {}
    for box in boxes:
        on_screen.setdefault(box.screen, []).append(box)
    for path in sorted((folder / "masks").glob("*")):
        if path.suffix != ".npz" or path.stem not in files:
            findings.append(Finding("ignored", f"masks/{path.name} is no mask of a screen"))
            continue
        try:
            pixels = read_masks(path)
        except ValueError as error:
            findings.append(Finding("mask", f"masks/{path.name} cannot be read: {error}"))
            continue
        theirs = {box.row: box for box in on_screen.get(path.stem, [])}
        strangers = sorted(pixels.keys() - theirs.keys())
        if strangers:
            text = f"masks/{path.name} has pixels of row {strangers[0]}, which is no box of this screen"
            findings.append(Finding("mask", text))
        for row, box in theirs.items():
            found = _check_pixels(path.name, box, pixels.get(row))
            if found is not None:
                check, text = found
                picture = Picture(files[path.stem], f"{path.stem}, row {row}", box.edges)
                findings.append(Finding(check, text, (picture,)))
    return findings


def _check_pixels(name: str, box: Box, pixels: Mask | None) -> tuple[str, str] | None:
    """The check that fails and how."""
    what = f"masks/{name}, row {box.row} ({box.label})"
    if pixels is None:
        return "no_pixels", f"{what}: no pixel"
    rows, columns = pixels
    left, top, right, bottom = box.edges
    outside = (rows < top) | (rows >= bottom) | (columns < left) | (columns >= right)
    if outside.any():
        return "mask", f"{what}: {outside.sum()} of {len(rows)} pixels lie outside of {_between(box)}"
    if len(np.unique(rows * np.int64(2**31) + columns)) < len(rows):
        return "mask", f"{what}: pixels that are there twice"
    if box.area_px is not None and box.area_px != len(rows):
        return "area", f"{what}: area_px is {box.area_px:g}, the mask has {len(rows)}"
    return None


def _count(parts: Parts, boxes: Sequence[Box]) -> dict[str, dict[str, int]]:
    """By part: screens, those without a box, and the screens and boxes of each label."""
    labels = sorted({box.label for box in boxes})
    on_screen: dict[str, Counter[str]] = {}
    for box in boxes:
        on_screen.setdefault(box.screen, Counter())[box.label] += 1
    counts = {}
    for part in sorted(set(parts.of.values()), key=rank):
        inside = [on_screen.get(screen, Counter()) for screen, theirs in parts.of.items() if theirs == part]
        counts[part] = {"screens": len(inside), "clean": sum(not found for found in inside)}
        for label in labels:
            counts[part][label] = sum(label in found for found in inside)
            counts[part][f"{label} boxes"] = sum(found[label] for found in inside)
    return counts


def _beyond(box: Box, sight: Sight) -> bool:
    return box.edges[2] > sight.size[1] or box.edges[3] > sight.size[0]


def _between(box: Box) -> str:
    left, top, right, bottom = box.edges
    return f"{left}, {top} to {right}, {bottom}"


def _edges(row: Mapping[str, str]) -> str:
    return ", ".join(row[side] for side in SIDES)


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
