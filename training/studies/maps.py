"""Where the maps of a cell's network point: the figures of `training.localisation` on the test part, kept beside it."""

import dataclasses
import hashlib
import json
import statistics
from pathlib import Path

from training import whole
from training.bare import attribution_of
from training.folder import RunFolder
from training.localisation import localise
from training.studies.cells import Cell, Division, NotTrainedError
from training.studies.tables import POINTS, STAGES
from training.visible import VISIBLE_FILE

ONE_STAGE, FLAT = "one stage", "flat"
VERSION = 2  # one more wherever `training.localisation` measures otherwise: what was measured before is measured anew


def with_maps(cell: Cell, run: Path, division: Division, out: Path, *, finished: bool) -> Cell:
    """The cell with the means over its labels, by stage; of one stage, which is the last, and of a flat map as well.

    Args:
        cell: finished.
        run: its run.
        division: its data.
        out: the study's folder.
        finished: nothing is to be trained.

    Raises:
        NotTrainedError: nothing is to be trained, and its maps were not measured before its run was gone.
        ValueError: the run is gone, or its network cannot be taken apart.
        OSError: the data tells no boxes.
    """
    boxes = hashlib.sha256((division.folder / VISIBLE_FILE).read_bytes()).hexdigest()[:8]  # the run's name tells none
    file = out / "maps" / f"{run.name}-{boxes}-{VERSION}.json"
    if not file.is_file():
        if not RunFolder(run).finished:
            if finished:
                raise NotTrainedError(f"{run} is gone, whose maps are asked for")
            its_cell = out / "cells" / f"{run.name}.json"
            raise ValueError(f"{run} is gone, whose maps are asked for: remove {its_cell} to train it")
        found = localise(attribution_of(run, data=division.folder), [division.folder], part="test")
        figures = {
            STAGES[-1] if stage == ONE_STAGE else stage: {
                POINTS[0]: one.energy_mean.value,
                POINTS[1]: one.pointing_mean.value,
            }
            for stage, one in found.items()
        }
        flat = zip(*next(iter(found.values())).flat.values(), strict=True)
        figures[FLAT] = dict(zip(POINTS, map(statistics.fmean, flat), strict=True))
        file.parent.mkdir(parents=True, exist_ok=True)
        whole.replace(file, lambda draft: draft.write_text(json.dumps(figures, indent=2) + "\n"))
    return dataclasses.replace(cell, figures={**cell.figures, **json.loads(file.read_text())})
