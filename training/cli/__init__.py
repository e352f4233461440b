"""The commands of `python -m training`, by what they are about. What needs torch is imported by its command."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import rich
import typer
from rich.console import Console

from training.truth import PARTS

app = typer.Typer(help="Images and labels in, bundle out.", no_args_is_help=True, pretty_exceptions_enable=False)
# in a file or a pipe nothing is cut off to fit a width that nobody has; names of labels and folders are no markup
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200, markup=False, emoji=False)
STDOUT = Path("-")
ALL = "all"  # parts


def in_a_folder(file: Path | None) -> Path | None:
    """A file that can be written at the end of the work, as far as can be told before it."""
    if file is not None and not file.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {file.parent} to write {file.name} into")
    if file is not None and file.is_dir():
        raise typer.BadParameter(f"{file} is a folder: name a file")
    return file


def _plot(file: Path | None) -> Path | None:
    """The same of what matplotlib draws."""
    if in_a_folder(file) is not None:
        from training.plots import require

        require(file)
    return file


def _json(context: typer.Context, file: Path | None) -> Path | None:
    """The same of figures; where they go to standard output, all else goes to standard error, bars as well."""
    if file != STDOUT:
        return in_a_folder(file)
    for one in (console, rich.get_console()):
        one.stderr = True
        context.call_on_close(lambda one=one: setattr(one, "stderr", False))
    return file


def _part(part: str) -> str | None:
    """A part as the functions behind the commands take it: None for all."""
    if part != ALL and part not in PARTS:
        raise typer.BadParameter(f"{', '.join(PARTS)} or {ALL}, not {part!r}")
    return None if part == ALL else part


Bundle = Annotated[Path, typer.Option(help="A bundle.", exists=True, file_okay=False)]
Data = Annotated[list[Path], typer.Option(help="A cut folder; may be given again.", exists=True)]
CostsFile = Annotated[
    Path | None, typer.Option(help="What wrong verdicts cost the line, as in configs/limits.toml.", exists=True)
]
Picture = Annotated[
    Path | None, typer.Option(help="Draw scores, zones and reliability; needs matplotlib.", callback=_plot)
]
Plot = Annotated[Path | None, typer.Option(help="Draw loss and validation F by epoch into this file.", callback=_plot)]
Json = Annotated[
    Path | None,
    typer.Option("--json", help="Write the figures to this file as well; - is standard output.", callback=_json),
]
Part = Annotated[str | None, typer.Option(help="train, validation, test or all.", callback=_part)]


def write_json(file: Path | None, figures: object) -> None:
    """Write figures, of dataclasses too, where a file was asked for."""
    if file is None:
        return
    text = json.dumps(figures, indent=2, default=asdict) + "\n"
    if file == STDOUT:
        typer.echo(text, nl=False)
    else:
        file.write_text(text)
