"""Names of screens and labels in the data form, from those of other forms, by rules that are stated."""

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

from engine import LABEL as LABEL  # what a bundle takes

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png"}
# a screen_id of the service, by which verdicts are found again
SCREEN = re.compile(r"(?=.{1,64}$)[.]*[A-Za-z0-9_-][A-Za-z0-9._-]*")
_LONGEST, _TOLD = 64, 8  # characters of one, and of the hash in one that was shortened
LABEL_RULE = "a-z, 0-9 and _ from a letter on, at most 32"


def screen_name(file_name: str) -> str:
    """The screen of an image file: its path without suffix, folders joined by "-", "_" for what no screen_id may hold.

    What is too long for a screen_id keeps its beginning, and ends with a hash of the whole.

    Raises:
        ValueError: an absolute path, one that leads upwards, or dots alone.
    """
    path = PurePosixPath(file_name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name or ":" in path.parts[0]:
        remedy = "make it one in the file, and name that folder by --images"
        raise ValueError(f"{file_name!r} is no path below the folder of images: {remedy}")
    stem = path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path
    name = shortened(re.sub(r"[^A-Za-z0-9._-]", "_", "-".join(stem.parts)), of=str(stem))
    if not SCREEN.fullmatch(name):
        raise ValueError(f"{file_name!r} makes the screen {name!r}, which is dots alone")
    return name


def shortened(name: str, *, of: str | None = None) -> str:
    """A name that is no longer than a screen_id may be: its beginning, and a hash of it or of what it stands for."""
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - _TOLD - 1]}-{hashlib.sha256((of or name).encode()).hexdigest()[:_TOLD]}"


def label_name(original: str, renamed: Mapping[str, str]) -> str:
    """The label for a class: as `renamed` says, else in lower case, what is no letter a-z or digit one underscore.

    "Tin Ash" becomes tin_ash, "pin-hole" pin_hole.

    Raises:
        ValueError: nothing is left, it does not begin with a letter or is too long, which `renamed` may be the cause
            of; the message says how to name it.
    """
    label = renamed.get(original, re.sub(r"[^a-z0-9]+", "_", original.lower()).strip("_"))
    if not LABEL.fullmatch(label) and original in renamed:
        raise ValueError(f"--rename '{original}={label}' names no label: {label!r} is not {LABEL_RULE}")
    if not LABEL.fullmatch(label):
        raise ValueError(f"{original!r} makes no label ({LABEL_RULE}): name it by --rename '{original}=LABEL'")
    return label


def label_names(originals: list[str], renamed: Mapping[str, str], *, unused: Collection[str] = ()) -> dict[str, str]:
    """Labels of the classes of a data set; it may know others that it does not use, which `renamed` may name as well.

    Raises:
        ValueError: see `label_name`; two classes become one label without being told to, or `renamed` knows a class
            that the data set does not.
    """
    stranger = next((original for original in renamed if original not in {*originals, *unused}), None)
    if stranger is not None:
        raise ValueError(f"--rename names {stranger!r}, which is no class here ({', '.join(originals)})")
    labels = {original: label_name(original, renamed) for original in originals}
    for original, label in labels.items():
        same = [other for other, theirs in labels.items() if theirs == label and other != original]
        if same and not {original, *same} <= set(renamed):
            told = "tell them apart by --rename, or join them by naming both the same with it"
            raise ValueError(f"{original!r} and {same[0]!r} both become {label!r}: {told}")
    return labels
