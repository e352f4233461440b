"""Who is in which part, and what two parts share that they should not."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from training.truth import PARTS
from training.validation.findings import Finding, Picture
from training.validation.likeness import alike, same, uncompared
from training.validation.sight import Sight
from training.validation.tables import read_table

NAMED = 6  # names in a line, and pictures beside it


@dataclass(frozen=True, slots=True)
class Parts:
    """Part of each screen ("train", or "fold 3"), and other columns (board, phone) with their value for each."""

    of: dict[str, str] = field(default_factory=dict)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)


def read_parts(folder: Path, screens: Collection[str]) -> tuple[Parts, list[Finding]]:
    """From `folds.csv`, where there is one, else from `splits.csv`; a fold counts as a part."""
    folds = (folder / "folds.csv").is_file()
    table, column = folder / ("folds.csv" if folds else "splits.csv"), "fold" if folds else "part"
    rows, findings = read_table(table, ["screen", column])
    lost_whole = bool(findings) and not rows
    parts = Parts()
    for number, row in rows:
        screen, value = row["screen"], row[column]
        if column == "fold" and value.isdecimal():
            part = f"fold {int(value)}"
        elif column == "part" and value in PARTS:
            part = value
        else:
            findings.append(Finding("part", f"{table.name}, row {number}: {value!r} is no {column}"))
            continue
        if screen in parts.of:
            findings.append(Finding("twice", f"{table.name}, row {number}: {screen} is in {parts.of[screen]} already"))
            continue
        if screen not in screens:
            findings.append(Finding("missing", f"{table.name}, row {number}: there is no screen {screen!r}"))
            continue
        parts.of[screen] = part
        for key in row.keys() - {"screen", "part", "fold"}:
            parts.columns.setdefault(key, {})[screen] = row[key]
    lost = [screen for screen in screens if screen not in parts.of]
    if lost and not lost_whole:
        findings.append(Finding("part", f"{table.name} has no part for {listed(lost)}"))
    return parts, findings


def find_leaks(sights: Mapping[str, Sight], files: Mapping[str, Path], parts: Mapping[str, str]) -> list[Finding]:
    """Images with equal pixels, in two parts or in one, and images in two parts that show nearly the same.

    Args:
        sights: of images that have a part.
        files: to show them.
        parts: of each image.
    """
    findings = []
    for names in same(sights):
        check = "leak" if len({parts[name] for name in names}) > 1 else "again"
        text = f"{listed(names)} have the same pixels: {_spread(parts[name] for name in names)}"
        findings.append(Finding(check, text, _shown(names, files, parts)))
    for names, closest in alike(sights, parts):
        where = _spread(parts[name] for name in names)
        text = f"{listed(names)} look alike (correlation up to {closest:.3f}): {where}"
        findings.append(Finding("alike", text, _shown(names, files, parts)))
    few, sizes = uncompared(sights, parts)
    if few:
        findings.append(Finding("uncompared", f"{listed(few)}: fewer than five images of their size"))
    if sizes:
        told = listed(f"{width} x {height}" for height, width in sizes)
        findings.append(Finding("uncompared", f"images of different sizes are not compared with each other: {told} px"))
    return findings


def find_groups(parts: Parts) -> list[Finding]:
    """Values of a column, such as a board or a phone, that stand in more than one part."""
    findings = []
    for column, values in parts.columns.items():
        inside: dict[str, list[str]] = {}
        for screen, value in values.items():
            if not value:  # of which it is not told
                continue
            inside.setdefault(value, []).append(parts.of[screen])
        for value, found in sorted(inside.items()):
            if len(set(found)) > 1:
                findings.append(Finding("group", f"{column} {value} is in more than one part: {_spread(found)}"))
    return findings


def find_absent(counts: Mapping[str, Mapping[str, int]], labels: Iterable[str], kind: str) -> list[Finding]:
    """Labels that have no example, in one part or at all.

    Args:
        counts: by part, of each label among others.
        labels: that there should be.
        kind: what is counted.
    """
    findings = []
    for label in labels if counts else ():
        lacking = [part for part, count in counts.items() if not count.get(label)]
        if len(lacking) == len(counts):
            findings.append(Finding("absent", f"no {kind} has the label {label}"))
        else:
            findings += [Finding("absent", f"no {kind} in {part} has the label {label}") for part in lacking]
    in_use = {part.split()[0] for part in counts}
    missing = [part for part in PARTS if part not in in_use] if in_use - {"fold"} else []
    return findings + [Finding("absent", f"no {kind} is in {part}") for part in missing]


def rank(part: str) -> tuple[int, str]:
    """Parts in the order of their use, then folds by number."""
    return (PARTS.index(part), "") if part in PARTS else (len(PARTS), part.rjust(12))


def listed(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return ", ".join(every[:NAMED]) + more


def _spread(parts: Iterable[str]) -> str:
    """Such as: 18 in train, 4 in test."""
    return ", ".join(f"{count} in {part}" for part, count in sorted(Counter(parts).items()))


def _shown(names: Iterable[str], files: Mapping[str, Path], parts: Mapping[str, str]) -> tuple[Picture, ...]:
    """Those of different parts first."""
    by_part: dict[str, list[str]] = {}
    for name in names:
        by_part.setdefault(parts[name], []).append(name)
    ordered = [n for row in zip_longest(*by_part.values()) for n in row if n is not None]
    return tuple(Picture(files[name], f"{name} ({parts[name]})") for name in ordered[:4])
