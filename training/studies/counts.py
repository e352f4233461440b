"""Table 8 of Zhou et al. 2023: what every method costs, counted and as the paper has it. Nothing is trained for it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from training.complexity import Description, describe
from training.methods import METHODS
from training.plots import OURS, THEIRS, can_draw
from training.rows import write_rows

TITLE = "Parameters and multiply-accumulates of one colour patch (Table 8)"
UNITS = {"parameters": 1e7, "products": 1e10}  # of the table


def write(out: Path, console: Console) -> None:
    """Count every method and write `table-8.md`, `.csv` and, with matplotlib, `.png`.

    Args:
        out: a folder, which is made where it is missing.
        console: where to show the table.
    """
    counted = {name: describe(name) for name in track(METHODS, "count", transient=True)}
    found = list(counted.values())
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join([f"## {TITLE}", "", "`python -m training table 8`", "", *_lines(found), ""])
    (out / "table-8.md").write_text(text)
    header = ["method", "parameters", "paper_parameters", "products", "paper_products", "products_grey"]
    rows = (
        (
            *(one.title, one.colour.parameters, one.paper_parameters),
            *(one.colour.products, one.paper_products, one.grey.products),
        )
        for one in found
    )
    write_rows(out / "table-8.csv", header, rows)
    drawn = can_draw()
    if drawn:
        _draw(found, out / "table-8.png")
    show(counted, console)
    console.print(f"{out / 'table-8'}.md, .csv{', .png' if drawn else '; a plot needs matplotlib'}", markup=False)


def show(found: Mapping[str, Description | None], console: Console) -> None:
    """Beside the paper's figures, for people; beneath, why one is further from them than it should be.

    Args:
        found: by the names of methods; None where the patch is too small for one.
        console: where to show them.
    """
    table = Table(box=box.SIMPLE)
    for heading in ("method", "param.\ne7", "paper", "of it", "prod.\ne10", "paper", "of it", "grey"):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for name, one in found.items():
        if one is None:
            table.add_row(METHODS[name].title, "too small")
            continue
        counted = [cell for figure in UNITS for cell in _cells(one, figure)]
        table.add_row(one.title, *counted, f"{one.grey.products / UNITS['products']:.3f}")
    console.print(table)
    for note in _notes([one for one in found.values() if one is not None]).values():
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _cells(one: Description, figure: str) -> tuple[str, str, str]:
    """A figure as it is counted, as the paper has it, and the one as a share of the other."""
    (counted, paper), unit = one.beside[figure], UNITS[figure]
    if paper is None:
        return f"{counted / unit:.3f}", "-", "-"
    return f"{counted / unit:.3f}", f"{paper / unit:.3f}", f"{counted / paper:.1%}"


def _notes(found: Sequence[Description]) -> dict[tuple[str, str], str]:
    """By method and figure, why ours is further from the paper's than it should be."""
    return {
        (one.title, figure): f"{one.title}, {_cells(one, figure)[2]} of the paper's {figure}: {reason}"
        for one in found
        for figure, reason in one.reasons.items()
    }


def _lines(found: Sequence[Description]) -> Iterator[str]:
    yield "| | parameters, e7 | paper | products, e10 | paper | products of a grey patch, e10 |"
    yield f"|{' --- |' * 6}"
    notes = _notes(found)
    marks = {of: f"[^{number}]" for number, of in enumerate(notes, 1)}
    for one in found:
        cells = []
        for figure in UNITS:
            counted, paper, _ = _cells(one, figure)
            cells += [counted + marks.get((one.title, figure), ""), paper]
        yield f"| {one.title} | {' | '.join(cells)} | {one.grey.products / UNITS['products']:.3f} |"
    yield ""
    for of, note in notes.items():
        yield f"{marks[of]}: {note}"


def _draw(found: Sequence[Description], file: Path) -> None:
    """Both figures as points a method, those of the paper beside them."""
    import matplotlib
    from matplotlib.figure import Figure

    titles, places = [one.title for one in found], range(len(found))
    parameters = [(one.colour.parameters / 1e7, (one.paper_parameters or math.nan) / 1e7) for one in found]
    products = [(one.colour.products / 1e10, (one.paper_products or math.nan) / 1e10) for one in found]
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(8.4, 0.9 + 0.42 * len(found)))
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, name, pairs in ((left, "parameters, e7", parameters), (right, "products, e10", products)):
            counted, papers = zip(*pairs, strict=True)
            axes.plot(papers, places, "s", color=THEIRS, label="the paper")
            axes.plot(counted, places, "o", color=OURS, fillstyle="none", markersize=9, label="counted")
            axes.set_yticks(places, titles)
            axes.set_xlabel(name)
            axes.set_xlim(left=0)
            axes.grid(axis="x", alpha=0.3)
        left.invert_yaxis()
        left.legend(frameon=False)
        figure.suptitle(TITLE, x=0.02, ha="left", fontweight="bold")
        figure.savefig(file, dpi=150, bbox_inches="tight")
