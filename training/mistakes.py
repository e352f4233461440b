"""The patches that were told most wrongly, as a contact sheet: `worst`."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from engine import Backend, load, warm_cells
from training.datasets import PatchSet
from training.evaluation import bundle_probability, fitting_patches
from training.pictures import (
    EDGE_PX,
    FOR,
    PAPER,
    QUIET,
    TRUTH,
    Picture,
    coloured,
    crop,
    outline_cells,
    stretched,
    tiles,
    words,
    write,
)

CROP_PX = 256
CAPTION_PX = 14  # of its words
COLUMNS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistakes:
    """Of one label: patches of a set whose defect was missed, and patches without it where it was seen.

    Attributes:
        missed: their indices, the lowest score first.
        false_alarms: their indices, the highest score first.
    """

    missed: list[int]
    false_alarms: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One patch on the sheet.

    Attributes:
        label: that was told wrongly.
        mistake: "missed" or "false alarm".
        patch: name of its image.
        score: of the label, in [0, 1]; where a glance cleared the patch, that of a clean window.
        doubt: of the glance that cleared the patch before the network saw it; None where none did.
    """

    label: str
    mistake: str
    patch: str
    score: float
    doubt: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What `worst` found: all the mistakes of each label, and the tiles that were drawn, in the order of the sheet."""

    mistakes: dict[str, Mistakes]
    tiles: list[Tile]


def mistakes(probability: NDArray[np.float32], target: NDArray[np.int8], thresholds: Sequence[float]) -> list[Mistakes]:
    """The mistakes of each label, the worst first; of equal scores the first patch first.

    Args:
        probability: (N, L) in [0, 1].
        target: (N, L); 1, 0 or -1, which is no mistake whatever the score.
        thresholds: L.
    """
    order = np.argsort(probability, axis=0, kind="stable")
    backwards = np.argsort(-probability, axis=0, kind="stable")
    predicted = probability >= np.asarray(thresholds, np.float64)
    return [
        Mistakes(
            missed=[int(k) for k in order[:, label] if target[k, label] == 1 and not predicted[k, label]],
            false_alarms=[int(k) for k in backwards[:, label] if target[k, label] == 0 and predicted[k, label]],
        )
        for label in range(target.shape[1])
    ]


def worst(bundle: Path, folders: Sequence[Path], out: Path, *, part: str | None, count: int) -> Sheet:
    """Draw the worst mistakes of each label into one picture.

    Scores are as they are served on this machine, a glance and all; maps are the whole network's, of what it would have
    seen.

    Args:
        bundle: its folder.
        folders: cut folders with the bundle's labels and patch size.
        out: the picture, in the format that its name ends with.
        part: train, validation or test; None takes all.
        count: patches of a label at most, half of them missed ones and half false alarms, unless there are fewer.

    Raises:
        ValueError: the bundle does not fit the data, or the picture's name ends with no format.
    """
    with closing(load(bundle)) as backend:
        manifest = backend.manifest
        patches = fitting_patches(manifest, folders, part=part)
        probability = bundle_probability(backend, patches, group="screen", look=manifest.turned_look)
        thresholds = [limits.threshold for limits in manifest.labels.values()]
        found = mistakes(probability, patches.labels, thresholds)
        title = f"{manifest.name} {manifest.version}   green: where the defect is; "
        title += "orange: where the whole network's map of the label is warm"
        width = COLUMNS * (CROP_PX + 2)
        strips = [words([(title, QUIET)], width)]
        drawn: list[Tile] = []
        for column, (label, threshold, wrong) in enumerate(zip(manifest.labels, thresholds, found, strict=True)):
            missed, false_alarms = shown(wrong.missed, wrong.false_alarms, count)
            with_it, without = ((patches.labels[:, column] == truth).sum() for truth in (1, 0))
            head = f"{label}, threshold {threshold:.2f}: missed {len(wrong.missed)} of {with_it}, "
            head += f"false alarms {len(wrong.false_alarms)} of {without}"
            strips.append(words([(head, PAPER)], width, size=20))
            for mistake, said, chosen in (
                ("missed", "missed, the lowest score first", missed),
                ("false alarm", "false alarms, the highest score first", false_alarms),
            ):
                if chosen:
                    now = [_tile(backend, patches, k, column, mistake, float(probability[k, column])) for k in chosen]
                    strips += [words([(said, PAPER)], width), tiles([picture for _, picture in now], COLUMNS)]
                    drawn += [tile for tile, _ in now]
    write(out, np.vstack(strips))
    return Sheet(mistakes=dict(zip(manifest.labels, found, strict=True)), tiles=drawn)


def shown(missed: list[int], false_alarms: list[int], count: int) -> tuple[list[int], list[int]]:
    """The first of both kinds, `count` together: half of each, and the rest of the other where there are fewer."""
    few = min(len(false_alarms), count // 2)
    first = missed[: count - few]
    return first, false_alarms[: count - len(first)]


def fitted(name: str, width: int) -> str:
    """A name that so many pixels of a caption show whole: of a longer one both ends, as patches differ in the last."""
    font = ImageFont.load_default(CAPTION_PX)
    told, kept = name, len(name)
    while font.getlength(told) > width and kept > 1:
        kept -= 1
        told = f"{name[: kept // 2]}...{name[kept // 2 - kept :]}"
    return told


def _tile(
    backend: Backend, patches: PatchSet, index: int, column: int, mistake: str, score: float
) -> tuple[Tile, Picture]:
    """One patch, and its picture by the map of the whole network, which is asked again only where a glance cleared."""
    pixels = patches.pixels([index])
    seen = backend.features(pixels)
    cleared = backend.manifest.glance.clears(seen.doubt)[0]
    tile = Tile(
        label=patches.label_names[column],
        mistake=mistake,
        patch=patches.names[index],
        score=score,
        doubt=float(seen.doubt[0]) if cleared else None,
    )
    whole = backend.features(pixels, glance=False) if cleared else seen
    return tile, _drawn(patches, index, column, whole.activation[0, column], tile)


def _drawn(patches: PatchSet, index: int, column: int, activation: NDArray[np.float32], tile: Tile) -> Picture:
    """One patch at the place of its defect, or else where the label's map is warmest, under its name and facts."""
    patch, side = patches.patch(index), patches.patch_px
    defect = patches.cells(index)[column] == 1
    seen = warm_cells(activation)
    cells = defect if defect.any() else activation == activation.max()
    rows, columns = (np.flatnonzero(cells.any(axis=axis)) for axis in (1, 0))
    cell = side / len(cells)
    extent = cell * (max(np.ptp(rows), np.ptp(columns)) + 3)  # with a cell on either side
    y, x = (int((line.min() + line.max() + 1) / 2 * cell) for line in (rows, columns))
    piece, top, left = crop(patch, y, x, min(side, max(CROP_PX, round(extent))))
    picture = coloured(_resized(stretched(piece), cv2.INTER_AREA))
    for region, colour in ((seen, FOR), (defect, TRUTH)):
        whole = cv2.resize(region.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
        part = np.asarray(whole[top : top + len(piece), left : left + len(piece)], np.uint8)
        outline_cells(picture, _resized(part, cv2.INTER_NEAREST) > 0, colour)
    name = fitted(tile.patch.removesuffix(".png"), CROP_PX - 2 * EDGE_PX)
    cleared = "" if tile.doubt is None else f"cleared by the glance, doubt {tile.doubt:.3g}"
    facts = [(name, PAPER), (f"{tile.score:.3f}   {len(piece)} px", QUIET), (cleared, FOR)]
    return np.vstack([words(facts, CROP_PX, size=CAPTION_PX), picture])


def _resized(picture: NDArray[np.uint8], how: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(picture, (CROP_PX, CROP_PX), interpolation=how), np.uint8)
