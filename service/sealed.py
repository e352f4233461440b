"""The sealed set of the release gate: screens in the data form, and what the training module itself makes of each."""

import csv
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from engine import Manifest

SEALED_FILE = "sealed.json"


class ReleaseError(Exception):
    """The gate cannot be run: the sealed set is not whole, or is another bundle's."""


class Strict(BaseModel):
    """A part of a file of the gate: what it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SealedMap(Strict):
    """What the module's map (h, w) of a label shows in a window, which is given by its place among the screen's."""

    window: int
    label: str
    heat: list[list[float]]


class SealedScreen(Strict):
    """One screen of the set: its file's hash, the windows (top, left), and the module's probabilities (K, C).

    The windows that cover the frame come first, then those of the module's own second look; `turned` are the places of
    those that it looked at turned. There is a map for each window and label of which the probability reaches the
    threshold: the others draw no box.
    """

    sha256: str
    windows: list[tuple[int, int]]
    turned: list[int] = []
    probability: list[list[float]]
    maps: list[SealedMap]

    def activation(self, manifest: Manifest) -> NDArray[np.float32]:
        """The maps as those of all windows and labels, (K, C, h, w); nothing is seen where none was sealed.

        Raises:
            ValueError: a map is missing that draws a box, is of no window or label, or of another form than the others;
                or what was looked at turned is no window.
        """
        if len(set(self.turned)) < len(self.turned) or not set(self.turned) <= set(range(len(self.windows))):
            raise ValueError("what was looked at turned is no window of it, or one twice")
        sealed = {(one.window, one.label): np.array(one.heat, np.float32) for one in self.maps}
        wanted = {
            (window, label)
            for window, scores in enumerate(self.probability)
            for (label, limits), score in zip(manifest.labels.items(), scores, strict=True)
            if score >= limits.threshold
        }
        if sealed.keys() != wanted:
            raise ValueError("its maps are not those of the windows that have a label")
        form = next((heat.shape for heat in sealed.values()), (1, 1))
        activation = np.zeros((len(self.windows), len(manifest.labels), *form), np.float32)
        for (window, label), heat in sealed.items():
            activation[window, manifest.label_names.index(label)] = heat
        return activation


class Sealed(Strict):
    """`sealed.json`, written by `python -m training export --golden DIR`."""

    name: str
    version: str
    labels: list[str]
    screens: dict[str, SealedScreen]


def read_sealed(golden: Path, manifest: Manifest) -> Sealed:
    """The sealed set in a folder, each of its screens the file that was sealed.

    Raises:
        ReleaseError: it is not whole, or another bundle's than that of `manifest`.
    """
    try:
        sealed = Sealed.model_validate_json((golden / SEALED_FILE).read_bytes())
    except OSError as error:
        raise ReleaseError(
            f"{golden / SEALED_FILE} cannot be read: {error.strerror}; `training export --golden` writes it"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ReleaseError(f"{golden / SEALED_FILE}: {where}: {first['msg']}; seal the set again") from error
    if (sealed.name, sealed.version, tuple(sealed.labels)) != (manifest.name, manifest.version, manifest.label_names):
        raise ReleaseError(
            f"{golden} was sealed for {sealed.name} {sealed.version}, this bundle is {manifest.name} {manifest.version}"
        )
    if not sealed.screens:
        raise ReleaseError(f"{golden / SEALED_FILE} holds no screen")
    for name, screen in sealed.screens.items():
        path = golden / "screens" / name
        if Path(name).name != name or not path.is_file():
            raise ReleaseError(f"{golden} lacks the screen {name!r}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != screen.sha256:
            raise ReleaseError(f"{path} is not the file that was sealed")
    return sealed


def defective(golden: Path, screens: set[str]) -> set[str]:
    """Names, without suffix, of those of the screens that boxes.csv knows a defect of.

    Raises:
        ReleaseError: it cannot be read, names a screen that is not in the set, or leaves the set without a defective
            or without a clean screen: then no escape, or no overkill, could be seen.
    """
    boxes = golden / "boxes.csv"
    try:
        with boxes.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
        if any(None in row or "\n" in "".join(value or "" for value in row.values()) for row in rows):
            raise ValueError("a row has values too many, or a quote is left open")  # which takes the rows after it
        bad = {row["screen"] for row in rows}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise ReleaseError(f"{boxes} cannot be read: without it nothing is known of escapes: {error}") from error
    if strangers := bad - screens:
        raise ReleaseError(f"{boxes} names the screen {min(strangers)!r}, which is not in the sealed set")
    if not bad:
        raise ReleaseError(f"{golden} holds no defective screen: no escape could be seen")
    if bad == screens:
        raise ReleaseError(f"{golden} holds no clean screen: no overkill could be seen")
    return bad
