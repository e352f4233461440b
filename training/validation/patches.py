"""A cut folder, looked at: its tables, `maps.npz`, `images/` and `pixels.u8`.

Whether two screens look alike is asked of whole screens, put together in little from their patches.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from rich.progress import track

from training.conversion.names import LABEL
from training.cut_folder import PIXELS_FILE, is_decoded
from training.images import read_whole
from training.patches import cut_facts
from training.rows import read_arrays
from training.truth import CELL_PX
from training.validation.findings import Finding, Picture, Report
from training.validation.likeness import same
from training.validation.parts import Parts, find_absent, find_leaks, listed, rank, read_parts
from training.validation.sight import SMALL_PX, Sight, see, shrink
from training.validation.tables import read_table
from training.visible import VISIBLE_FILE, read_visible

PATCH_SMALL_PX = 16  # side of what is kept of a patch
WHOLE_SMALL_PX = 512  # longest side of a screen that is put together
KNOWN = ("1", "0", "-1")


@dataclass(frozen=True, slots=True)
class Patch:
    """A row of labels.csv with its row of windows.csv; labels are 1, 0 or -1."""

    name: str
    screen: str
    left: int
    top: int
    labels: dict[str, int]


def validate_cut(folder: Path, *, labels: Sequence[str] = ()) -> Report:
    """Look at every file of a cut folder.

    Args:
        folder: the folder.
        labels: that it should have; empty: those that it has.

    Raises:
        ValueError: cut.json cannot be read, or no row of the tables: there is nothing to look at.
    """
    patch_px = cut_facts(folder)["patch_px"]
    patches, findings = _read_patches(folder)
    if not patches:
        raise ValueError(f"{folder}: " + "; ".join(finding.text for finding in findings))
    # its cells count rows: after one that was not taken none would fit
    findings += [] if findings else _check_maps(folder / "maps.npz", patches, patch_px)
    findings += _check_defects(folder, patches, patch_px)
    names = list(patches[0].labels)
    findings += [
        Finding("label", f"labels.csv has the column {label!r}: a-z, 0-9 and _ make a label, and it must be asked for")
        for label in names
        if not LABEL.fullmatch(label) or (labels and label not in labels)
    ]
    screens = dict.fromkeys(patch.screen for patch in patches)
    parts, found = read_parts(folder, screens)
    findings += found
    sights, found = _see_patches(folder, patches, patch_px)
    findings += found
    divided = [p for p in patches if p.screen in parts.of and p.name in sights]
    by_screen: dict[str, list[Patch]] = {}
    for patch in divided:
        by_screen.setdefault(patch.screen, []).append(patch)
    whole = {screen: _whole(theirs, sights, patch_px) for screen, theirs in by_screen.items()}
    files = {screen: folder / "images" / theirs[len(theirs) // 2].name for screen, theirs in by_screen.items()}
    findings += find_leaks(whole, files, parts.of)
    findings += _shared_patches(folder, divided, sights, whole, parts)
    counts = _count(parts, patches)
    findings += find_absent(counts, labels or names, "patch")
    return Report(folder, "cut", counts, findings)


def _read_patches(folder: Path) -> tuple[list[Patch], list[Finding]]:
    """Rows of both tables; for `fit` they belong together by their order, so they have to agree in it."""
    rows, findings = read_table(folder / "labels.csv", ["img_names"])
    windows, found = read_table(folder / "windows.csv", ["img_names", "screen", "left", "top"])
    findings += found
    by_name = {window["img_names"]: window for _, window in windows}
    for (number, row), (_, window) in zip(rows, windows, strict=False):
        if row["img_names"] != window["img_names"]:
            text = f"row {number} and on: labels.csv has {row['img_names']}, windows.csv {window['img_names']}"
            findings.append(Finding("table", text))
            break
    patches: dict[str, Patch] = {}
    for number, row in rows:
        name = row.pop("img_names")
        window = by_name.get(name, {})
        if not window:
            findings.append(Finding("table", f"labels.csv, row {number}: windows.csv does not have {name}"))
        elif name in patches:
            findings.append(Finding("twice", f"labels.csv, row {number}: {name} is there already"))
        elif not set(row.values()) <= set(KNOWN) or not all(window[k].isdecimal() for k in ("left", "top")):
            findings.append(Finding("table", f"row {number}: labels are 1, 0 or -1, left and top pixels ({name})"))
        else:
            place = int(window["left"]), int(window["top"])
            patches[name] = Patch(name, window["screen"], *place, {key: int(value) for key, value in row.items()})
    unlabelled = [name for name in by_name if name not in patches]
    if unlabelled:
        findings.append(Finding("table", f"windows.csv has {listed(unlabelled)}, without labels that can be read"))
    return list(patches.values()), findings


def _check_maps(file: Path, patches: Sequence[Patch], patch_px: int) -> list[Finding]:
    try:
        cells = read_arrays(file, ["cells"])[0].reshape(-1, 5)
    except ValueError as error:
        return [Finding("mask", f"maps.npz cannot be read: {error}")]
    labels = np.array([list(patch.labels.values()) for patch in patches], np.int8)
    side = -(-patch_px // CELL_PX)
    limits = [*labels.shape, side, side]
    if (cells[:, :4] < 0).any() or (cells[:, :4] >= limits).any() or not set(np.unique(cells[:, 4])) <= {1, -1}:
        return [
            Finding("mask", f"maps.npz has cells beyond {limits} (patches, labels, rows, columns), or other values")
        ]
    present = np.zeros(labels.shape, bool)
    present[tuple(cells[cells[:, 4] == 1][:, :2].T)] = True
    wrong = np.flatnonzero((present != (labels == 1)).any(axis=1))
    names = listed(patches[k].name for k in wrong.tolist())
    return [Finding("unboxed", f"maps.npz and labels.csv differ in what is present: {names}")] if len(wrong) else []


def _check_defects(folder: Path, patches: Sequence[Patch], patch_px: int) -> list[Finding]:
    """What defects.csv says of a patch must be what its labels say."""
    try:
        visible = read_visible(folder)
    except ValueError as error:
        return [Finding("table", str(error))]
    by_name = {patch.name: patch for patch in patches}
    findings = []
    if strangers := [name for name in visible if name not in by_name]:
        findings.append(Finding("table", f"{VISIBLE_FILE} has {listed(strangers)}, which labels.csv does not have"))
    for name, seen in visible.items():
        for one in seen:
            inside = 0 <= one.left < one.right <= patch_px and 0 <= one.top < one.bottom <= patch_px
            if one.label not in patches[0].labels or one.presence not in (1, -1) or not inside:
                text = f"{VISIBLE_FILE}, {name}: {one.label}, presence {one.presence}, {one.left}-{one.right} across, "
                findings.append(Finding("box", f"{text}{one.top}-{one.bottom} down, in a patch of {patch_px} px"))
    wrong = [
        patch.name
        for patch in patches
        if {label for label, value in patch.labels.items() if value == 1}
        != {one.label for one in visible.get(patch.name, []) if one.presence == 1}
    ]
    if wrong:
        findings.append(Finding("unboxed", f"{VISIBLE_FILE} and labels.csv differ in what is present: {listed(wrong)}"))
    return findings


def _see_patches(folder: Path, patches: Sequence[Patch], patch_px: int) -> tuple[dict[str, Sight], list[Finding]]:
    """Every patch, from its image, and from pixels.u8 where the images are gone; and where the two differ.

    `fit` decodes images of other sizes anew; those that only look otherwise it does not see.
    """
    shape = (len(patches), patch_px, patch_px)
    taken = is_decoded(folder, [patch.name for patch in patches], patch_px)
    decoded = np.memmap(folder / PIXELS_FILE, np.uint8, "r", shape=shape) if taken else None
    images = {path.name for path in (folder / "images").glob("*")}
    lost = [patch.name for patch in patches if patch.name not in images]
    findings = []
    if lost:
        instead = (
            ", and pixels.u8 does not stand in for them" if decoded is None else ": pixels.u8 was looked at instead"
        )
        text = f"images/ lacks {len(lost)} of {len(patches)} patches ({listed(lost)}){instead}"
        findings.append(Finding("missing" if decoded is None else "gone", text))
    strangers = sorted(images - {patch.name for patch in patches})
    if strangers:
        findings.append(Finding("ignored", f"images/ has {len(strangers)} more, without a row: {listed(strangers)}"))

    def one(index: int) -> Sight | Finding | None:
        name = patches[index].name
        if name not in images:
            return None if decoded is None else see(decoded[index], PATCH_SMALL_PX)
        path = folder / "images" / name
        try:
            pixels = read_whole(path)
        except ValueError as error:
            return Finding("image", str(error), (Picture(path, name),))
        if pixels.shape != shape[1:]:
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            return Finding(
                "image", f"images/{name} has {size} px, a patch {patch_px} x {patch_px}", (Picture(path, name),)
            )
        if decoded is not None and not np.array_equal(pixels, decoded[index]):
            return Finding("stale", f"images/{name} has other pixels than pixels.u8", (Picture(path, name),))
        return see(pixels, PATCH_SMALL_PX)

    with ThreadPoolExecutor() as pool:
        seen = list(track(pool.map(one, range(len(patches))), total=len(patches), description="look"))
    pairs = zip(patches, seen, strict=True)
    return {p.name: s for p, s in pairs if isinstance(s, Sight)}, findings + [s for s in seen if isinstance(s, Finding)]


def _whole(patches: Sequence[Patch], sights: Mapping[str, Sight], patch_px: int) -> Sight:
    """A screen in little, from its patches; where they cover each other they show the same."""
    size = max(p.top for p in patches) + patch_px, max(p.left for p in patches) + patch_px
    scale = min(PATCH_SMALL_PX / patch_px, WHOLE_SMALL_PX / max(size))
    side = max(round(patch_px * scale), 1)
    canvas = np.zeros([max(round(length * scale), 1) for length in size], np.float32)
    digest = xxhash.xxh3_128()
    for patch in patches:
        top, left = round(patch.top * scale), round(patch.left * scale)
        small = sights[patch.name].small
        place = canvas[top : top + side, left : left + side]
        place[:] = shrink(small, side, side)[: place.shape[0], : place.shape[1]]
        digest.update(f"{patch.left}, {patch.top}: ".encode() + sights[patch.name].digest)
    return Sight(size, digest.digest(), shrink(canvas, SMALL_PX, SMALL_PX))


def _shared_patches(
    folder: Path, patches: Sequence[Patch], sights: Mapping[str, Sight], whole: Mapping[str, Sight], parts: Parts
) -> list[Finding]:
    """Equal patches of screens in two parts that are not equal as a whole."""
    screen_of = {patch.name: patch.screen for patch in patches}
    shared: dict[tuple[str, ...], list[str]] = {}
    for names in same({name: sights[name] for name in screen_of}):
        screens = dict.fromkeys(screen_of[name] for name in names)
        if len({parts.of[s] for s in screens}) > 1 and len({whole[s].digest for s in screens}) > 1:
            shared.setdefault(tuple(screens), []).append(names[0])
    return [
        Finding(
            "leak",
            f"{len(names)} patches are the same on {listed(f'{s} ({parts.of[s]})' for s in screens)}",
            tuple(Picture(folder / "images" / name, name) for name in names[:4]),
        )
        for screens, names in shared.items()
    ]


def _count(parts: Parts, patches: Sequence[Patch]) -> dict[str, dict[str, int]]:
    """By part: screens, patches, patches without a defect, and those in which each label is present or unknown."""
    counts = {}
    for part in sorted(set(parts.of.values()), key=rank):
        inside = [patch for patch in patches if parts.of.get(patch.screen) == part]
        counts[part] = {
            "screens": len({patch.screen for patch in inside}),
            "patches": len(inside),
            "clean": sum(not any(patch.labels.values()) for patch in inside),
        }
        for label in patches[0].labels:
            counts[part][label] = sum(patch.labels[label] == 1 for patch in inside)
            counts[part][f"{label} unknown"] = sum(patch.labels[label] == -1 for patch in inside)
    return counts
