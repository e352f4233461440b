"""Rendered screens in the data form: the `render` command. numpy, OpenCV and rich only.

Writes `screens/*.png`, `boxes.csv`, `masks/*.npz`, `splits.csv` and `conditions.csv` (each defect's contrast
over the local noise, and its longer side in pixels). Screen k depends on the seed and on k alone, so the
number of processes changes nothing.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from training.boxes import box_row, write_boxes, write_masks
from training.defects import LABELS
from training.placing import Placer
from training.rows import write_rows
from training.scene import draw_scene
from training.sensor import Sensor
from training.truth import Defect

MOST_DEFECTS = 12
_ATTEMPTS = 100  # of drawing a screen that has room for a defect

_SHARE = {"bubble": 0.15, "pinhole": 0.37, "scratch": 0.28, "tin_ash": 0.20}
# given a defect, what else lies on the screen: ash brings pinholes, handling brings scratches
_BESIDE = {
    "bubble": {"bubble": 0.40, "pinhole": 0.28, "scratch": 0.22, "tin_ash": 0.10},
    "pinhole": {"bubble": 0.10, "pinhole": 0.36, "scratch": 0.30, "tin_ash": 0.24},
    "scratch": {"bubble": 0.09, "pinhole": 0.36, "scratch": 0.37, "tin_ash": 0.18},
    "tin_ash": {"bubble": 0.08, "pinhole": 0.44, "scratch": 0.26, "tin_ash": 0.22},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a screen will be: its name, its part of the split and the labels of its defects."""

    index: int
    name: str
    part: str
    labels: tuple[str, ...]


def plan_screens(screens: int, *, seed: int, clean: float = 0.5) -> tuple[Plan, ...]:
    """Draw which screens are clean, which defects the others have, and the split, without drawing a pixel.

    Args:
        screens: number of screens, at least 1.
        seed: decides everything.
        clean: share of screens without a defect, 0-1; exact but for rounding.

    Raises:
        ValueError: `screens` or `clean` is out of range.
    """
    if screens < 1 or not 0 <= clean <= 1:
        raise ValueError(f"need at least one screen and a clean share in 0-1, got {screens} and {clean}")
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    order = rng.permutation(screens)
    clean_count = round(clean * screens)
    groups = order[:clean_count], order[clean_count:]
    single = set(rng.permutation(groups[1])[: round(len(groups[1]) / 3)].tolist())
    labels: dict[int, tuple[str, ...]] = dict.fromkeys(groups[0].tolist(), ())
    for index in groups[1].tolist():
        # 2 to 12, few more often than many
        count = 1 if index in single else 2 + int((MOST_DEFECTS - 1) * rng.random() ** 1.7)
        labels[index] = _draw_labels(rng, count)
    parts: dict[int, str] = {}
    for group in groups:  # the same share of clean screens in every part
        held = round(0.15 * len(group))
        names = ["validation"] * held + ["test"] * held + ["train"] * (len(group) - 2 * held)
        parts |= dict(zip(group.tolist(), names, strict=True))
    return tuple(Plan(index=k, name=f"s{seed}_{k:05d}", part=parts[k], labels=labels[k]) for k in range(screens))


def draw_screen(
    labels: tuple[str, ...],
    *,
    seed: int,
    index: int,
    height: int,
    width: int,
    faintest: float = 1.0,
    dirt: float = 1.0,
) -> tuple[NDArray[np.uint8], list[Defect]]:
    """The frame (H, W) of one screen and its defects; the same for the same arguments.

    A defect for which there is no place where it would be seen is left out; at least one of `labels` stays: where
    none can, the screen is drawn anew.

    Raises:
        ValueError: there was a place on none of many.
    """
    for attempt in range(_ATTEMPTS):
        entropy = [seed, index, attempt] if attempt else [seed, index]
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))
        frame, defects = _draw(rng, labels, height=height, width=width, faintest=faintest, dirt=dirt)
        if defects or not labels:
            return frame, defects
    raise ValueError(
        f"no place was found where a {' or '.join(labels)} is seen on {width} x {height} px: a lower --faintest than "
        f"{faintest:g} asks for less contrast"
    )


