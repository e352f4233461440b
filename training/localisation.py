"""Whether activation maps point at the defect: the maps of both stages against the boxes of a cut folder.

Two figures, over the patches that have a label: the share of the map's positive part that lies in the label's boxes
(Wang et al. 2020, the energy-based pointing game), and whether its strongest cell lies within 32 px of one (Zhang et
al. 2018, the pointing game, whose tolerance is 15). For the share a cell counts as in a box from which it is less than
half a cell away: a pinhole is a hundredth of a cell, and what a cell sees has its middle anywhere between the
cell's own and its upper left corner. That is where padded convolutions of stride 2 put it, from which a loss on maps
brings it back.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Column, Table

from training.attribution import Attribution
from training.evaluation import fitting_patches
from training.intervals import TOO_FEW
from training.measures import Mean, Share, bootstrap_means, wilson
from training.visible import Visible

TOLERANCE_PX = 32.0  # of the strongest cell's centre to a box: one cell of most trunks' maps, two of `compact`'s


class Hit(NamedTuple):
    """Of one map: the share of its positive part in the boxes, and whether its strongest cell lies near one (1 or 0).

    Of a map that is the same everywhere: what both would be on average.
    """

    energy: float
    pointed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Localisation:
    """How the maps of one stage point.

    Attributes:
        energy: by label, the mean over its patches of the share of the map's positive part in the boxes; its interval
            by bootstrap over screens, without width where they are too few to tell.
        energy_mean: of the labels' means.
        pointing: by label, the patches whose strongest cell lies within `TOLERANCE_PX` of a box, with Wilson's
            interval.
        pointing_mean: of the labels' shares, its interval by bootstrap over screens; where that has no width, from the
            means of the labels' ends.
        flat: by label, what a map would reach that is the same everywhere.
    """

    energy: dict[str, Mean]
    energy_mean: Mean
    pointing: dict[str, Share]
    pointing_mean: Mean
    flat: dict[str, Hit]


def inside(boxes: Sequence[Visible], shape: tuple[int, ...], patch_px: int) -> NDArray[np.bool_]:
    """The cells (h, w) of a map of a patch that are less than half a cell away from any of the boxes."""
    cells = np.zeros(shape, np.bool_)
    down, across = shape[0] / patch_px, shape[1] / patch_px
    for box in boxes:
        rows = slice(max(0, floor(box.top * down - 0.5)), ceil(box.bottom * down + 0.5))
        columns = slice(max(0, floor(box.left * across - 0.5)), ceil(box.right * across + 0.5))
        cells[rows, columns] = True
    return cells


def energy(part: NDArray[np.float64], boxes: Sequence[Visible], patch_px: int) -> float:
    """Share of the positive part of a map (h, w) that lies `inside` boxes; 0 where nothing is positive."""
    positive = np.maximum(part, 0)
    total = float(positive.sum())
    return float(positive[inside(boxes, part.shape, patch_px)].sum()) / total if total else 0.0


def near(boxes: Sequence[Visible], shape: tuple[int, ...], patch_px: int) -> NDArray[np.bool_]:
    """The cells (h, w) of a map whose centre is within the tolerance of one of the boxes, on either axis."""
    y = (np.arange(shape[0])[:, None] + 0.5) * patch_px / shape[0]
    x = (np.arange(shape[1])[None, :] + 0.5) * patch_px / shape[1]
    cells = np.zeros(shape, np.bool_)
    for box in boxes:
        rows = (y >= box.top - TOLERANCE_PX) & (y <= box.bottom + TOLERANCE_PX)
        cells |= rows & (x >= box.left - TOLERANCE_PX) & (x <= box.right + TOLERANCE_PX)
    return cells


def localise(attribution: Attribution, folders: Sequence[Path], *, part: str | None) -> dict[str, Localisation]:
    """The maps of a network's stages against the boxes: `stage 1` and `stage 2`, or `one stage`.

    Args:
        attribution: of a bundle, or of a run.
        folders: cut folders with the network's labels and patch size, and with defects.csv.
        part: train, validation or test; None takes all.

    Raises:
        ValueError: the network does not fit the data, a folder has no defects.csv, or no patch has a label.
    """
    patches = fitting_patches(attribution.manifest, folders, part=part)
    visible = patches.visible()
    rows = np.flatnonzero((patches.labels == 1).any(axis=1)).tolist()
    if not rows:
        raise ValueError(f"no patch of the part {part!r} has a label")
    pairs: list[_Pair] = []
    for row in track(rows, f"localise {attribution.manifest.name}"):
        found = attribution.explain(patches.patch(row)[None, None])
        stages = attribution.stages(found)
        for column in np.flatnonzero(patches.labels[row] == 1).tolist():
            label, side = patches.label_names[column], patches.patch_px
            boxes = [one for one in visible[row] if one.label == label]
            hits = {name: _hit(stage.map[0, column], boxes, side) for name, stage in stages.items()}
            flat = _flat(boxes, found.stage2.map.shape[2:], side)
            pairs.append(_Pair(label, int(patches.screens[row]), hits, flat))
    return {stage: _summarise(pairs, stage) for stage in stages}


def localisation_tables(found: Mapping[str, Mapping[str, Localisation]]) -> Iterator[Table]:
    """How the maps of bundles and runs point, by stage, beside a map that is the same everywhere."""
    some = next(iter(next(iter(found.values())).values()))
    for figure, of_flat, title in (
        ("energy", "energy", "share of the positive map in the boxes, half a cell around them included"),
        ("pointing", "pointed", f"patches whose strongest cell is within {TOLERANCE_PX:.0f} px of a box"),
    ):
        table = Table("", *(Column(label, no_wrap=True) for label in [*some.energy, "mean"]), title=title)
        for bundle, stages in found.items():
            for stage, one in stages.items():
                values = [*getattr(one, figure).values(), getattr(one, f"{figure}_mean")]
                table.add_row(f"{Path(bundle).name}, {stage}", *map(_value, values))
        by_grid: dict[tuple[float, ...], list[str]] = {}  # of larger cells a flat map hits more
        for bundle, stages in found.items():
            flat = tuple(getattr(hit, of_flat) for hit in next(iter(stages.values())).flat.values())
            by_grid.setdefault(flat, []).append(Path(bundle).name)
        for flat, names in by_grid.items():
            whose = "a flat map" + (f", cells of {', '.join(names)}" if len(by_grid) > 1 else "")
            table.add_row(whose, *(f"{v:.3f}" for v in [*flat, sum(flat) / len(flat)]), style="dim")
        table.add_row("patches", *(str(v.total) for v in [*some.energy.values(), some.energy_mean]), style="dim")
        yield table


def _value(found: Mean | Share) -> str:
    value = found.value if isinstance(found, Mean) else found.ratio
    span = TOO_FEW if found.low is None else f"{found.low:.2f}-{found.high:.2f}"
    return f"{value:.3f}\n[dim]{span}[/]"


class _Pair(NamedTuple):
    """One label in one patch of a screen: what the map of each stage hits, and a flat one."""

    label: str
    screen: int
    hits: dict[str, Hit]
    flat: Hit


def _hit(part: NDArray[np.float64], boxes: Sequence[Visible], patch_px: int) -> Hit:
    strongest = np.unravel_index(int(np.argmax(part)), part.shape)  # the first of equals
    return Hit(energy(part, boxes, patch_px), float(near(boxes, part.shape, patch_px)[strongest]))


def _flat(boxes: Sequence[Visible], shape: tuple[int, ...], patch_px: int) -> Hit:
    return Hit(float(inside(boxes, shape, patch_px).mean()), float(near(boxes, shape, patch_px).mean()))


def _summarise(pairs: Sequence[_Pair], stage: str) -> Localisation:
    by_label = {label: [pair for pair in pairs if pair.label == label] for label in sorted({p.label for p in pairs})}
    screens = [np.array([pair.screen for pair in of_label]) for of_label in by_label.values()]
    energies = [np.array([pair.hits[stage].energy for pair in of_label]) for of_label in by_label.values()]
    pointings = [np.array([pair.hits[stage].pointed for pair in of_label]) for of_label in by_label.values()]
    energy_of, energy_mean = bootstrap_means(energies, screens)
    pointing = {label: wilson(int(found.sum()), len(found)) for label, found in zip(by_label, pointings, strict=True)}
    _, pointing_mean = bootstrap_means(pointings, screens)
    if pointing_mean.low is None:  # as where all hit
        low, high = (float(np.mean(ends)) for ends in zip(*(one[-2:] for one in pointing.values()), strict=True))
        pointing_mean = pointing_mean._replace(low=low, high=high)
    flat = [np.mean([pair.flat for pair in of_label], axis=0) for of_label in by_label.values()]
    return Localisation(
        energy=dict(zip(by_label, energy_of, strict=True)),
        energy_mean=energy_mean,
        pointing=pointing,
        pointing_mean=pointing_mean,
        flat=dict(zip(by_label, (Hit(*mean.tolist()) for mean in flat), strict=True)),
    )
