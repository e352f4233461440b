"""Cells and studies as if they had been trained."""

from pathlib import Path

from training.studies import study
from training.studies.cells import FIGURES, GROUPS, IMAGE, Cell
from training.studies.tables import Row, StudyTable


def cell_of(
    row: str, seed: int, f: float, *, validated: float = 0.5, by_image: float = 0.0, steps_only: bool = False
) -> Cell:
    values = dict.fromkeys((*FIGURES, "fitted_f_measure"), f) | {"validation_f_measure": validated}
    figures = dict.fromkeys(GROUPS, values) | {IMAGE: dict.fromkeys(values, by_image)}
    return Cell(
        row=row,
        division="d",
        seed=seed,
        steps_only=steps_only,
        seconds=60,
        revision=None,
        figures={} if steps_only else figures,
        per_label={"dot": f},
    )


def study_of(rows: tuple[Row, ...], cells: list[Cell]) -> study.Study:
    return study.Study(
        table=StudyTable(title="Three", rows=rows),
        preset=study.PRESETS["cpu"],
        data=Path("d"),
        out=Path("study"),
        folds_there=1,
        seeds=(0, 1, 2),
        folds=(0,),
        patch_px=None,
        rows=(),
        settings=("seed=1",),
        finished="",
        cells=cells,
    )
