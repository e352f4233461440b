"""The data form, written: screens with their defects, parts, and the counts of what was written."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import track

from training.boxes import box_row, write_boxes, write_masks
from training.images import TAKEN, Header, read_upright, read_whole, write_png
from training.membership import Division
from training.rows import write_rows
from training.truth import Defect

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
        write_png(target.with_suffix(".png"), pixels)
    elif link:
        target.symlink_to(screen.file.resolve())
    else:
        shutil.copyfile(screen.file, target)
