"""The commands of `python -m training`, by what they are about. What needs torch is imported by its command."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(help="Images and labels in, bundle out.", no_args_is_help=True, pretty_exceptions_enable=False)
# in a file or a pipe nothing is cut off to fit a width that nobody has
console = Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=200)

CostsFile = Annotated[
    Path | None, typer.Option(help="What wrong verdicts cost the line, as in configs/limits.toml.", exists=True)
]
Picture = Annotated[Path | None, typer.Option(help="Draw scores, zones and reliability; needs matplotlib.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file as well.")]
Part = Annotated[str, typer.Option(help="train, validation, test or all.")]


def part_of(part: str) -> str | None:
    """A part as the functions behind the commands take it: None for all."""
    return None if part == "all" else part


def write_json(file: Path | None, figures: object) -> None:
    """Write figures, of dataclasses too, where a file was asked for."""
    if file is not None:
        file.write_text(json.dumps(figures, indent=2, default=asdict) + "\n")
