"""Screens: rendered, cut, and the verdicts on them judged. No command here needs torch."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from training.cli import Json, Part, app, console, write_json


@app.command()
def render(
    screens: Annotated[int, typer.Option(help="How many.", min=1)],
    seed: Annotated[int, typer.Option(help="The same seed gives the same screens.", min=0)],
    out: Annotated[Path, typer.Option(help="Folder to write; the data form.")],
    width: Annotated[int, typer.Option(help="Pixels across.", min=256)] = 5120,
    height: Annotated[int, typer.Option(help="Pixels down.", min=256)] = 10240,
    clean: Annotated[float, typer.Option(help="Share of screens without a defect.", min=0, max=1)] = 0.5,
    faintest: Annotated[
        float, typer.Option(help="How many times the floor of visibility the faintest defect stands out.", min=1)
    ] = 1.0,
    dirt: Annotated[float, typer.Option(help="Times the dust and reflections of a line, to learn from.", min=0)] = 1.0,
    preview: Annotated[bool, typer.Option("--preview", help="Write a contact sheet per label as well.")] = False,
    processes: Annotated[int | None, typer.Option(help="Default: one per CPU.", min=1)] = None,
) -> None:
    """Render line-scan screens with defects, boxes and masks (no torch needed)."""
    from training import screens as renderer

    renderer.render(
        out,
        screens=screens,
        seed=seed,
        width=width,
        height=height,
        clean=clean,
        faintest=faintest,
        dirt=dirt,
        preview=preview,
        processes=processes,
    )


@app.command()
def paste(
    source: Annotated[Path, typer.Argument(help="Folder of screens/; what else is there is no label.", exists=True)],
    out: Annotated[Path, typer.Option(help="Folder to write; the data form, with the label pasted.")],
    patch: Annotated[int, typer.Option(help="Side of the patches that it will be cut into.", min=32)] = 1024,
    times: Annotated[int, typer.Option(help="Copies of each training screen.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="The same seed pastes the same.", min=0)] = 0,
    test_fold: Annotated[int | None, typer.Option(help="Fold of folds.csv to leave out.")] = None,
) -> None:
    """Paste pieces of screens into others: to learn a trunk from screens that nobody labelled (no torch needed)."""
    from training import pasting

    counted = pasting.paste(source, out, patch_px=patch, times=times, seed=seed, test_fold=test_fold)
    table = Table("", "count")
    for name, count in counted.items():
        table.add_row(name, str(count))
    console.print(table)


@app.command()
def cut(
    source: Annotated[Path, typer.Argument(help="Folder in the data form.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    patch: Annotated[int, typer.Option(help="Side of a patch in pixels, a multiple of 32.")] = 1024,
    stride: Annotated[int | None, typer.Option(help="Step of the window. Default: no overlap.")] = None,
    rule: Annotated[str, typer.Option(help="known: partly visible is unknown; paper: such patches go.")] = "known",
    test_fold: Annotated[int | None, typer.Option(help="Fold of folds.csv to test on.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label, in order; default: those in boxes.csv.")] = None,
    first: Annotated[int | None, typer.Option(help="Cut only so many screens, by their names.")] = None,
    shrink: Annotated[int, typer.Option(help="Take screens so many times smaller first; for studies.", min=1)] = 1,
) -> None:
    """Cut screens into labelled patches, split by screen (no torch needed)."""
    from training import cutting

    if rule not in ("known", "paper"):
        raise typer.BadParameter("known or paper", param_hint="--rule")
    summary = cutting.cut(
        source,
        out,
        patch_px=patch,
        stride_px=stride,
        rule="paper" if rule == "paper" else "known",
        test_fold=test_fold,
        labels=label or (),
        first=first,
        shrink=shrink,
    )
    table = Table("part", "patches", *summary.labels["train"])
    for part, count in summary.patches.items():
        table.add_row(part, str(count), *map(str, summary.labels[part].values()))
    console.print(table)
    if summary.dropped:
        console.print(f"{summary.dropped} patches dropped by the paper's rule")


@app.command()
def judge(
    verdicts: Annotated[Path, typer.Argument(help="JSON list of verdicts.", exists=True, dir_okay=False)],
    source: Annotated[Path, typer.Argument(help="Folder in the data form.", exists=True, file_okay=False)],
    part: Part = "all",
    test_fold: Annotated[int | None, typer.Option(help="Fold of folds.csv that is the test part.")] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            help="As in configs/limits.toml: shares of the line's screens by its prevalence too.", exists=True
        ),
    ] = None,
    json_file: Json = None,
) -> None:
    """Judge the service's verdicts: escape, overkill, review, labels, boxes (no torch needed)."""
    from training import judging, tables
    from training.costs import read_costs

    if test_fold is not None and part is None:
        raise typer.BadParameter("says what --part test is: give that as well", param_hint="--test-fold")
    stated = None if costs is None else read_costs(costs)
    found = judging.judge(verdicts, source, part=part, test_fold=test_fold, costs=stated)
    tables.print_judgement(found, console)
    write_json(json_file, found)
