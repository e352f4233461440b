"""Pictures of where the scores of both stages come from: `explain`.

One row a label: the frame with what is true of it, the maps of stage 1 and of stage 2 over it, and the strongest cell
of stage 2 at close quarters (after Fig. 7 of Zhou et al. 2023). Orange speaks for the label, blue against it, by a
scale under each map. It is the same for all labels of an image, for what cells add to one score can be set beside what
they add to another of that stage, and noise must not look like a defect. The stages cannot share one: a cosine is no
logit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from engine import NO_GLANCE, Manifest, Window, read_golden
from training.attribution import Attribution, Looked, Stage
from training.boxes import SIDES
from training.images import read_whole
from training.pictures import (
    BACKGROUND,
    PAPER,
    QUIET,
    TRUTH,
    Picture,
    Rectangle,
    colour_bar,
    coloured,
    crop,
    heated,
    outline,
    over_pixels,
    stretched,
    words,
    wrapped,
    write,
)
from training.rows import read_rows
from training.scans import KINDS, read_scan
from training.visible import VISIBLE_FILE

PANEL_PX = (480, 960)  # at most so wide and so high
LEAST_WIDTH_PX = 400  # of a panel with its words, which are whole there
LEAST_CELL_PX = 9  # what speaks for a label is drawn at least so large, to be seen on a small picture of a screen
LEAST_FULL = 0.5  # of what the strongest cell of a golden patch adds: an image of noise alone has no full colour
CLOSE_PX = 192  # of the frame, in a close-up
GAP_PX = 8

Truth = dict[str, list[tuple[str, Rectangle]]]  # boxes of each image, by the stem of its name


def explain(
    bundle: Path, images: Sequence[Path], out: Path, *, labels: Sequence[str] = (), data: Path | None = None
) -> list[Path]:
    """Draw where the scores of images come from.

    Args:
        bundle: its folder.
        images: files at least as large as a patch; a larger one is covered by windows, which are reasoned together.
        out: folder for the pictures, one JPEG for each image, under its name.
        labels: to draw; empty: those that are present, by score or by `data`, or else the one nearest its threshold.
        data: folder in the data form, or cut, with the true boxes of these images.

    Returns:
        The pictures' files.

    Raises:
        BundleError: the bundle is not whole.
        ValueError: it cannot be taken apart, lacks a label, or an image cannot be read, is smaller than a patch, is
            there twice by name, or is none of `data`.
    """
    attribution = Attribution(bundle)
    known = attribution.manifest.label_names
    stranger = next((label for label in labels if label not in known), None)
    if stranger is not None:
        raise ValueError(f"the bundle has no label {stranger!r}; it has {', '.join(known)}")
    if len({image.stem for image in images}) < len(images):
        raise ValueError("two images have the same name, and so would their pictures")
    pictures = {image: out / f"{image.stem}.jpg" for image in images}
    if taken := {image.resolve() for image in images} & {picture.resolve() for picture in pictures.values()}:
        raise ValueError(f"{min(taken)} would be replaced by its own picture: name another folder for those")
    truth = read_truth(data) if data is not None else {}
    if data is not None:
        _refuse_strangers(images, data, truth)
    least = _least_full(bundle, attribution)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for image in track(images, "explain"):
        frame = read_scan(image) if image.suffix.lower() in KINDS else read_whole(image)
        if min(frame.shape) < (side := attribution.manifest.patch_px):
            size = f"{frame.shape[1]} x {frame.shape[0]} px"
            raise ValueError(f"{image} is of {size}, smaller than a patch of the bundle, {side}")
        boxes = truth.get(image.stem, [])
        picture = draw(attribution, frame, boxes, name=image.stem, labels=labels, least=least)
        written.append(pictures[image])
        write(written[-1], picture)
    return written


def _refuse_strangers(images: Sequence[Path], data: Path, truth: Truth) -> None:
    """Refuse images that the folder does not have, which would be drawn as if it knew that they are clean.

    A table without its images is taken on trust: it does not tell which ones are clean.
    """
    folder = data / ("screens" if (data / "boxes.csv").is_file() else "images")
    known = {file.stem for file in folder.glob("*")}
    stranger = next((image for image in images if image.stem not in known | truth.keys()), None)
    if known and stranger is not None:
        raise ValueError(f"{data} does not know {stranger}: {folder} has no image of that name")


def strongest(stages: Mapping[str, Stage]) -> dict[str, float]:
    """By stage, the most that any cell adds to the score of any label, or takes from it."""
    return {name: float(np.abs(stage.map).max()) for name, stage in stages.items()}


def _least_full(bundle: Path, attribution: Attribution) -> dict[str, float]:
    """By stage, the least that full colour stands for.

    Half of what the strongest cell adds to the score of a label that a golden patch has, of the label to which it adds
    least: the score of a scratch is made of many cells, that of a pinhole of one.
    """
    golden = read_golden(bundle, manifest=attribution.manifest)
    stages = attribution.stages(attribution.explain(golden.pixels))
    threshold = np.array([limits.threshold for limits in attribution.manifest.labels.values()])
    found = {}
    for name, stage in stages.items():
        most = np.abs(stage.map).max(axis=(2, 3))
        of_labels = [
            float(adds[present].max())
            for adds, present in zip(most.T, (golden.probability >= threshold).T, strict=True)
            if present.any()
        ]
        found[name] = LEAST_FULL * min(of_labels, default=float(most.max()))
    return found


def looks(manifest: Manifest) -> str:
    """Which of a bundle's looks are in the scores that are drawn, in words: they may decide what is served."""
    glance, second, turned = manifest.glance, manifest.second_look, manifest.turned_look
    told = ["The bundle has no glance: in service, too, this network sees every window."]
    if glance != NO_GLANCE:
        told = [
            "Scores are without the bundle's glance: in service on a CPU, windows of a doubt below "
            f"{glance.doubt_min:.4g} are cleared before this network sees them."
        ]
    if second.ratio_max == 0:
        told.append("It asks for no second look.")
    else:
        told.append("With its second look, as in service: windows are added where a defect may lie on a border.")
    if turned.ratio_max == 0:
        told.append("It asks for no turned look.")
    else:
        told.append(
            f"With its turned look, as in service: of windows that score {turned.score_min:g} to "
            f"{turned.score_max:g}, up to {turned.ratio_max:.0%} count by their mean over eight positions."
        )
    told.append("In half precision a service's scores differ a little from these in float32.")
    return " ".join(told)


