"""`python -m training`: render, cut, fit, evaluate, export, judge. What needs torch is imported by its command."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from engine import EngineError

app = typer.Typer(help="Images and labels in, bundle out.", no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()


class Precision(StrEnum):
    """Of the features graph, besides fp32."""

    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT8_TRT = "int8-trt"


Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file as well.")]


@app.command()
def render(
    screens: Annotated[int, typer.Option(help="How many.", min=1)],
    seed: Annotated[int, typer.Option(help="The same seed gives the same screens.", min=0)],
    out: Annotated[Path, typer.Option(help="Folder to write; the data form.")],
    width: Annotated[int, typer.Option(help="Pixels across.", min=256)] = 5120,
    height: Annotated[int, typer.Option(help="Pixels down.", min=256)] = 10240,
    clean: Annotated[float, typer.Option(help="Share of screens without a defect.", min=0, max=1)] = 0.5,
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
        preview=preview,
        processes=processes,
    )


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
    )
    table = Table("part", "patches", *summary.labels["train"])
    for part, count in summary.patches.items():
        table.add_row(part, str(count), *map(str, summary.labels[part].values()))
    console.print(table)
    if summary.dropped:
        console.print(f"{summary.dropped} patches dropped by the paper's rule")


@app.command()
def fit(
    config: Annotated[Path, typer.Argument(help="TOML file.", exists=True, dir_okay=False)],
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. phase1.epochs=2.")] = None,
) -> None:
    """Train both phases; the same command resumes a run that was stopped."""
    from training.config import read_config
    from training.fit import fit as run_fit

    settings = read_config(config, set_)
    found = run_fit(settings)
    console.print(f"validation F {found.f_measure:.4f} at 0.5 over {found.patches} patches: {settings.run}")


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Option(help="A bundle.", exists=True, file_okay=False)],
    data: Annotated[list[Path], typer.Option(help="A cut folder; may be given again.", exists=True)],
    group: Annotated[str, typer.Option(help="Patches reasoned together: screen, batch:N or single.")] = "screen",
    part: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    json_file: Json = None,
) -> None:
    """Measure a bundle on patches at its own thresholds."""
    from engine import load
    from training.evaluation import evaluate as measure

    backend = load(bundle)
    try:
        found = measure(backend, data, part=None if part == "all" else part, group=group)
    finally:
        backend.close()
    table = Table("label", "accuracy", "precision", "recall", "F", "with it", "without")
    for name, r in found.per_label.items():
        figures = (f"{v:.4f}" for v in (r.accuracy, r.precision, r.recall, r.f_measure))
        table.add_row(name, *figures, str(r.positives), str(r.negatives))
    macro = (f"{v:.4f}" for v in (found.accuracy, found.precision, found.recall, found.f_measure))
    table.add_row("macro", *macro, "", "", style="bold")
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(found.as_dict(), indent=2) + "\n")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1",
    batch: Annotated[int, typer.Option(help="Patches the runtime takes at once.", min=1)] = 5,
    overlap: Annotated[int, typer.Option(help="Overlap of the service's windows in pixels.", min=0)] = 0,
    second_look: Annotated[
        bool, typer.Option("--second-look", help="Look again where a border of windows may cut a defect.")
    ] = False,
    notes: Annotated[Path | None, typer.Option(help="Markdown for the model card.", exists=True)] = None,
    golden: Annotated[
        Path | None, typer.Option(help="Screens in the data form to seal for the release gate.", exists=True)
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(help="A cut folder in the line's shares, not learnt from; may be given again.", exists=True),
    ] = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="Besides fp32; may be given again. int8 is for CPUs.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Write a verified bundle of a run; refuses if the graphs differ from the module, or a precision does not hold."""
    from engine import NO_SECOND_LOOK
    from training.borders import SECOND_LOOK
    from training.bundling import export_run
    from training.fidelity import fidelity_table
    from training.folder import load_run
    from training.sealing import SEALED_FILE, seal

    manifest, difference, made = export_run(
        run,
        out,
        version=version,
        batch_size=batch,
        overlap_px=overlap,
        second_look=SECOND_LOOK if second_look else NO_SECOND_LOOK,
        notes=notes.read_text() if notes is not None else "",
        precisions=[one.value for one in precision or ()],
        calibration=calibrate or (),
    )
    console.print(
        f"{manifest.name} {manifest.version} in {out}: graphs differ from the module by at most "
        f"{difference.largest:.2g} in probability (mean {difference.mean:.2g})"
    )
    if golden is not None:
        screens = seal(load_run(run)[0], manifest, golden)
        console.print(f"{golden / SEALED_FILE}: the module's probabilities of {screens} screens")
    found = {name: one.fidelity for name, one in made.items()}
    if found:
        console.print(fidelity_table(found))
    if json_file is not None:
        json_file.write_text(json.dumps({name: one.as_dict() for name, one in found.items()}, indent=2) + "\n")


@app.command()
def untrained(
    labels: Annotated[list[int], typer.Option(help="How many; may be given again.", min=1)],
    out: Annotated[Path, typer.Option(help="Folder to write a bundle into for each number of labels.")],
    patch: Annotated[int, typer.Option(help="Side of a patch in pixels, a multiple of 32.", min=32)] = 1024,
) -> None:
    """Write bundles of the embedded network's form with random weights: to measure what labels cost."""
    from training.untrained import untrained_bundle

    for count in labels:
        untrained_bundle(out / str(count), labels=count, patch_px=patch)
        console.print(f"{count} labels in {out / str(count)}")


