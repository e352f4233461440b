"""The data form, written: screens with their defects, parts, and the counts of what was written."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from training.boxes import box_row, write_boxes, write_masks
from training.conversion.names import screen_name
from training.images import TAKEN, Header, read_upright, read_whole
from training.rows import read_lines, write_rows
from training.truth import PARTS, Defect

DRAWN_SHARE = 0.1  # of the screens, for the test part
MOST_FAULTS = 20  # in one message


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """An image of another form: the screen that it becomes, its file, the (height, width) its labels were drawn on.

    `defects` makes them when they are checked and again when they are written: the pixels of all masks of a data set
    would not fit in memory. It raises a ValueError with a line for each that is at fault.
    """

    name: str
    file: Path
    size: tuple[int, int]
    defects: Callable[[], list[Defect]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What was written: screens by part or fold, screens without a defect, defects by label, those with a mask.

    `unnamed` are images that were left out as nothing names them, by their folder.
    """

    screens: dict[str, int]
    clean: int
    defects: dict[str, int]
    masks: int
    unnamed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Division:
    """Which screen is in which part: a table of the data form, `splits.csv` or `folds.csv`, by screen."""

    table: str
    rows: dict[str, dict[str, str]]

    @property
    def column(self) -> str:
        """Where a row names the part or the fold."""
        return "fold" if self.table == "folds.csv" else "part"


def read_division(table: Path, screens: Sequence[str]) -> Division:
    """A CSV file with a column `screen`, a column `part` or `fold`, and any others, such as the phone, which are kept.

    `screen` may also be the name of the image file.

    Raises:
        ValueError: it lacks a column, a screen, has one twice or one that is not there, or both a part and a fold.
    """
    header, lines = read_lines(table)
    rows = list(lines)
    column = next((name for name in ("fold", "part") if rows and name in header), None)
    if column is None or "screen" not in header:
        raise ValueError(f"{table} needs the columns screen and part, or screen and fold, and a row")
    if {"part", "fold"} <= set(header):  # one of them would count for nothing
        raise ValueError(f"{table} has the columns part and fold: leave one out")
    divided: dict[str, dict[str, str]] = {}
    for number, row, wrong in rows:
        if wrong:
            raise ValueError(f"{table}, line {number}: {wrong}")
        if column == "part" and row["part"] not in PARTS:
            raise ValueError(f"{table}, line {number}: unknown part {row['part']!r}: {', '.join(PARTS)}")
        if column == "fold" and not row["fold"].isdecimal():
            raise ValueError(f"{table}, line {number}: the fold {row['fold']!r} is no number")
        name = screen_name(row["screen"])
        if name in divided:
            raise ValueError(f"{table}, line {number}: screen {name!r} is there twice")
        divided[name] = {**row, "screen": name}
    known = set(screens)
    stranger = next((name for name in divided if name not in known), None)
    if stranger is not None:
        raise ValueError(f"{table} names the screen {stranger!r}, which is not there")
    missing = [name for name in screens if name not in divided]
    if missing:
        raise ValueError(f"{table} lacks screen {missing[0]} (and {len(missing) - 1} more)")
    return Division("folds.csv" if column == "fold" else "splits.csv", {name: divided[name] for name in screens})


def division_of(parts: Mapping[str, str]) -> Division:
    """Parts by screen as a table."""
    return Division("splits.csv", {name: {"screen": name, "part": part} for name, part in parts.items()})


def draw_division(screens: Sequence[str], *, test_share: float | None) -> Division:
    """A test part drawn by screen, with a fixed seed; `cut` draws the validation part out of the rest.

    One of two screens or more is in it at least, unless the share is 0; None stands for `DRAWN_SHARE`. Frames of one
    board or phone may come apart by it: where there are such, a table has to say what belongs together.
    """
    ordered = sorted(screens)
    share = DRAWN_SHARE if test_share is None else test_share
    count = max(round(share * len(ordered)), int(share > 0 and len(ordered) > 1))
    test = {ordered[i] for i in np.random.default_rng(0).permutation(len(ordered))[:count]}
    return division_of({name: "test" if name in test else "train" for name in screens})


