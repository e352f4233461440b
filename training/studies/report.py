"""What a study found, as Markdown, CSV and a plot: mean and spread over its cells."""

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t

from training.localisation import TOLERANCE_PX
from training.membership import PART_OF_TRAINING_FOR_VALIDATION
from training.plots import OURS, THEIRS, can_draw
from training.rows import write_rows
from training.studies.cells import FIGURES, Cell
from training.studies.maps import FLAT
from training.studies.study import Study
from training.studies.tables import OURS_TITLE, STAGES, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    "f_measure": "F",
    "fitted_f_measure": "F, fitted thresholds",
    "energy": "energy in the boxes",
    "pointing": f"strongest cell within {TOLERANCE_PX:.0f} px of one",
}


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; of one value alone there is no deviation."""
    mean = statistics.fmean(values)
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ± {statistics.stdev(values):.3f}"


def show(study: Study, console: Console) -> None:
    """The table's figures of each row with their spread, and the lead of the chosen one, for people."""
    columns = _columns(study)
    table = Table("", *(f"{group}: {NAMES[key]}" for group, key in columns), "cells", box=box.SIMPLE)
    for row in study.table.rows:
        cells = study.of(row)
        figures = ["ran"] * len(columns) if row.heavy else [_told(cells, group, key) for group, key in columns]
        table.add_row(row.title, *figures, str(len(cells)))
    console.print(table)
    for line in (*_leads(study), *_diverged(study)):
        console.print(line, markup=False)


def markdown(study: Study, name: str) -> str:
    """The table, how it was made, and the chosen row's lead."""
    cells = [cell for cell in study.cells if not cell.steps_only] or study.cells
    lines = [
        f"## {study.table.title}",
        "",
        f"`{study.command(name)}`",
        "",
        f"Divisions of the data: {len({c.division for c in cells})}, seeds: {len({c.seed for c in cells})}; "
        f"mean ± standard deviation over all of them together{'' if study.table.of_maps else ', at 0.5'}"
        f"{f'; {study.finished}: rows may have other cells' if study.finished else ''}.",
        "",
    ]
    if len(study.table.columns) == 1:
        lines += _plain(study)
    else:
        lines += _by_group(study)
    return "\n".join([*lines, "", *_leads(study), *_diverged(study), ""])


def _plain(study: Study) -> Iterator[str]:
    yield "| | accuracy | precision | recall | F | F, fitted thresholds | cells | s a cell | paper: accuracy, F |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in study.table.rows:
        cells = study.of(row)
        paper = "-" if row.paper is None else f"{row.paper[0]:.3f}, {row.paper[1]:.3f}"
        seconds = f"{statistics.fmean(cell.seconds for cell in cells):.0f}"
        if row.heavy:
            yield f"| {row.title} | a few steps, to show that it runs | | | | | {len(cells)} | {seconds} | {paper} |"
            continue
        figures = [_told(cells, study.table.judged, key) for key in (*FIGURES, "fitted_f_measure")]
        yield f"| {row.title} | {' | '.join(figures)} | {len(cells)} | {seconds} | {paper} |"


def _by_group(study: Study) -> Iterator[str]:
    columns = [(group, key) for group, key in _columns(study) if not key.startswith("fitted")]
    what = "the last stage decides" if study.table.of_maps else "patches reasoned together"
    yield f"| {what} | {' | '.join(f'{group}: {NAMES[key]}' for group, key in columns)} | cells |"
    yield f"| --- |{' --- |' * len(columns)} --- |"
    for row in study.table.rows:
        cells = study.of(row)
        yield f"| {row.title} | {' | '.join(_told(cells, group, key) for group, key in columns)} | {len(cells)} |"
    if study.table.of_maps:
        cells = study.of(study.table.rows[0])  # it is the same for every row
        flat = [_told(cells, FLAT, key) for _, key in columns]
        yield f"| a map that is the same everywhere | {' | '.join(flat)} | {len(cells)} |"


def _diverged(study: Study) -> Iterator[str]:
    """The cells that are missing because their loss did not stay finite."""
    if study.diverged:
        yield from ("", f"Diverged, and in no figure above, {len(study.diverged)}:", "")
        yield from (f"- {told}" for told in study.diverged)


def _columns(study: Study) -> list[tuple[str, str]]:
    return [(group, key) for group in study.table.columns for key in study.table.figures]


def _told(cells: Sequence[Cell], group: str, key: str) -> str:
    """Mean and deviation of a figure; a network of one stage has none of the other."""
    if group in STAGES and group not in cells[0].figures:
        return "-"
    return spread([cell.figures[group][key] for cell in cells])


def chosen(study: Study) -> Row:
    """The two-stage network where methods are compared, else the best row by F on the validation parts.

    The test parts choose nothing: the best of many by its test figure would flatter itself.
    """
    rows = [row for row in study.table.rows if not row.heavy]
    ours = next((row for row in rows if row.title == OURS_TITLE), None)
    if ours is not None:
        return ours

    group = "screen" if study.table.of_maps else study.table.judged

    def validated(row: Row) -> float:
        return statistics.fmean(_values(study.of(row), group, "validation_f_measure").values())

    return max(rows, key=validated)


