"""Two bundles, precisions or runtimes on the same patches: what moved, and what that changed."""

import csv
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from engine.backend import Backend, infer
from engine.manifest import Manifest
from engine.warmth import warm_cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """One label.

    Attributes:
        largest: difference of a probability between A and B over all patches.
        mean: difference.
        flipped: patches on which the label is present for one of them alone, each by its own threshold.
        present: patches on which it is present for both.
        elsewhere: how many of those have it in another place: the box around the warm cells of A's map and that around
            those of B's differ by more than a cell on some side.
    """

    largest: float
    mean: float
    flipped: int
    present: int
    elsewhere: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A against B.

    Attributes:
        patches: that both have seen.
        screens: they were of; patches of one screen were reasoned together.
        labels: what moved, by label.
        verdicts: screens by what A's and B's scores alone make of them, such as "pass > fail"; those that are equal
            aside.
        patches_per_s: of A and of B, features and reasoning; they took turns.
    """

    patches: int
    screens: int
    labels: dict[str, Moved]
    verdicts: dict[str, int]
    patches_per_s: tuple[float, float]

    @property
    def flipped_screens(self) -> int:
        """Screens whose class changed."""
        return sum(self.verdicts.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "flipped_screens": self.flipped_screens}


def compare(
    left: Backend, right: Backend, data: Path, *, limit: int | None = None, console: Console | None = None
) -> Comparison:
    """Run A and B over the screens of a cut folder, in turns.

    Args:
        left: A.
        right: B, with the same labels and patch size.
        data: folder with `images/*.png` and `windows.csv` (`img_names,screen,...`).
        limit: at most so many screens, the first by name.
        console: shows a progress bar.

    Raises:
        ValueError: A and B do not know the same labels and patches, or the folder has no patches for them.
        OSError: the folder cannot be read.
        InferenceError: a runtime failed.
    """
    names, side = left.manifest.label_names, left.manifest.patch_px
    if (right.manifest.label_names, right.manifest.patch_px) != (names, side):
        raise ValueError(
            f"A knows {', '.join(names)} at {side} px, "
            f"B {', '.join(right.manifest.label_names)} at {right.manifest.patch_px} px"
        )
    screens = list(_screens(data).items())[:limit]
    if not screens:
        raise ValueError(f"{data} has no patches")
    scores: tuple[list[NDArray[np.float32]], ...] = ([], [])
    elsewhere: list[NDArray[np.bool_]] = []
    taken = [0.0, 0.0]
    verdicts: Counter[str] = Counter()
    with Progress(console=console, disable=console is None or not console.is_terminal) as progress:
        for number, (_, files) in enumerate(progress.track(screens, description="compare")):
            pixels = np.stack([_read(file, side) for file in files])[:, None]
            if number == 0:
                infer(left, pixels)  # the first batches pay for the memory
                infer(right, pixels)
            maps = {}
            for index in (0, 1) if number % 2 else (1, 0):
                start = time.perf_counter()
                features, probability = infer((left, right)[index], pixels)
                taken[index] += time.perf_counter() - start
                scores[index].append(probability)
                maps[index] = features.activation
            elsewhere.append(_elsewhere(maps[0], maps[1]))
            a, b = (
                backend.manifest.outcome(found[-1].max(axis=0).tolist(), backend.guard)
                for backend, found in zip((left, right), scores, strict=True)
            )
            verdicts.update([f"{a} > {b}"] if a != b else [])
    one, other = np.concatenate(scores[0]), np.concatenate(scores[1])
    return Comparison(
        patches=len(one),
        screens=len(screens),
        labels=_moved(one, other, np.concatenate(elsewhere), left.manifest, right.manifest),
        verdicts=dict(verdicts),
        patches_per_s=(len(one) / taken[0], len(one) / taken[1]),
    )


def _moved(
    one: NDArray[np.float32],
    other: NDArray[np.float32],
    elsewhere: NDArray[np.bool_],
    left: Manifest,
    right: Manifest,
) -> dict[str, Moved]:
    """What moved, by label, from the scores (K, C) of A and of B, and where their maps show other places, (K, C)."""
    gap = np.abs(one.astype(np.float64) - other)
    present = [
        scores >= np.array([limits.threshold for limits in manifest.labels.values()], np.float32)
        for scores, manifest in ((one, left), (other, right))
    ]
    flipped, both = present[0] != present[1], present[0] & present[1]
    return {
        name: Moved(
            largest=float(gap[:, i].max()),
            mean=float(gap[:, i].mean()),
            flipped=int(flipped[:, i].sum()),
            present=int(both[:, i].sum()),
            elsewhere=int((both & elsewhere)[:, i].sum()),
        )
        for i, name in enumerate(left.label_names)
    }


def _elsewhere(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of two times (K, C) maps, perhaps of another grain, show their label in different places."""
    cell = 1 / np.minimum(one.shape[2:], other.shape[2:])[[0, 1, 0, 1]]
    boxes = [np.array([[_warm_box(heat) for heat in patch] for patch in maps]) for maps in (one, other)]
    return np.asarray((np.abs(boxes[0] - boxes[1]) > cell + 1e-9).any(axis=2))


def _warm_box(heat: NDArray[np.float32]) -> NDArray[np.float64]:
    """Top, left, bottom and right of the warm cells, as shares of the patch; the whole patch where none is."""
    cells = np.argwhere(warm_cells(heat))
    if not len(cells):
        return np.array([0.0, 0.0, 1.0, 1.0])
    box = np.concatenate([cells.min(axis=0), cells.max(axis=0) + 1])
    return np.asarray(box / np.array([*heat.shape, *heat.shape]), np.float64)


def _screens(data: Path) -> dict[str, list[Path]]:
    """The files of each screen's patches, screens by name, patches in the order of the table."""
    screens: dict[str, list[Path]] = {}
    with (data / "windows.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if not (row.get("img_names") and row.get("screen")):
                    raise ValueError(f"{file.name}, line {reader.line_num}: needs img_names and screen")
                screens.setdefault(row["screen"], []).append(data / "images" / row["img_names"])
        except csv.Error as error:
            raise ValueError(f"{file.name}, line {reader.line_num}: {error}") from error
    return dict(sorted(screens.items()))


def _read(file: Path, side: int) -> NDArray[np.uint8]:
    """One grey patch (P, P)."""
    import cv2  # a process that serves reads its images by the service

    pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape != (side, side):
        found = "cannot be read" if pixels is None else f"is {pixels.shape} {pixels.dtype}"
        raise ValueError(f"{file} {found}, expected a grey patch of {side} px")
    return np.asarray(pixels, np.uint8)


def show(found: Comparison, names: tuple[str, str], console: Console) -> None:
    """Print a comparison for people."""
    labels = Table("label", "largest difference", "mean", "flipped patches", "seen elsewhere")
    for name, moved in found.labels.items():
        counts = f"{moved.flipped} of {found.patches}", f"{moved.elsewhere} of {moved.present}"
        labels.add_row(name, f"{moved.largest:.2e}", f"{moved.mean:.2e}", *counts)
    console.print(labels)
    changes = ", ".join(f"{count} {change}" for change, count in sorted(found.verdicts.items()))
    console.print(f"flipped screens: {found.flipped_screens} of {found.screens}" + (f" ({changes})" if changes else ""))
    for letter, name, speed in zip("AB", names, found.patches_per_s, strict=True):
        console.print(f"{letter}: {name}, {speed:.0f} patches/s")
