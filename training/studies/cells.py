"""One cell of a table: a row trained with one seed on one division of the data, and measured on its test part.

A finished cell is a JSON file named by all that decides its figures, so that tables share cells and a study that was
killed goes on; a cell that was killed goes on after its last epoch.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from numpy.typing import NDArray

from training import devices, whole
from training.calibration import best_threshold
from training.config import PHASES, Config, read_config
from training.datasets import PatchSet
from training.evaluation import Report, by_image, report
from training.fit import fit
from training.folder import RunFolder, content_id, data_id, load_run
from training.inference import reasoned, see, to_probability
from training.record import revision_of
from training.rows import read_rows
from training.studies.tables import Row

# since 2026-11-29 an edge of the label graph that a step makes negative may come back; networks of the boards had none
VERSION = 2  # of what trains and measures a cell: one more makes all cells of before others
OF_METHOD = {"kssnet": 2}  # the same of one method alone: KSSNet's bias stands outside its graph since 2026-11-28
GROUPS = ("screen", "batch:32", "single")
IMAGE = "image"  # of whole images, by the highest score of their windows
FIGURES = ("accuracy", "precision", "recall", "f_measure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """One division of the data: a cut folder, and what to call it."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a trained row gives on the test part; F at 0.5 as in the paper, and at thresholds fitted on validation.

    `figures` holds for each group of patches that reason together, and for whole images, accuracy, precision, recall,
    f_measure at 0.5, fitted_f_measure and validation_f_measure, by which a row may be chosen: at 0.5 on the validation
    part, which also chose the epoch; `per_label` the F of each label at 0.5, by screen. A cell of a few steps has none.
    `revision` is that of the code that trained it, where that is known, `settings` what it was trained with beside the
    preset, which cells of before 2026-11-29 do not tell. `with_maps` adds to `figures` what each stage's maps hit.
    """

    row: str
    division: str
    seed: int
    steps_only: bool
    seconds: float
    revision: str | None
    figures: dict[str, dict[str, float]]
    per_label: dict[str, float]
    settings: list[str] = field(default_factory=list)


class NotTrainedError(ValueError):
    """A cell is not there, and is not to be trained."""


def run_cell(
    row: Row,
    division: Division,
    seed: int,
    *,
    preset: Path,
    settings: Sequence[str],
    out: Path,
    base: Path | None,
    finished: bool = False,
) -> tuple[Cell, Path]:
    """Train a row, or read what it gave.

    Args:
        row: of a table.
        division: the data.
        seed: of the training.
        preset: TOML file of the preset.
        settings: as of `fit --set`, for every row; its own come after them.
        out: the study's folder.
        base: run of the two-stage network of the same seed and data, for rows that begin with its phase 1.
        finished: nothing is trained.

    Returns:
        The cell and the folder of its run.

    Raises:
        BeingTrainedError: another process is at it.
        NotTrainedError: nothing is to be trained, and it is not there.
        DivergedError: its loss is no longer finite.
        ValueError: a setting is wrong, the data does not fit, the run is gone that this one begins with, or the cell's
            file is of another version.
    """
    config = _config(row, division, seed, preset=preset, settings=settings, base=base)
    name = _name(config, base)
    run, file = out / "runs" / name, out / "cells" / f"{name}.json"
    if (kept := _kept(file, run)) is not None:
        return dataclasses.replace(kept, row=row.title, division=division.name), run
    if finished and not file.is_file():
        raise NotTrainedError(f"{row.title!r}, {division.name}, seed {seed} is not trained yet")
    if not file.is_file():
        if base is not None and not RunFolder(base).finished:
            first = file.with_stem(base.name)
            raise ValueError(f"{base} is gone, whose phase 1 {row.title!r} begins with: remove {first} to train it")
        fit(config.model_copy(update={"run": run}))
    with devices.first_first() as here:
        if here:
            with RunFolder(run).alone():  # another process may have come here for the same cell
                if _kept(file, run) is None:
                    cell = measure(run, row, division, seed, settings=[*settings, *row.settings])
                    told = json.dumps(dataclasses.asdict(cell), indent=2) + "\n"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    whole.replace(file, lambda draft: draft.write_text(told))
                (run / "last.ckpt").unlink(missing_ok=True)
    return dataclasses.replace(_read(file), row=row.title, division=division.name), run


def _read(file: Path) -> Cell:
    """A finished cell.

    Raises:
        ValueError: the file is none, or one of a version that tells more or less.
    """
    try:
        return Cell(**json.loads(file.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is no cell of this version ({error}): remove it to train it again") from error


def _kept(file: Path, run: Path) -> Cell | None:
    """A finished cell; None also for one of a version that did not count whole images, if it can be measured again."""
    if not file.is_file():
        return None
    kept = _read(file)
    return kept if kept.steps_only or IMAGE in kept.figures or not RunFolder(run).finished else None


def _config(
    row: Row, division: Division, seed: int, *, preset: Path, settings: Sequence[str], base: Path | None
) -> Config:
    folders = f'data.folders=["{division.folder.resolve()}"]'
    start = [] if base is None else [f'start="{(base / "phase1.safetensors").resolve()}"']
    return read_config(preset, [folders, f"seed={seed}", *settings, *row.settings, *start])


def _name(config: Config, base: Path | None) -> str:
    """Of all that decides the figures; where the data and the first weights lie does not."""
    # what a later version can set, and this cell left as it always was, does not make it another one
    decides: dict[str, Any] = config.model_dump(
        mode="json",
        exclude_defaults=True,
        exclude={"run", "start", "name", "accelerator", "threads", "checkpoint_minutes"},
    )
    decides["data"].pop("workers", None)
    for name in PHASES:
        if getattr(config, name).epochs == 0:  # whatever it would have done with its data
            decides[name] = {key: decides[name][key] for key in ("epochs", "folders") if key in decides[name]}
    decides["data"]["folders"] = [data_id(config.data.folders), *map(content_id, config.data.folders)]
    decides["version"] = VERSION
    if config.network.method in OF_METHOD:
        decides["version_of_method"] = OF_METHOD[config.network.method]
    decides["start"] = None if base is None else base.name
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def measure(run: Path, row: Row, division: Division, seed: int, *, settings: Sequence[str]) -> Cell:
    """The cell of a finished run, which was trained with these settings."""
    cell = Cell(
        row=row.title,
        division=division.name,
        seed=seed,
        steps_only=row.heavy,
        seconds=round(sum(float(epoch["seconds"]) for epoch in read_rows(run / "metrics.csv")), 1),
        revision=revision_of(run),
        figures={},
        per_label={},
        settings=list(settings),
    )
    if row.heavy:  # what it has learnt in a few steps is nothing to report
        return cell
    network, config, labels = load_run(run)
    fabric = Fabric(accelerator=config.accelerator, devices=1)
    network.to(fabric.device)
    validation, test = (PatchSet([division.folder], part) for part in ("validation", "test"))
    known, seen = see(network, validation, fabric), see(network, test, fabric)
    for group in GROUPS:
        validated = to_probability(reasoned(network, known, validation, fabric, group=group))
        probability = to_probability(reasoned(network, seen, test, fabric, group=group))
        cell.figures[group], at_half = _figures(validated, validation.labels, probability, test.labels, labels=labels)
        if group == GROUPS[0]:
            cell.per_label.update({label: one.f_measure for label, one in at_half.per_label.items()})
            known_whole = by_image(validated, validation.labels, validation.by_screen())
            seen_whole = by_image(probability, test.labels, test.by_screen())
            cell.figures[IMAGE], _ = _figures(*known_whole, *seen_whole, labels=labels)
    return cell


def _figures(
    validated: NDArray[np.float32],
    validation_target: NDArray[np.int8],
    probability: NDArray[np.float32],
    target: NDArray[np.int8],
    *,
    labels: Sequence[str],
) -> tuple[dict[str, float], Report]:
    """Figures of a cell by one way of grouping, and the whole report at 0.5."""
    at = partial(report, labels=labels)
    fitted = [
        best_threshold(score[truth >= 0], truth[truth >= 0] == 1)
        for score, truth in zip(validated.T, validation_target.T, strict=True)
    ]
    half = [0.5] * len(labels)
    at_half = at(probability, target, thresholds=half)
    figures = {key: float(getattr(at_half, key)) for key in FIGURES}
    figures["fitted_f_measure"] = at(probability, target, thresholds=fitted).f_measure
    figures["validation_f_measure"] = at(validated, validation_target, thresholds=half).f_measure
    return figures, at_half
