"""What a look at a data folder may find, how grave that is, and what to do about it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of finding. An error stops `cut` or `fit`, or makes labels or figures wrong; a warning may be meant."""

    level: Level
    title: str
    advice: str


CHECKS = {
    "table": Check("error", "table or row that cannot be read", "Mend the row; none of it has been taken."),
    "image": Check("error", "image unreadable or incomplete", "Save it again, whole: 8-bit grey or colour."),
    "small": Check("error", "image smaller than a patch", "Cut with a smaller --patch, or leave it out."),
    "twice": Check("error", "screen there twice", "One file and one part for a screen."),
    "missing": Check("error", "image or screen missing", "Put it back, or take its rows out."),
    "part": Check("error", "screen without a part", "Give it one: train, validation or test; or a fold."),
    "leak": Check("error", "same pixels in two parts", "The test part would test what was learnt: keep one of them."),
    "box": Check(
        "error", "box empty or outside of its image", "Left < right and top < bottom, in pixels of the image."
    ),
    "mask": Check("error", "mask that does not fit its box", "Pixels of a mask lie in the box of their row."),
    "unboxed": Check("error", "label without a box, or box without its label", "Tables of two cuts? Cut it anew."),
    "label": Check("error", "label that is none", "a-z, 0-9 and _, from a letter on; and one that was asked for."),
    "stale": Check("error", "patch that is not what fit reads", "Delete pixels.u8; the next fit decodes the images."),
    "name": Check(
        "warning", "name that no screen_id can be", "A-Z, a-z, 0-9, . _ - and at most 64, or judge lacks it."
    ),
    "odd_size": Check("warning", "size that others do not have", "Was it scanned, cropped or scaled otherwise?"),
    "alike": Check("warning", "alike, in two parts", "If that is one board or phone twice, put it in one part."),
    "uncompared": Check("warning", "not looked at for near-duplicates", "Look yourself whether two parts share one."),
    "group": Check("warning", "board, phone or the like in two parts", "Figures of what was seen before flatter."),
    "again": Check("warning", "same pixels twice in a part", "It counts twice."),
    "box_again": Check("warning", "box there twice", "It counts as two defects."),
    "no_pixels": Check("warning", "box without pixels in the mask of its screen", "Then all of the box counts."),
    "area": Check("warning", "area_px that is not that of the mask", "The mask counts."),
    "absent": Check("warning", "label or part without an example", "Nothing can be learnt or measured there."),
    "gone": Check("error", "images gone, decoded patches left", "`fit` knows its data by the images: cut it anew."),
    "ignored": Check("warning", "file or row that is not taken", "Only .png and .jpg are taken."),
}

ROWS = "Rows count from 0 below the header, as masks name them."


@dataclass(frozen=True, slots=True)
class Picture:
    """An image to show, with a box (left, top, right, bottom) to draw on it."""

    file: Path
    caption: str
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found: the key of its check, one line that names the file or row, and what to look at."""

    check: str
    text: str
    pictures: tuple[Picture, ...] = ()

    @property
    def level(self) -> Level:
        """Of its check."""
        return CHECKS[self.check].level


@dataclass(frozen=True, slots=True)
class Report:
    """A folder, looked at: its form, how many of what by part, and what was found."""

    folder: Path
    form: Literal["data form", "cut"]
    counts: dict[str, dict[str, int]]
    findings: list[Finding]

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """How many are warnings."""
        return len(self.findings) - self.errors

    @property
    def note(self) -> str:
        """What a reader of the findings has to know; empty if nothing."""
        return ROWS if any("row " in finding.text for finding in self.findings) else ""

    def by_check(self) -> dict[str, list[Finding]]:
        """Findings by the key of their check, in the order of `CHECKS`; only those that there are."""
        present = Counter(finding.check for finding in self.findings)
        return {key: [f for f in self.findings if f.check == key] for key in CHECKS if present[key]}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder),
            "form": self.form,
            "errors": self.errors,
            "warnings": self.warnings,
            "counts": self.counts,
            "note": self.note,
            "findings": [{"check": f.check, "level": f.level, "text": f.text} for f in self.findings],
        }