def read_truth(data: Path) -> Truth:
    """The boxes of a folder's images: of screens in the data form, of patches in a cut folder.

    Raises:
        ValueError: the folder has neither boxes.csv nor defects.csv, or the table is malformed; the message names it.
    """
    tables = [(data / "boxes.csv", "screen"), (data / VISIBLE_FILE, "img_names")]
    table, column = next(((table, column) for table, column in tables if table.is_file()), (None, ""))
    if table is None:
        raise ValueError(f"{data} has neither boxes.csv nor {VISIBLE_FILE}")
    found: Truth = {}
    try:
        for row in read_rows(table):
            left, top, right, bottom = (int(row[side]) for side in SIDES)
            # a patch's name has its suffix; a screen's has none, and may have dots
            name = row[column] if column == "screen" else Path(row[column]).stem
            found.setdefault(name, []).append((row["label"], (left, top, right, bottom)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{table}: {error!r}") from error
    return found


def draw(
    attribution: Attribution,
    frame: NDArray[np.uint8],
    truth: Sequence[tuple[str, Rectangle]],
    *,
    name: str,
    labels: Sequence[str] = (),
    least: Mapping[str, float],
) -> Picture:
    """The picture of one frame (H, W), see `explain`; what has full colour is no less than `least` of the stage."""
    manifest = attribution.manifest
    looked = attribution.look(frame)
    found = looked.explanation
    stages, units = attribution.stages(found), attribution.units()
    scales = {of: Scale(max(most, least[of]) or 1.0, units[of]) for of, most in strongest(stages).items()}
    threshold = {label: limits.threshold for label, limits in manifest.labels.items()}
    highest = dict(zip(manifest.label_names, found.probability.max(axis=0).tolist(), strict=True))
    there = {label for label in highest if highest[label] >= threshold[label]} | highest.keys() & {t for t, _ in truth}
    nearest = max(highest, key=lambda label: highest[label] / threshold[label])
    chosen = [label for label in highest if label in (labels or there or {nearest})]
    view = View(frame, looked.windows, manifest.patch_px)
    rows = []
    for label in chosen:
        column = manifest.label_names.index(label)
        boxes = [box for of, box in truth if of == label]
        said = "present" if highest[label] >= threshold[label] else "not present"
        head = f"{label}: {said} ({highest[label]:.3f}, threshold {threshold[label]:.2f})"
        head += f", true boxes: {len(boxes)}" if truth else ""
        close, regions = _close_ups(view, looked, column, boxes, threshold[label])
        maps = _maps(view, stages, scales, found.probability[:, column], column, boxes)
        panels = [_frame(view, boxes, regions), *maps, close]
        width = sum(panel.shape[1] for panel in panels) + GAP_PX * (len(panels) - 1)
        rows.append(np.vstack([words([(head, PAPER)], width, size=20), _beside(panels)]))
    counted = f"windows: {len(looked.windows)}, of them added by the second look: {looked.added}, "
    counted += f"looked at turned: {len(looked.turned)}"
    facts = [name, f"{frame.shape[1]} x {frame.shape[0]} px", f"{manifest.name} {manifest.version}", counted]
    legend = _legend(view.patch_px // found.stage2.map.shape[-1], two=not attribution.one_stage)
    legend += " Green: true boxes." if truth else ""
    width = rows[0].shape[1]
    paragraphs = ("; ".join(facts), PAPER), (legend, QUIET), (looks(manifest), QUIET)
    told = [(line, colour) for text, colour in paragraphs for line in wrapped(text, width)]
    return np.vstack([words(told, width), *rows])


def _legend(side_px: int, *, two: bool) -> str:
    """What the colours of cells of so many pixels say, in words; `two` stages have a scale each."""
    told = (
        f"Colour: what a cell ({side_px} x {side_px} px) adds to the score above its map; orange to red speaks for the "
        "label, blue against it. Under each map is its scale, one for all labels and windows of this image"
    )
    told += ", another for each stage, whose scores differ in kind. " if two else ". "
    return told + "A logit of 0 is a probability of 0.5, one of +2 is 0.88, one of +4 is 0.98."


class Scale(NamedTuple):
    """What has full colour in the maps of one stage, and its unit."""

    most: float
    unit: str


@dataclass(frozen=True, slots=True)
class View:
    """A frame (H, W), its windows, and how small it is drawn."""

    frame: NDArray[np.uint8]
    windows: Sequence[Window]
    patch_px: int

    @property
    def zoom(self) -> float:
        """Pixels of the small picture for each of the frame."""
        height, width = self.frame.shape
        return float(min(PANEL_PX[0] / width, PANEL_PX[1] / height))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the small picture."""
        return round(self.frame.shape[1] * self.zoom), round(self.frame.shape[0] * self.zoom)

    def small(self) -> Picture:
        """The small picture, with more contrast."""
        return coloured(
            stretched(np.asarray(cv2.resize(self.frame, self.size, interpolation=cv2.INTER_AREA), np.uint8))
        )

    def placed(self, box: Rectangle) -> Rectangle:
        """A box of the frame on the small picture."""
        left, top, right, bottom = (edge * self.zoom for edge in box)
        return int(left), int(top), int(np.ceil(right)), int(np.ceil(bottom))

    def merged(self, part: NDArray[np.float64]) -> NDArray[np.float64]:
        """Maps (K, h, w) of the windows over the small picture; where windows overlap, the stronger."""
        canvas = np.zeros(self.size[::-1])
        for window, of_window in zip(self.windows, part, strict=True):
            right, bottom = window.left + self.patch_px, window.top + self.patch_px
            left, top, right, bottom = self.placed((window.left, window.top, right, bottom))
            place = canvas[top:bottom, left:right]
            here = over_pixels(of_window, place.shape)
            canvas[top:bottom, left:right] = np.where(np.abs(here) > np.abs(place), here, place)
        grow = round(LEAST_CELL_PX - self.patch_px * self.zoom / part.shape[-1])
        if grow <= 0:
            return canvas
        seen = cv2.dilate(canvas, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (grow + 1, grow + 1)))
        return np.where(seen > 0, np.where(seen > -canvas, seen, canvas), canvas)


def _maps(
    view: View,
    stages: Mapping[str, Stage],
    scales: Mapping[str, Scale],
    probability: NDArray[np.float32],
    column: int,
    boxes: Sequence[Rectangle],
) -> list[Picture]:
    """The map of each stage over the frame and its scale, under its score for the window with the highest."""
    best = int(probability.argmax())
    panels = []
    for name, stage in stages.items():
        most, unit = scales[name]
        score = (
            f"{unit} {stage.score[best, column]:+z.2f}" if name == "stage 1" else f"probability {probability[best]:.3f}"
        )
        panel = heated(view.small(), view.merged(stage.map[:, column]) / most)
        for box in boxes:
            outline(panel, view.placed(box), TRUTH)
        titled = _titled(panel, f"{name}: {score}", _sum(stage, best, column))
        panels.append(np.vstack([titled, colour_bar(titled.shape[1], most, f"{unit} a cell")]))
    return panels


def _frame(view: View, boxes: Sequence[Rectangle], regions: Sequence[Rectangle]) -> Picture:
    panel = view.small()
    for box in boxes:
        outline(panel, view.placed(box), TRUTH)
    for region in regions:
        outline(panel, view.placed(region), PAPER)
    return _titled(panel, "the frame", "white: what is shown close, on the right")


def _close_ups(
    view: View, looked: Looked, column: int, boxes: Sequence[Rectangle], threshold: float
) -> tuple[Picture, list[Rectangle]]:
    """The window with the highest score close up, and others that have the label where there is room; their places."""
    found = looked.explanation
    score = found.probability[:, column]
    room = max(1, view.size[1] // view.size[0])
    surest = np.argsort(-score, kind="stable")[:room].tolist()
    pieces, regions = [], []
    for k in surest[:1] + [k for k in surest[1:] if score[k] >= threshold]:
        piece, region = _close_up(view, *_strongest(view, k, found.stage2.map[k, column]), boxes)
        title = f"{_window(looked, k)}: {score[k]:.3f}"
        pieces.append(_titled(piece, title, f"its strongest cell, {CLOSE_PX} px, more contrast"))
        regions.append(region)
    return np.vstack(pieces), regions


def _window(looked: Looked, k: int) -> str:
    """Which window it is, and what was done to it besides."""
    window = looked.windows[k]
    named = "added window" if k >= len(looked.windows) - looked.added else "window"
    return f"{named} {window.row}, {window.column}" + (", looked at turned" if k in looked.turned else "")


def _titled(panel: Picture, title: str, facts: str) -> Picture:
    spare = max(0, LEAST_WIDTH_PX - panel.shape[1])
    wide = np.pad(panel, ((0, 0), (0, spare), (0, 0)), constant_values=BACKGROUND[0])
    return np.vstack([words([(title, PAPER), (facts, QUIET)], wide.shape[1]), wide])


def _sum(stage: Stage, patch: int, column: int) -> str:
    """The score of one patch as the sum that it is."""
    parts = [("cells", stage.map[patch, column].sum()), ("constant", stage.constant[patch, column])]
    parts += [("graph", stage.graph[patch, column])] if stage.graph.any() else []
    named = ", ".join(f"{name} {value:+z.2f}" for name, value in parts)
    return f"{stage.score[patch, column]:+z.2f} = {named}"


def _strongest(view: View, k: int, part: NDArray[np.float64]) -> tuple[int, int]:
    """Row and column in the frame of the middle of the strongest cell of the map (h, w) of a window."""
    row, column = np.unravel_index(int(np.argmax(part)), part.shape)
    down, across = view.patch_px / part.shape[0], view.patch_px / part.shape[1]
    return view.windows[k].top + int((row + 0.5) * down), view.windows[k].left + int((column + 0.5) * across)


def _close_up(view: View, row: int, column: int, boxes: Sequence[Rectangle]) -> tuple[Picture, Rectangle]:
    side = min(CLOSE_PX, *view.frame.shape)
    piece, top, left = crop(view.frame, row, column, side)
    zoom = view.size[0] / side
    large = coloured(np.asarray(cv2.resize(stretched(piece), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)))
    for box in boxes:
        x, y, end_x, end_y = (round((edge - start) * zoom) for edge, start in zip(box, (left, top) * 2, strict=True))
        outline(large, (x, y, end_x, end_y), TRUTH)
    return large, (left, top, left + side, top + side)


def _beside(panels: Sequence[Picture]) -> Picture:
    """Panels side by side, the shorter ones filled up."""
    height = max(len(panel) for panel in panels)
    gap = np.full((height, GAP_PX, 3), BACKGROUND, np.uint8)
    filled = [np.pad(p, ((0, height - len(p)), (0, 0), (0, 0)), constant_values=BACKGROUND[0]) for p in panels]
    parts = [part for panel in filled for part in (panel, gap)]
    return np.hstack(parts[:-1])