@app.command()
def card(
    bundle: Annotated[Path, typer.Argument(help="A bundle.", exists=True, file_okay=False)],
    on: Annotated[str, typer.Option(help="What screens were measured, one line.")],
    evaluation: Annotated[Path, typer.Option(help="What `evaluate --json` wrote.", exists=True, dir_okay=False)],
    judgement: Annotated[Path, typer.Option(help="What `judge --json` wrote.", exists=True, dir_okay=False)],
) -> None:
    """Write figures that were measured on other screens into a bundle's model card, before its release."""
    from training.card import add_figures

    add_figures(bundle, on=on, evaluation=evaluation, judgement=judgement)
    console.print(f"{bundle}: measured on {on}")


@app.command()
def fidelity(
    bundle: Annotated[Path, typer.Argument(help="A bundle.", exists=True, file_okay=False)],
    data: Annotated[list[Path], typer.Option(help="A cut folder; may be given again.", exists=True)],
    part: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    json_file: Json = None,
) -> None:
    """Compare each precision of a bundle with its fp32: probabilities, labels, verdicts of screens, F."""
    from training.fidelity import fidelity as measure
    from training.fidelity import fidelity_table

    found = measure(bundle, data, part=None if part == "all" else part)
    console.print(fidelity_table(found))
    if json_file is not None:
        json_file.write_text(json.dumps({name: one.as_dict() for name, one in found.items()}, indent=2) + "\n")


@app.command()
def bench(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", exists=True, file_okay=False)],
    bundle: Annotated[Path | None, typer.Option(help="Its bundle: the runtimes take turns with PyTorch.")] = None,
    batch: Annotated[int | None, typer.Option(help="Patches of a batch.", min=1)] = None,
    patch: Annotated[int, typer.Option(help="Side of a patch in pixels.", min=32)] = 1024,
    seconds: Annotated[float, typer.Option(help="Measured time for each row, on average.", min=0)] = 10.0,
    json_file: Json = None,
) -> None:
    """Time a run's network in PyTorch, eager and compiled, and beside it the runtimes of its bundle."""
    from engine import bench as benchmark
    from training.benchmark import contestants

    others, missing = contestants(run, batch_size=batch, patch_px=patch)
    found = benchmark.bench(bundle, batch_size=batch, seconds=seconds, others=others, missing=missing, console=console)
    benchmark.show(found, console)
    if json_file is not None:
        json_file.write_text(json.dumps(found.as_dict(), indent=2) + "\n")


@app.command()
def judge(
    verdicts: Annotated[Path, typer.Argument(help="JSON list of verdicts.", exists=True, dir_okay=False)],
    source: Annotated[Path, typer.Argument(help="Folder in the data form.", exists=True, file_okay=False)],
    part: Annotated[str | None, typer.Option(help="Judge only train, validation or test screens.")] = None,
    test_fold: Annotated[int | None, typer.Option(help="Fold of folds.csv that is the test part.")] = None,
    json_file: Json = None,
) -> None:
    """Judge the service's verdicts: escape, overkill, review, labels, boxes (no torch needed)."""
    from training import judging, tables

    found = judging.judge(verdicts, source, part=part, test_fold=test_fold)
    tables.print_judgement(found, console)
    if json_file is not None:
        json_file.write_text(json.dumps(found.as_dict(), indent=2) + "\n")


@app.command()
def borders(
    bundle: Annotated[Path, typer.Option(help="A bundle.", exists=True, file_okay=False)],
    data: Annotated[Path, typer.Option(help="Folder in the data form.", exists=True, file_okay=False)],
    crossing: Annotated[
        int, typer.Option(help="Besides, so many frames whose border runs through a defect of those screens.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of those frames.", min=0)] = 0,
    json_file: Json = None,
) -> None:
    """Compare windows placed once, with a second look and overlapping by half (no torch needed)."""
    import tempfile

    from engine import Manifest
    from training import borders as looks
    from training import crossing as frames
    from training import tables

    served = looks.manners(Manifest.read(bundle))
    found = {"screens": looks.compare(bundle, data, served)}
    tables.print_manners("screens", found["screens"], console)
    if crossing:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "crossing"
            count = frames.cross(data, source, patch_px=Manifest.read(bundle).patch_px, most=crossing, seed=seed)
            found["crossing"] = looks.compare(bundle, source, served)
        tables.print_manners(f"{count} frames with a defect on a border", found["crossing"], console, decisions=False)
    if json_file is not None:
        figures = {part: {name: m.as_dict() for name, m in manners.items()} for part, manners in found.items()}
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def main() -> None:
    """Run the command line; what the user can mend is one line, not a traceback."""
    try:
        app(standalone_mode=True)
    except ModuleNotFoundError as error:
        _end(f"{error}: `pip install '.[training]'` brings what training needs", error)
    except (ValueError, OSError, EngineError) as error:
        _end(str(error), error)


def _end(text: str, error: Exception) -> NoReturn:
    Console(stderr=True).print(f"error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(2) from error


if __name__ == "__main__":
    main()