def _draw(
    rng: np.random.Generator, labels: tuple[str, ...], *, height: int, width: int, faintest: float, dirt: float
) -> tuple[NDArray[np.uint8], list[Defect]]:
    sensor = Sensor.draw(rng, height=height, width=width)
    base = np.exp(rng.uniform(np.log(8), np.log(40))) if rng.random() < 0.55 else rng.uniform(40, 140)
    scene = draw_scene(rng, height=height, width=width, base=sensor.light(float(base)), dirt=dirt)
    sensor.blur(scene.light)
    placer = Placer(rng, scene, sensor, faintest)
    # large ones first: they need the room
    ordered = sorted(labels, key=("bubble", "tin_ash", "scratch", "pinhole").index)
    defects = [defect for label in ordered if (defect := placer.place(label)) is not None]
    return sensor.expose(scene.light, rng), defects


def render(
    out: Path,
    *,
    screens: int,
    seed: int,
    width: int = 5120,
    height: int = 10240,
    clean: float = 0.5,
    faintest: float = 1.0,
    dirt: float = 1.0,
    preview: bool = False,
    processes: int | None = None,
) -> None:
    """Render screens into the folder `out`, in the data form.

    Args:
        out: made if it does not exist.
        screens: number of screens.
        seed: decides every pixel.
        width: of a frame in pixels, at least 256.
        height: likewise.
        clean: share of screens without a defect, 0-1.
        faintest: how many times the floor of visibility (see `training.placing`) the faintest defect stands out, at
            least 1.
        dirt: how many times as much dust, grease and reflections, which are no defects, as a line has.
        preview: also write contact sheets, `preview_*.png`.
        processes: that render side by side; by default one per core.

    Raises:
        ValueError: an argument is out of range, or `out` already holds screens.
    """
    if min(width, height) < 256:
        raise ValueError(f"a frame is at least 256 x 256 pixels, got {width} x {height}")
    if faintest < 1:
        raise ValueError(f"what is fainter than the floor of visibility is no defect: faintest >= 1, got {faintest}")
    if dirt < 0:
        raise ValueError(f"dirt is at least 0, got {dirt}")
    plans = plan_screens(screens, seed=seed, clean=clean)
    if (out / "boxes.csv").exists():
        raise ValueError(f"{out} already holds screens")
    (out / "screens").mkdir(parents=True, exist_ok=True)
    (out / "masks").mkdir(exist_ok=True)
    one = partial(_render_one, out=out, seed=seed, height=height, width=width, faintest=faintest, dirt=dirt)
    workers = min(processes or os.cpu_count() or 1, screens)
    boxes: list[tuple[object, ...]] = []
    conditions: list[tuple[object, ...]] = []
    for plan, defects in zip(plans, track(_run(one, plans, workers), "render", total=screens), strict=True):
        first = len(boxes)
        for number, defect in enumerate(defects, first):
            boxes.append(box_row(plan.name, defect))
            conditions.append((plan.name, number, defect.label, f"{defect.contrast:.3f}", defect.size_px))
        write_masks(out / "masks" / f"{plan.name}.npz", defects, first=first)
    write_boxes(out, boxes)
    write_rows(out / "conditions.csv", ["screen", "id", "label", "contrast", "size"], conditions)
    write_rows(out / "splits.csv", ["screen", "part"], [(plan.name, plan.part) for plan in plans])
    if preview:
        from training.preview import write_previews  # reads the folder back; only wanted here

        write_previews(out)


def _run(one: Callable[[Plan], list[Defect]], plans: Sequence[Plan], workers: int) -> Iterator[list[Defect]]:
    """The defects of each screen, in order, as the screens are written."""
    if workers == 1:
        yield from map(one, plans)
        return
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_one_thread) as pool:
        yield from pool.imap(one, plans)


def _one_thread() -> None:
    """Of OpenCV's, whose own function names no module: to pickle it, Python would search all that are loaded."""
    cv2.setNumThreads(1)


def _render_one(
    plan: Plan, *, out: Path, seed: int, height: int, width: int, faintest: float, dirt: float
) -> list[Defect]:
    frame, defects = draw_screen(
        plan.labels, seed=seed, index=plan.index, height=height, width=width, faintest=faintest, dirt=dirt
    )
    path = out / "screens" / f"{plan.name}.png"
    if not cv2.imwrite(str(path), frame, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f"cannot write {path}")
    return defects


def _draw_labels(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    drawn: list[str] = []
    for _ in range(count):
        weights = _SHARE if not drawn else _BESIDE[drawn[int(rng.integers(len(drawn)))]]
        drawn.append(str(rng.choice(LABELS, p=[weights[label] for label in LABELS])))
    return tuple(drawn)
