"""What looking again is worth: the same screens inspected once, again at borders, turned, and by overlapping windows.

The service's own command inspects them (`python -m service inspect`), by copies of the bundle that differ in nothing
but their windows, so that whole verdicts are compared; nothing of the service is imported.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine import NO_SECOND_LOOK, NO_TURNED_LOOK, POSITIONS, Manifest, SecondLook, TurnedLook, changed_copy, cover
from training.bands import BORDER_BANDS, by_band
from training.boxes import read_defects
from training.images import read_whole, screen_files
from training.judging import Judgement, judge, overlap, read_answers
from training.measures import Share
from training.truth import Defect
from training.visible import CROSSED

SECOND_LOOK = SecondLook(score_min=0.05, ratio_max=0.5)
"""What `export --second-look` asks for: see LOG.md for how it was chosen."""
TURNED_LOOK = TurnedLook(score_min=0.1, score_max=0.9, ratio_max=0.1)
"""What `export --turned-look` asks for: see LOG.md."""

VARIED = "overlap_px", "second_look", "turned_look"  # keys of the manifest

Answers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """One way to place windows, and what came of it.

    Attributes:
        windows: for each that covers a screen without overlap, on average.
        windows_most: the same of the screen that took most.
        judgement: of the verdicts.
        found: boxes found by distance to a border, all labels together.
        found_by_label: the same for each.
        box_overlap: intersection over union of a defect with the best box over it, 0 where there is none, on average,
            by distance.
        false_boxes: boxes over no defect of their label.
        false_boxes_clean: of those on screens without a defect.
    """

    windows: float
    windows_most: float
    judgement: Judgement
    found: dict[str, Share]
    found_by_label: dict[str, dict[str, Share]]
    box_overlap: dict[str, float]
    false_boxes: int
    false_boxes_clean: int


def manners(manifest: Manifest) -> dict[str, Manifest]:
    """The bundle as it is served by each manner: windows once, looked at again, and overlapping by half.

    The looks are the bundle's own, or those of `export --second-look` and `--turned-look` where it has none.
    """
    second = manifest.second_look if manifest.second_look.ratio_max else SECOND_LOOK
    turned = manifest.turned_look if manifest.turned_look.ratio_max else TURNED_LOOK
    once = replace(manifest, overlap_px=0, second_look=NO_SECOND_LOOK, turned_look=NO_TURNED_LOOK)
    return {
        "once": once,
        "second look": replace(once, second_look=second),
        "turned, too": replace(once, second_look=second, turned_look=turned),
        "half overlap": replace(once, overlap_px=manifest.patch_px // 2),
    }


def compare(bundle: Path, source: Path, served: Mapping[str, Manifest]) -> dict[str, Manner]:
    """Inspect a folder's screens in each manner.

    Args:
        bundle: its folder.
        source: folder in the data form.
        served: manifest by manner, see `manners`.

    Raises:
        ValueError: the service could not inspect them; its words are in it.
        BundleError: the bundle is not whole.
    """
    files = screen_files(source)
    patch_px = next(iter(served.values())).patch_px
    distances = _distances(files, read_defects(source, files), patch_px)
    found = {}
    for name, manifest in served.items():
        looks = {key: getattr(manifest, key) for key in VARIED}
        with changed_copy(bundle, **looks) as copy, tempfile.TemporaryDirectory() as folder:
            verdicts = Path(folder) / "verdicts.json"
            verdicts.write_text(_inspect(copy, list(files.values())))
            found[name] = _manner(judge(verdicts, source), read_answers(verdicts), distances)
    return found


def _inspect(bundle: Path, files: Sequence[Path]) -> str:
    command = [sys.executable, "-m", "service", "inspect", "--bundle", str(bundle), "--json", "--", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode != 0:
        raise ValueError(f"the service could not inspect them: {done.stderr.strip() or done.stdout[-500:]}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class _Screen:
    """Of one screen: windows that cover it without overlap, and its defects with their distance to a border."""

    windows: int
    defects: list[tuple[Defect, int]]


def _distances(files: Mapping[str, Path], truth: Mapping[str, list[Defect]], patch_px: int) -> dict[str, _Screen]:
    screens = {}
    for name, path in files.items():
        windows = cover(*read_whole(path).shape, patch_px=patch_px)
        tops, lefts = ({getattr(window, axis) for window in windows} for axis in ("top", "left"))
        screens[name] = _Screen(
            len(windows),
            [
                (
                    defect,
                    min(
                        distance(defect.top, defect.bottom, tops, patch_px),
                        distance(defect.left, defect.right, lefts, patch_px),
                    ),
                )
                for defect in truth.get(name, [])
            ],
        )
    return screens


def distance(low: int, high: int, starts: set[int], patch_px: int) -> int:
    """Pixels from the span [low, high) to the nearest border of windows inside the frame; -1 where one crosses it.

    Args:
        low: first pixel of the span.
        high: the one after its last.
        starts: first pixels of the windows along this axis.
        patch_px: side of a window.
    """
    first, last = min(starts), max(starts)
    borders = (starts - {first}) | {start + patch_px for start in starts - {last}}
    if any(low < border < high for border in borders):
        return CROSSED
    return min((max(border - high, low - border) for border in borders), default=sys.maxsize - 1)


class _Look(NamedTuple):
    """A defect as it was found: `overlap` is that of the best box of its label, 0 where there is none over it."""

    label: str
    border_px: int
    overlap: float


def _manner(judgement: Judgement, answers: Answers, screens: Mapping[str, _Screen]) -> Manner:
    looks: list[_Look] = []
    costs: list[float] = []
    false_boxes = false_clean = 0
    for name, screen in screens.items():
        proof, boxes = answers[name]["proof"], answers[name]["defects"]
        turned = (POSITIONS - 1) * proof["windows_turned"]
        costs.append((proof["windows_inferred"] + proof["windows_extra"] + turned) / screen.windows)
        for defect, border_px in screen.defects:
            best = max((iou(defect, b["box"]) for b in boxes if b["label"] == defect.label), default=0.0)
            looks.append(_Look(defect.label, border_px, best))
        wrong = sum(not any(d.label == b["label"] and overlap(d, b["box"]) for d, _ in screen.defects) for b in boxes)
        false_boxes += wrong
        false_clean += 0 if screen.defects else wrong
    labels = sorted({look.label for look in looks})
    return Manner(
        windows=float(np.mean(costs)),
        windows_most=max(costs),
        judgement=judgement,
        found=_found(looks),
        found_by_label={label: _found([look for look in looks if look.label == label]) for label in labels},
        box_overlap=_box_overlap(looks),
        false_boxes=false_boxes,
        false_boxes_clean=false_clean,
    )


def _found(looks: Sequence[_Look]) -> dict[str, Share]:
    return by_band(((look.overlap > 0, look.border_px) for look in looks), BORDER_BANDS)


def _box_overlap(looks: Sequence[_Look]) -> dict[str, float]:
    ends = BORDER_BANDS.items()
    bands = {band: [look.overlap for look in looks if low <= look.border_px < high] for band, (low, high) in ends}
    return {band: float(np.mean(found)) for band, found in bands.items() if found}


def iou(defect: Defect, box: Mapping[str, int]) -> float:
    """Intersection over union of a defect's box and a verdict's; 0 where they share no pixel."""
    width = min(defect.right, box["right"]) - max(defect.left, box["left"])
    height = min(defect.bottom, box["bottom"]) - max(defect.top, box["top"])
    if width <= 0 or height <= 0:
        return 0.0
    own = (defect.right - defect.left) * (defect.bottom - defect.top)
    other = (box["right"] - box["left"]) * (box["bottom"] - box["top"])
    return width * height / (own + other - width * height)