def write_form(out: Path, screens: Sequence[Labelled], division: Division, *, link: bool) -> Converted:
    """Write a folder in the data form; it appears when it is whole. All is checked before the first pixel is decoded.

    Args:
        out: a folder that does not exist yet or is empty.
        screens: with names that differ, as `refuse_twins` has checked.
        division: with a row for each.
        link: symbolic links in the place of copies of PNG and JPEG files; a BMP becomes a PNG in either case.

    Raises:
        ValueError: `out` is not empty; an image is missing, no PNG, JPEG or BMP, of another size than its labels were
            drawn on, or asks to be turned when it is shown; or what `defects` of a screen raises. The message has a
            line for each fault, see `faulty`.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty")
    _refuse_faults(screens)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        form = Path(temporary) / "form"
        (form / "screens").mkdir(parents=True)
        (form / "masks").mkdir()
        boxes: list[tuple[object, ...]] = []
        counted: Counter[str] = Counter()
        clean = masks = 0
        for screen in track(screens, description="convert"):
            _place_image(screen, form / "screens", link=link)
            defects = screen.defects()
            masks += write_masks(form / "masks" / f"{screen.name}.npz", defects, first=len(boxes))
            boxes += [box_row(screen.name, defect) for defect in defects]
            counted.update(defect.label for defect in defects)
            clean += not defects
        write_boxes(form, boxes)
        rows = [division.rows[screen.name] for screen in screens]
        write_rows(form / division.table, list(rows[0]), (row.values() for row in rows))
        if out.exists():
            out.rmdir()
        form.rename(out)
    parts = Counter(row[division.column] for row in rows)
    return Converted(
        screens=dict(sorted(parts.items())), clean=clean, defects=dict(sorted(counted.items())), masks=masks
    )


def faulty(faults: Sequence[str]) -> ValueError:
    """The error that tells the first faults, one a line, and how many more there are."""
    more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
    return ValueError("\n".join([*faults[:MOST_FAULTS], *more]))


def refuse_twins(names: Iterable[tuple[str, str]]) -> None:
    """Refuse (screen, image file) pairs of which two make the same screen.

    Raises:
        ValueError: there are such; the message names both files.
    """
    files: dict[str, str] = {}
    for screen, file in names:
        if screen.lower() in files:  # not every disk tells them apart
            raise ValueError(f"{files[screen.lower()]!r} and {file!r} would both be screen {screen!r}: rename one")
        files[screen.lower()] = file


def _refuse_faults(screens: Sequence[Labelled]) -> None:
    faults: list[str] = []
    for screen in track(screens, description="check"):
        try:
            _read_fitting(screen)  # on an image of another size each label would be a fault
            screen.defects()
        except ValueError as error:
            faults += str(error).split("\n")
    if faults:
        raise faulty(faults)


def _read_fitting(screen: Labelled) -> Header:
    """The header of an image that is as its labels say."""
    header = read_upright(screen.file)
    if header.size != screen.size:
        (height, width), (theirs_high, theirs_wide) = header.size, screen.size
        raise ValueError(
            f"{screen.file} has {width} x {height} px, but its labels are of {theirs_wide} x {theirs_high}"
        )
    return header


def _place_image(screen: Labelled, folder: Path, *, link: bool) -> None:
    header = _read_fitting(screen)
    target = folder / f"{screen.name}{TAKEN[header.kind]}"
    pixels = read_whole(screen.file)  # what `cut` would refuse is refused while its labels are at hand
    if header.kind == "BMP":  # larger, and not read by `cut`; nothing is lost
        if not cv2.imwrite(str(target.with_suffix(".png")), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise OSError(f"{target} could not be written")
    elif link:
        target.symlink_to(screen.file.resolve())
    else:
        shutil.copyfile(screen.file, target)
