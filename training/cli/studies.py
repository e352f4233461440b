"""Studies: methods and settings compared on equal terms."""

import hashlib
import shlex
from pathlib import Path
from typing import Annotated

import typer

from training.cli import app, console

SEEDS = 3
PRESET = "cpu"


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="2 to 9 as in the paper, relations, open, variants, or maps.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder in the data form, or one that is cut; 8 takes none.", exists=True)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the study; tables share its cells.")] = Path("study"),
    preset: Annotated[str, typer.Option(help="cpu: minutes a cell; full: the paper's protocol.")] = PRESET,
    seeds: Annotated[int, typer.Option(help="How many, from 0.", min=1)] = SEEDS,
    fold: Annotated[
        list[int] | None, typer.Option(help="Folds of folds.csv; default: all for methods and maps, else the first.")
    ] = None,
    patch: Annotated[
        int | None, typer.Option(help="Side of a patch; default: 160 for cpu, 1024 for full, 256 for 9.")
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="Title of a row; may be given again. Default: all.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value for every row.")] = None,
    finished: Annotated[
        bool, typer.Option("--finished", help="Train nothing: the table of the cells that are there.")
    ] = False,
) -> None:
    """Train what a table compares and write it as Markdown, CSV and a plot; finished cells are kept.

    It ends with 1 where the loss of a cell did not stay finite: the table tells which, and has the others.
    """
    from rich.console import Console

    from training.devices import is_first
    from training.studies import counts, report, study

    if name == "8":
        given: dict[str, object] = {"--data": data, "--preset": preset != PRESET, "--seeds": seeds != SEEDS}
        given |= {"--fold": fold, "--patch": patch, "--row": row, "--set": set_, "--finished": finished}
        for option, value in given.items():
            if value:
                raise typer.BadParameter("table 8 counts, and takes no option but --out", param_hint=option)
        counts.write(out, console)
        return
    if data is None:
        raise typer.BadParameter("is needed", param_hint="--data")
    if preset not in study.PRESETS:
        raise typer.BadParameter("cpu or full", param_hint="--preset")
    found = study.run(
        name,
        preset=study.PRESETS[preset],
        data=data,
        out=out,
        seeds=range(seeds),
        folds=fold or (),
        settings=set_ or (),
        patch_px=patch,
        console=console if is_first() and not finished else Console(quiet=True),
        rows=row or (),
        finished=finished,
    )
    # what was asked for otherwise does not replace the table itself, nor each other
    whole = f"table-{name}-{preset}-{study.name_of(data)}"
    earlier = out / f"{whole}.md"  # of other data of that name?
    other = earlier.is_file() and f"--data {shlex.quote(str(data))} " not in earlier.read_text()
    asked = [row, fold, patch, set_, seeds if seeds != SEEDS else None, str(data) if other else None]
    asked += [finished] if finished else []  # without it the names stay those of earlier versions
    mark = hashlib.sha256(repr(asked).encode()).hexdigest()[:6]
    stem = f"{whole}-{mark}" if any(asked) else whole
    if not is_first():
        return
    (out / f"{stem}.md").write_text(report.markdown(found, name))
    report.write_csv(found, out / f"{stem}.csv")
    drawn = report.draw(found, out / f"{stem}.png")
    report.show(found, console)
    if found.finished:
        console.print(found.finished)
    console.print(f"{out / stem}.md, .csv{', .png' if drawn else '; a plot needs matplotlib'}")
    if found.diverged:
        raise typer.Exit(1)
