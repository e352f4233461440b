"""What a study found, as Markdown, CSV and a plot: mean and spread over its cells."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t

from training.plots import can_draw
from training.studies.cells import FIGURES, Cell
from training.studies.study import Study
from training.studies.tables import OURS_TITLE, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, THEIRS = "#0072B2", "#D55E00"  # told apart by the colour-blind


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; of one value alone there is no deviation."""
    mean = statistics.fmean(values)
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ± {statistics.stdev(values):.3f}"


def show(study: Study, console: Console) -> None:
    """The mean F of each row with its spread, and the lead of the best, for people."""
    groups = study.table.columns
    columns = [("F", "f_measure"), ("fitted", "fitted_f_measure")]
    table = Table("", *(f"{group}: {name}" for group in groups for name, _ in columns), "cells", box=box.SIMPLE)
    for row in study.table.rows:
        cells = study.of(row)
        if row.heavy:
            table.add_row(row.title, *["ran"] * len(groups) * len(columns), str(len(cells)))
            continue
        figures = [spread([cell.figures[group][key] for cell in cells]) for group in groups for _, key in columns]
        table.add_row(row.title, *figures, str(len(cells)))
    console.print(table)
    for line in _leads(study):
        console.print(line, markup=False)


def markdown(study: Study, name: str) -> str:
    """The table, how it was made, and the chosen row's lead."""
    cells = [cell for cell in study.cells if not cell.steps_only]
    lines = [
        f"## {study.table.title}",
        "",
        f"`{study.command(name)}`",
        "",
        f"Divisions of the data: {len({c.division for c in cells})}, seeds: {len({c.seed for c in cells})}; "
        "mean ± standard deviation over all of them together, at 0.5.",
        "",
    ]
    if study.table.columns == ("screen",):
        lines += _plain(study)
    else:
        lines += _by_group(study)
    return "\n".join([*lines, "", *_leads(study), ""])


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
        figures = [spread([cell.figures["screen"][key] for cell in cells]) for key in (*FIGURES, "fitted_f_measure")]
        yield f"| {row.title} | {' | '.join(figures)} | {len(cells)} | {seconds} | {paper} |"


def _by_group(study: Study) -> Iterator[str]:
    columns = study.table.columns
    yield f"| F of patches reasoned together | {' | '.join(columns)} | cells |"
    yield f"| --- |{' --- |' * len(columns)} --- |"
    for row in study.table.rows:
        cells = study.of(row)
        figures = [spread([cell.figures[group]["f_measure"] for cell in cells]) for group in columns]
        yield f"| {row.title} | {' | '.join(figures)} | {len(cells)} |"


def chosen(study: Study) -> Row:
    """The two-stage network where methods are compared, else the best row by F on the validation parts.

    The test parts choose nothing: the best of many by its test figure would flatter itself.
    """
    rows = [row for row in study.table.rows if not row.heavy]
    ours = next((row for row in rows if row.title == OURS_TITLE), None)
    return ours or max(rows, key=lambda row: statistics.fmean(_f(study.of(row), "validation_f_measure").values()))


def _leads(study: Study) -> Iterator[str]:
    """By how much the chosen row is ahead of each other one, cell by cell of the same seed and data."""
    own = chosen(study)
    how = "" if own.title == OURS_TITLE else ", chosen by F on validation"
    yield (
        f"Ahead in points of F, cell by cell, of {own.title}{how}; at 0.5, and at fitted thresholds; ± half of the "
        "95 % interval, which knows that folds share their training data:"
    )
    yield ""
    for row in study.table.rows:
        if row.heavy or row is own:
            continue
        told = [_lead(study.of(own), study.of(row), key) for key in ("f_measure", "fitted_f_measure")]
        yield f"- {row.title}: {'; '.join(told)}"


def _lead(own: Sequence[Cell], other: Sequence[Cell], key: str) -> str:
    mine, theirs = _f(own, key), _f(other, key)
    points = [100 * (mine[cell] - theirs[cell]) for cell in mine]
    told = f"{statistics.fmean(points):.1f}"
    if len(points) > 1:
        half = margin(points, divisions=len({division for division, _ in mine}))
        told = f"{told} ± {half:.1f}"
    return f"{told} (ahead in {sum(point > 0 for point in points)} of {len(points)})"


def margin(points: Sequence[float], *, divisions: int) -> float:
    """Half of the 95 % interval of a mean over folds and seeds, by the corrected resampled t-test.

    The training parts of k folds overlap, so that their figures are not independent: the variance of the mean is taken
    as (1/n + 1/(k - 1)) times that of the points (Nadeau and Bengio, "Inference for the generalization error", Machine
    Learning 52, 2003, Eq. 8). Of one division alone it tells what other seeds would give, and nothing of other data.

    Args:
        points: n >= 2, one for each fold and seed.
        divisions: k.
    """
    count = len(points)
    shared = 1 / (divisions - 1) if divisions > 1 else 0.0
    return float(student_t.ppf(0.975, count - 1)) * math.sqrt((1 / count + shared) * statistics.variance(points))


def _f(cells: Sequence[Cell], key: str = "f_measure") -> dict[tuple[str, int], float]:
    return {(cell.division, cell.seed): cell.figures["screen"][key] for cell in cells}


def write_csv(study: Study, file: Path) -> None:
    """A line for each cell and group."""
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["row", "division", "seed", "steps_only", "group", *FIGURES, "fitted_f_measure", "seconds"])
        for cell in study.cells:
            for group, figures in cell.figures.items():
                values = [f"{figures[key]:.6f}" for key in (*FIGURES, "fitted_f_measure")]
                writer.writerow(
                    [cell.row, cell.division, cell.seed, cell.steps_only, group, *values, f"{cell.seconds:.1f}"]
                )


def draw(study: Study, file: Path) -> bool:
    """Draw F with its spread, over the axis of the table or as one point for each row; False without matplotlib."""
    if not can_draw():
        return False
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in study.table.rows if not row.heavy]
    values = [[100 * f for f in _f(study.of(row)).values()] for row in rows]
    mean = [statistics.fmean(v) for v in values]
    deviation = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        if study.table.axis:
            figure = Figure(figsize=(6.4, 3.6))
            _curve(figure.subplots(), study, rows, mean, deviation)
        else:
            figure = Figure(figsize=(6.4, 0.9 + 0.42 * len(rows)))
            _points(figure.subplots(), [row.title for row in rows], mean, deviation)
        figure.axes[0].set_title(study.table.title, loc="left", fontweight="bold")
        figure.savefig(file, dpi=150, bbox_inches="tight")
    return True


def _points(axes: Axes, titles: list[str], mean: list[float], deviation: list[float]) -> None:
    axes.errorbar(mean, range(len(titles)), xerr=deviation, fmt="o", color=OURS, capsize=3)
    axes.set_yticks(range(len(titles)), titles)
    axes.invert_yaxis()
    axes.set_xlabel("F, %")
    axes.grid(axis="x", alpha=0.3)


def _curve(axes: Axes, study: Study, rows: list[Row], mean: list[float], deviation: list[float]) -> None:
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
