"""`python -m service`: serve; `inspect` files; `release` a bundle; `bench` the service; `demo` shows it all.

`activate` puts a bundle in service; `backup`, `restore` and `prune` keep the record.
"""

import json
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, track

from engine import DEFAULT_BUNDLE, RELEASE_FILE, EngineError
from service import acceptance as accept
from service import bench as benchmark
from service import control, logs, memory, upkeep
from service import demo as demonstration
from service import release as gate
from service.app import create_app
from service.bench import BenchError
from service.client import ClientError
from service.control import ControlError
from service.demo import DemoError
from service.errors import ServiceError
from service.files import FileResult, inspect_files, inspector, picture_paths
from service.picture import write as write_picture
from service.problems import Problem
from service.rendering import RenderingError
from service.restart import in_service
from service.sealed import ReleaseError
from service.server import leave, serve
from service.settings import SettingsError, parse_frame_size, read_settings
from service.store import RECORD_FILE, StoreError
from service.tables import describe_labels, describe_verdict, table
from service.verdict import from_json

# what ends a command with one line: the user can do something about it
MENDABLE = (
    *(SettingsError, EngineError, StoreError, ServiceError, ClientError),
    *(DemoError, RenderingError, BenchError, ReleaseError, OSError),
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)

Size = Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Pixels of raw files.")]


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    configured: Annotated[
        bool, typer.Option("--configured", help="Begin with INSPECT_BUNDLE, whatever was in service last.")
    ] = False,
) -> None:
    """Serve; every knob is an INSPECT_* variable of the environment (see the README)."""
    if context.invoked_subcommand is not None:
        return
    settings = read_settings()
    logs.configure(level=settings.log_level, form=settings.log_format)
    memory.share_one_heap()
    status = serve(lambda end: create_app(settings, configured=configured, on_gone=end), settings)
    leave(status)
    raise typer.Exit(status)


@app.command()
def inspect(
    files: Annotated[list[Path], typer.Argument(help="Image files, or raw pixels with --size.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle; default: that of the settings.")] = None,
    size: Size = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, one entry a file.")] = False,
    overlay_path: Annotated[
        Path | None, typer.Option("--overlay", help="PNG to draw the defects on; a folder for several files.")
    ] = None,
) -> None:
    """Inspect files without HTTP, by the same code as the service; exit code 1 if one could not be."""
    settings = read_settings()
    logs.configure(level="error", form="console")
    if bundle is not None:
        settings = settings.model_copy(update={"bundle": bundle})
    raw_size = None if size is None else _size(size)
    pictures = None if overlay_path is None else picture_paths(overlay_path, files)
    if pictures is not None:
        pictures[0].parent.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    with inspector(settings) as ready:
        results = track(
            inspect_files(ready, files, raw_size=raw_size),
            "inspect",
            total=len(files),
            console=errors,
            disable=not errors.is_terminal,
        )
        for number, result in enumerate(results):
            entries.append(_entry(result))
            rows.append(_row(result))
            if pictures is not None:
                _draw(result, pictures[number])
    if as_json:
        print(json.dumps(entries, indent=2))
    else:
        Console(emoji=False).print(table(("file", "verdict", "labels", "defects", "patches"), rows))
    raise typer.Exit(0 if all("verdict" in entry for entry in entries) else 1)


