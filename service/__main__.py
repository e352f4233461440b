"""`python -m service`: serve; `inspect` files without HTTP; `demo` renders, serves, posts and shows."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import cv2
import typer
import uvicorn
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from engine import EngineError
from service import demo as demonstration
from service import logs
from service.app import create_app
from service.demo import DemoError
from service.files import FileResult, inspect_files, inspector
from service.inspector import from_json
from service.overlay import draw
from service.problems import Problem
from service.settings import SettingsError, parse_frame_size, read_settings
from service.store import StoreError
from service.tables import describe_labels, describe_verdict, table

# a client's last screens are answered before the process ends
GRACE_S = 35

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
errors = Console(stderr=True)

Size = Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Pixels of raw files.")]


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Serve; every knob is an INSPECT_* variable of the environment (see the README)."""
    if context.invoked_subcommand is not None:
        return
    settings = read_settings()
    logs.configure(level=settings.log_level, form=settings.log_format)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,  # uvicorn's lines take the form of ours
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
    )


@app.command()
def inspect(
    files: Annotated[list[Path], typer.Argument(help="Image files, or raw pixels with --size.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle; default: that of the settings.")] = None,
    size: Size = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, one entry a file.")] = False,
    overlay: Annotated[
        Path | None, typer.Option(help="PNG to draw the defects on; a folder for several files.")
    ] = None,
) -> None:
    """Inspect files without HTTP, by the same code as the service; exit code 1 if one could not be."""
    settings = read_settings()
    logs.configure(level="error", form="console")
    if bundle is not None:
        settings = settings.model_copy(update={"bundle": bundle})
    raw_size = None if size is None else parse_frame_size(size)
    with inspector(settings) as ready:
        results = track(inspect_files(ready, files, raw_size=raw_size), "inspect", total=len(files), console=errors)
        entries: list[dict[str, Any]] = []
        rows: list[tuple[str, ...]] = []
        for result in results:
            entries.append(_entry(result))
            rows.append(_row(result))
            if overlay is not None:
                _draw(result, overlay, into_folder=len(files) > 1)
    if as_json:
        print(json.dumps(entries, indent=2))
    else:
        Console().print(table(("file", "verdict", "labels", "defects", "patches"), rows))
    raise typer.Exit(0 if all("verdict" in entry for entry in entries) else 1)


def _entry(result: FileResult) -> dict[str, Any]:
    """The verdict, or the problem document and whose it is."""
    if isinstance(result.outcome, Problem):
        return {"screen_id": result.screen_id, **result.outcome.model_dump()}
    verdict: dict[str, Any] = json.loads(result.outcome.answer)
    return verdict


def _row(result: FileResult) -> tuple[str, ...]:
    if isinstance(result.outcome, Problem):
        return (str(result.path), f"[red]{result.outcome.code}[/]", escape(result.outcome.detail), "", "")
    verdict = from_json(result.outcome.answer)
    counts = str(len(verdict.defects)), str(verdict.proof.windows_inferred)
    return (str(result.path), describe_verdict(verdict), describe_labels(verdict), *counts)


def _draw(result: FileResult, overlay: Path, *, into_folder: bool) -> None:
    """Draw an inspected file; one that could not be has no picture."""
    if isinstance(result.outcome, Problem):
        return
    path = overlay
    if into_folder:
        overlay.mkdir(parents=True, exist_ok=True)
        path = overlay / f"{result.screen_id}.png"
    picture = draw(result.outcome.frame.pixels, from_json(result.outcome.answer))
    if not cv2.imwrite(str(path), picture):
        raise OSError(f"{path} could not be written")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for screens, verdicts and overlays.")] = Path("demo"),
    screens: Annotated[int, typer.Option(help="How many to render.", min=1)] = 6,
    seed: Annotated[int, typer.Option(help="The same seed gives the same screens.", min=0)] = 7,
    size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Pixels of a screen.")] = "5120x10240",
) -> None:
    """Render screens, serve the embedded bundle, post them as a line would, show the verdicts."""
    demonstration.run(out, screens=screens, seed=seed, size=parse_frame_size(size), console=Console())


def run() -> None:
    """Run the command line; what the user can mend is one line, not a traceback."""
    try:
        app()
    except (SettingsError, EngineError, StoreError, DemoError, ValueError, OSError) as error:
        errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    run()