def _leads(study: Study) -> Iterator[str]:
    """By how much the chosen row is ahead of each other one, cell by cell of the same seed and data."""
    if sum(not row.heavy for row in study.table.rows) < 2:
        return
    own = chosen(study)
    how = "" if own.title == OURS_TITLE else ", chosen by F on validation"
    maps = study.table.of_maps
    figures = "by energy, and by strongest cells, of the last stage" if maps else "at 0.5, and at fitted thresholds"
    divisions = len({cell.division for cell in study.cells})
    knows = "knows that folds share their training data" if divisions > 1 else "is that of other seeds on the same data"
    yield (
        f"Ahead in points{'' if maps else ' of F'}, cell by cell, of {own.title}{how}; {figures}; ± half of the "
        f"95 % interval, which {knows}:"
    )
    yield ""
    for row in study.table.rows:
        if row.heavy or row is own:
            continue
        pairs = [[_values(study.of(one), study.table.judged, key) for one in (own, row)] for key in study.table.figures]
        if pairs[0][0].keys().isdisjoint(pairs[0][1]):
            yield f"- {row.title}: no cell of the same seed and data"
            continue
        leads = [_lead(mine, theirs, folds=study.folds_there) for mine, theirs in pairs]
        shared = {division for division, _ in pairs[0][0].keys() & pairs[0][1]}
        alone = " (of one division: the intervals are those of other seeds)" if len(shared) == 1 < divisions else ""
        yield f"- {row.title}: {'; '.join(leads)}{alone}"


def _lead(mine: "_OfCells", theirs: "_OfCells", *, folds: int) -> str:
    """The mean of the divisions' means, each over its seeds, with its margin; of one division of its seeds alone."""
    ahead = {cell: 100 * (mine[cell] - theirs[cell]) for cell in sorted(mine.keys() & theirs)}
    points = list(ahead.values())
    by_division = [statistics.fmean(ahead[cell] for cell in cells) for _, cells in groupby(ahead, key=itemgetter(0))]
    several = len(by_division) > 1
    told = f"{statistics.fmean(by_division):.1f}"
    if len(points) > 1:
        half = margin(by_division if several else points, folds=folds if several else 1)
        told = f"{told} ± {half:.1f}"
    return f"{told} (ahead in {sum(point > 0 for point in points)} of {len(points)})"


def margin(points: Sequence[float], *, folds: int) -> float:
    """Half of the 95 % interval of a mean over folds, or over seeds, by the corrected resampled t-test.

    The training parts of k folds overlap, so that their figures are not independent: the variance of the mean is taken
    as (1/n + t) times that of the points, t the screens of a test part for each one that is learnt from (Nadeau and
    Bengio, "Inference for the generalization error", Machine Learning 52, 2003, Eq. 8). Seeds of one fold share its
    data: they count as one point, their mean. Of one division alone it tells what other seeds would give, and nothing
    of other data.

    Args:
        points: n >= 2, one for each fold; of one division, one for each seed.
        folds: k that the data is divided into, of which the points may be some; 1 for seeds.
    """
    count = len(points)
    learnt = 1 - PART_OF_TRAINING_FOR_VALIDATION
    shared = 1 / ((folds - 1) * learnt) if folds > 1 else 0.0
    return float(student_t.ppf(0.975, count - 1)) * math.sqrt((1 / count + shared) * statistics.variance(points))


_OfCells = dict[tuple[str, int], float]  # by division and seed


def _values(cells: Sequence[Cell], group: str, key: str) -> _OfCells:
    return {(cell.division, cell.seed): cell.figures[group][key] for cell in cells}


def write_csv(study: Study, file: Path) -> None:
    """A line for each cell and column."""
    keys = study.table.figures if study.table.of_maps else (*FIGURES, "fitted_f_measure")
    rows = (
        (
            *(cell.row, cell.division, cell.seed, cell.steps_only, group),
            *(f"{figures[key]:.6f}" for key in keys),
            f"{cell.seconds:.1f}",
        )
        for cell in study.cells
        for group, figures in cell.figures.items()
        if keys[0] in figures
    )
    write_rows(file, ["row", "division", "seed", "steps_only", "group", *keys, "seconds"], rows)


def draw(study: Study, file: Path) -> bool:
    """Draw the table's first figure with its spread, over its axis or as a point a row; False without matplotlib."""
    if not can_draw():
        return False
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in study.table.rows if not row.heavy]
    key = study.table.figures[0]
    values = [[100 * value for value in _values(study.of(row), study.table.judged, key).values()] for row in rows]
    mean = [statistics.fmean(v) for v in values]
    deviation = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        if study.table.axis:
            figure = Figure(figsize=(6.4, 3.6))
            _curve(figure.subplots(), study, rows, mean, deviation)
        else:
            figure = Figure(figsize=(6.4, 0.9 + 0.42 * len(rows)))
            _points(figure.subplots(), [row.title for row in rows], mean, deviation, of=f"{NAMES[key]}, %")
        figure.axes[0].set_title(study.table.title, loc="left", fontweight="bold")
        figure.savefig(file, dpi=150, bbox_inches="tight")
    return True


def _points(axes: "Axes", titles: list[str], mean: list[float], deviation: list[float], *, of: str) -> None:
    axes.errorbar(mean, range(len(titles)), xerr=deviation, fmt="o", color=OURS, capsize=3)
    axes.set_yticks(range(len(titles)), titles)
    axes.invert_yaxis()
    axes.set_xlabel(of)
    axes.grid(axis="x", alpha=0.3)


def _curve(axes: "Axes", study: Study, rows: list[Row], mean: list[float], deviation: list[float]) -> None:
    places = [row.x or 0.0 for row in rows]
    axes.errorbar(places, mean, yerr=deviation, fmt="o-", color=OURS, capsize=3, label="here")
    reported = [(place, 100 * row.paper[1]) for place, row in zip(places, rows, strict=True) if row.paper is not None]
    if reported:
        axes.plot(*zip(*reported, strict=True), "s--", color=THEIRS, label="the paper, on its own data")
    if study.table.logarithmic:
        axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_xlabel(study.table.axis)
    axes.set_ylabel("F, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