@app.command()
def release(
    bundle: Annotated[Path, typer.Argument(help="Bundle that is to go into service.")],
    golden: Annotated[Path, typer.Option(help="Sealed set of screens: `training export --golden` writes it.")],
    active: Annotated[
        Path | None, typer.Option(help="Bundle to be replaced; default: that in service by the record.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Put a bundle through the release gate; what passes gets its record, and may be activated."""
    settings = read_settings()
    logs.configure(level="warning", form="console")
    found = gate.run(bundle, golden, active=active or in_service(settings), settings=settings)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        console = Console(emoji=False)
        console.print(table(("checked", "found"), gate.rows(found)))
        for refusal in found.refusals:
            console.print(f"[red]refused[/]: {escape(refusal)}", soft_wrap=True)
        if not found.refusals:
            console.print(f"[green]released[/]: {escape(str(bundle / RELEASE_FILE))}", soft_wrap=True)
    raise typer.Exit(1 if found.refusals else 0)


@app.command()
def acceptance(
    bundle: Annotated[Path, typer.Argument(help="Bundle to be accepted on this machine.")],
    frames: Annotated[
        Path | None, typer.Option(help="Folder of screens, as `training render` writes it; else six are rendered.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="Runtime that it is to run in.")] = "tensorrt",
    precision: Annotated[str, typer.Option(help="Of the features graph: fp16, fp32 or int8.")] = "fp16",
    batch: Annotated[int | None, typer.Option(min=1, max=1024, help="Patches in a batch; else the manifest's.")] = None,
    patches_per_s: Annotated[float, typer.Option(help="The least rate, also under full load.", min=0)] = 156,
    bench_s: Annotated[float, typer.Option(help="Seconds of the throughput test.", min=0.1)] = 30,
    soak_s: Annotated[float, typer.Option(help="Seconds under full load.", min=0.1)] = 600,
    swaps: Annotated[int, typer.Option(help="Swaps under load.", min=3)] = 20,
    out: Annotated[Path, typer.Option(help="Report to write, Markdown.")] = Path("acceptance.md"),
) -> None:
    """Build, parity, throughput, soak, swaps, verdicts beside the CPU's: pass or fail, and a report."""
    console = Console(emoji=False)
    with accept.frames_for(frames, console) as folder:
        plan = accept.Plan(
            bundle=bundle,
            runtime=runtime,
            precision=precision,
            batch=batch,
            patches_per_s=patches_per_s,
            bench_s=bench_s,
            soak_s=soak_s,
            swaps=swaps,
            frames=folder,
        )
        steps = accept.run(plan, console, out)
    console.print(f"report: {escape(str(out))}", soft_wrap=True)
    raise typer.Exit(1 if any(step.passed is False for step in steps) else 0)


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(help="Bundle to be served.")] = DEFAULT_BUNDLE,
    parts: Annotated[
        list[str] | None, typer.Option("--part", help=f"Only these, repeatable: {', '.join(benchmark.PARTS)}.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of each measurement.", min=1)] = 60,
    picture: Annotated[Path | None, typer.Option(help="Picture of the growth to write: a .png or .svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure the service end to end, in parts, on two CPUs; exit code 1 if a limit is missed."""
    logs.configure(level="warning", form="console")  # of the parts that inspect in this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by the way on which its servers are stopped
    console = Console(stderr=True, emoji=False)
    chosen = parts or tuple(benchmark.PARTS)
    report = benchmark.run(bundle, parts=chosen, seconds=seconds, console=console, picture=picture)
    if as_json:
        print(benchmark.as_json(report))
    else:
        benchmark.show(report, Console(emoji=False))
    raise typer.Exit(0 if report.passed else 1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for screens, verdicts and overlays.")] = Path("demo"),
    screens: Annotated[int, typer.Option(help="How many to render.", min=1)] = 6,
    seed: Annotated[int, typer.Option(help="The same seed gives the same screens.", min=0)] = 7,
    size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Pixels of a screen.")] = "5120x10240",
) -> None:
    """Render screens, serve the embedded bundle, post them as a line would, show the verdicts."""
    demonstration.run(out, screens=screens, seed=seed, size=_size(size), console=Console(emoji=False))


@app.command()
def activate(
    bundle: Annotated[
        str | None, typer.Argument(help="Name of the bundle, or its folder in the service's folder of bundles.")
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="The bundle that was in service before.")] = False,
    without_release: Annotated[
        bool, typer.Option("--without-release", help="Take it even without a record of release.")
    ] = False,
    url: Annotated[str | None, typer.Option(help="Of the running service; default: where the settings say.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the service's answer.")] = False,
) -> None:
    """Put a bundle in service while screens come in, or roll back; exit code 1 if it is not known to be there."""
    if (bundle is None) != rollback:
        raise typer.BadParameter("name a bundle, or --rollback")
    try:
        answer = control.activate(url or read_settings().url, bundle, without_release=without_release)
    except ControlError as error:
        if as_json and error.problem is not None:
            print(error.problem.model_dump_json(indent=2))
        errors.print(str(error), style="red", soft_wrap=True)
        raise typer.Exit(1) from error
    print(json.dumps(answer, indent=2) if as_json else control.describe(answer))


@app.command()
def backup(file: Annotated[Path, typer.Argument(help="File to copy the record of verdicts to.")]) -> None:
    """Copy the record of verdicts, also while the service runs."""
    state_dir = read_settings().state_dir
    upkeep.back_up(state_dir, file)
    print(f"{state_dir / RECORD_FILE} is copied to {file}: {file.stat().st_size / 1e6:.1f} MB")


@app.command()
def restore(file: Annotated[Path, typer.Argument(help="A copy that `backup` made.")]) -> None:
    """Put a copy in the place of the record, while no service runs."""
    state_dir = read_settings().state_dir
    replaced = upkeep.restore(state_dir, file)
    print(f"{file} is the record in {state_dir}{'' if replaced is None else f'; the one of before is {replaced}'}")


@app.command()
def prune(
    before: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Day of local time (TZ); it is kept itself.")],
) -> None:
    """Delete older screens from the record, also while the service runs; their ids are free from then on."""
    with Progress(*Progress.get_default_columns(), console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task("prune", total=None)
        day = before.replace(year=max(before.year, 1970)).astimezone()  # nothing is older
        deleted = upkeep.prune(read_settings().state_dir, day, tell=lambda count: bar.advance(task, count))
    print(f"{deleted} screens of before {day:%Y-%m-%d %H:%M %Z} are deleted")


def run() -> None:
    """Run the command line; what the user can mend is one line, not a traceback."""
    try:
        app()
    except MENDABLE as error:
        errors.print(str(error), style="red", soft_wrap=True)
        sys.exit(2)


def _size(text: str) -> tuple[int, int]:
    """`--size` as (height, width)."""
    try:
        return parse_frame_size(text)
    except ValueError as error:
        raise SettingsError(f"--size: {error}") from error


def _entry(result: FileResult) -> dict[str, Any]:
    """The verdict, or the problem document and whose it is."""
    if isinstance(result.outcome, Problem):
        return {"screen_id": result.screen_id, **result.outcome.model_dump()}
    verdict: dict[str, Any] = json.loads(result.outcome.answer)
    return verdict


def _row(result: FileResult) -> tuple[str, ...]:
    path = escape(str(result.path))
    if isinstance(result.outcome, Problem):
        return (path, f"[red]{result.outcome.code}[/]", escape(result.outcome.detail), "", "")
    verdict = from_json(result.outcome.answer)
    patches = str(verdict.proof.windows_inferred)
    if added := verdict.proof.patches - verdict.proof.windows_inferred:
        patches += f" + {added}"
    counts = str(len(verdict.defects)), patches
    return (path, describe_verdict(verdict), describe_labels(verdict), *counts)


def _draw(result: FileResult, path: Path) -> None:
    """Draw an inspected file; one that could not be has no picture."""
    if not isinstance(result.outcome, Problem):
        write_picture(path, result.outcome.frame.pixels, from_json(result.outcome.answer))


if __name__ == "__main__":
    run()
