"""Runs: trained, measured, timed, exported."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from training.cli import Bundle, CostsFile, Data, Json, Part, Picture, Plot, app, console, write_json
from training.methods import METHODS


class Precision(StrEnum):
    """Of the features graph, besides fp32."""

    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT8_TRT = "int8-trt"


@app.command()
def fit(
    config: Annotated[Path, typer.Argument(help="TOML file.", exists=True, dir_okay=False)],
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. phase1.epochs=2.")] = None,
) -> None:
    """Train both phases; the same command resumes a run that was stopped."""
    from lightning_fabric.utilities import rank_zero_only

    from training.config import read_config
    from training.fit import fit as run_fit

    settings = read_config(config, set_)
    found = run_fit(settings)
    tell = rank_zero_only(console.print)  # of the processes that learnt together the first one speaks
    tell(f"validation F {found.f_measure:.4f} at 0.5 over {found.patches} patches: {settings.run}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", exists=True, file_okay=False)],
    plot: Plot = None,
    json_file: Json = None,
) -> None:
    """Set runs beside each other: what differs in their configurations, data, F, time (no torch needed)."""
    from training import comparison, curves, tables

    found = comparison.compare(runs)
    tables.print_comparison(found, console)
    if plot is not None:
        curves.draw(found.runs, plot)
    write_json(json_file, found.as_dict())


@app.command()
def describe(
    method: Annotated[str, typer.Argument(help=f"A method of the paper: {', '.join(METHODS)}; or all.")] = "all",
    size: Annotated[int, typer.Option(help="Side of a patch in pixels.", min=64)] = 1024,
    labels: Annotated[int, typer.Option(help="How many labels.", min=1)] = 4,
    config: Annotated[Path | None, typer.Option(help="TOML file: its network alone.", exists=True)] = None,
    json_file: Json = None,
) -> None:
    """Count parameters and multiply-accumulates of a method, beside the paper's Table 8, or of a configuration."""
    from training.complexity import Description
    from training.complexity import count as count_network
    from training.complexity import describe as count
    from training.config import read_config
    from training.studies.counts import show

    if config is not None:
        if method != "all":
            raise typer.BadParameter("a method or --config, which names its own")
        settings = read_config(config)
        own = count_network(settings.network, size_px=size, labels=labels)
        console.print(f"{settings.name}: {labels} labels, one grey patch of {size} px")
        console.print(f"{own.parameters:,} parameters, {own.products:,} multiply-accumulates")
        _print_parts(own.parts)
        write_json(json_file, own)
        return
    found: dict[str, Description | None] = {}
    for name in METHODS if method == "all" else [method]:
        try:
            found[name] = count(name, size_px=size, labels=labels)
        except ValueError:  # of all, those that take such patches are counted
            if method != "all":
                raise
            found[name] = None
    console.print(f"{labels} labels, one patch of {size} px; beside Table 8; grey is what runs here")
    show(found, console)
    if (one := found.get(method)) is not None:
        _print_parts(one.colour.parts)
    write_json(json_file, found)


def _print_parts(parts: Mapping[str, int]) -> None:
    for part, count_of in parts.items():
        console.print(f"{part}: {count_of:,} parameters")


@app.command()
def evaluate(
    bundle: Bundle,
    data: Data,
    group: Annotated[str, typer.Option(help="Patches reasoned together: screen, batch:N or single.")] = "screen",
    part: Part = "test",
    picture: Picture = None,
    json_file: Json = None,
) -> None:
    """Measure a bundle on patches at its own thresholds."""
    from engine import load
    from training.calibration_picture import draw
    from training.evaluation import evaluate as measure
    from training.evaluation import measured, not_served
    from training.folder import data_id
    from training.judging import model_of
    from training.tables import print_recall

    with closing(load(bundle)) as backend:
        for told in not_served(backend.manifest, data):
            typer.secho(f"not as served: {told}", err=True, fg="yellow")
        about = measured(backend, data, part=part, group=group)
        found = measure(backend, data, part=part, group=group)
    table = Table("label", "accuracy", "precision", "recall", "F", "calibration error", "with it", "without")
    for name, r in found.per_label.items():
        figures = (f"{v:.4f}" for v in (r.accuracy, r.precision, r.recall, r.f_measure, r.calibration_error))
        table.add_row(name, *figures, str(r.positives), str(r.negatives))
    macro = (f"{v:.4f}" for v in (found.accuracy, found.precision, found.recall, found.f_measure))
    table.add_row("macro", *macro, "", "", "", style="bold")
    console.print(table)
    if absent := [name for name, r in found.per_label.items() if not r.positives]:
        console.print(f"without {', '.join(absent)} in the macro figures, which no patch has")
    if found.bands:
        print_recall(found.bands, console, shrinks=about.shrink)
    else:
        console.print("no recall by size, contrast and border: a folder has no defects.csv; cut it anew")
    if picture is not None:
        draw(
            picture, calibration=None, curves={name: {"as it is": r.reliability} for name, r in found.per_label.items()}
        )
    model = model_of(backend.manifest.name, backend.manifest.version, backend.manifest.limits_version)
    told_of = {"models": [model], "measured": {"data_id": data_id(data), **asdict(about)}}
    write_json(json_file, {**told_of, **asdict(found)})


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="The bundle to write; one that is there and was not released is replaced.")],
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1",
    batch: Annotated[int, typer.Option(help="Patches the runtime takes at once.", min=1)] = 5,
    overlap: Annotated[int, typer.Option(help="Overlap of the service's windows in pixels.", min=0)] = 0,
    second_look: Annotated[
        bool, typer.Option("--second-look", help="Look again where a border of windows may cut a defect.")
    ] = False,
    turned_look: Annotated[
        bool, typer.Option("--turned-look", help="Look at windows in doubt in all eight positions.")
    ] = False,
    notes: Annotated[Path | None, typer.Option(help="Markdown for the model card.", exists=True)] = None,
    golden: Annotated[
        Path | None, typer.Option(help="Screens in the data form to seal for the release gate.", exists=True)
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            help="A cut folder in the line's shares, not learnt from, beside the validation part; may be given again.",
            exists=True,
        ),
    ] = None,
    costs: CostsFile = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="Besides fp32; may be given again. int8 is for CPUs.")
    ] = None,
    picture: Picture = None,
    json_file: Json = None,
) -> None:
    """Write a verified bundle of a run; refuses if the graphs differ from the module, or a precision does not hold."""
    from engine import NO_SECOND_LOOK, NO_TURNED_LOOK
    from training.benchmark import patch_of
    from training.borders import SECOND_LOOK, TURNED_LOOK
    from training.bundling import export_run
    from training.calibration_picture import draw
    from training.costs import read_costs
    from training.fidelity import fidelity_table
    from training.sealing import SEALED_FILE, refuse_unfit, seal
    from training.tables import print_calibration, print_sureness

    if golden is not None:
        refuse_unfit(golden, patch_px=patch_of(run))
    done = export_run(
        run,
        out,
        version=version,
        batch_size=batch,
        overlap_px=overlap,
        second_look=SECOND_LOOK if second_look else NO_SECOND_LOOK,
        turned_look=TURNED_LOOK if turned_look else NO_TURNED_LOOK,
        notes=notes.read_text() if notes is not None else "",
        precisions=[one.value for one in precision or ()],
        calibration=calibrate or (),
        costs=None if costs is None else read_costs(costs),
    )
    print_sureness(done.sureness, console)
    print_calibration(done.calibration, console)
    console.print(
        f"{done.manifest.name} {done.manifest.version} in {out}: graphs differ from the module by at most "
        f"{done.difference.largest:.2g} in probability (mean {done.difference.mean:.2g})"
    )
    if done.unshown:
        told = f"no golden patch shows {', '.join(done.unshown)}, so no self-test would miss it: none was found"
        console.print(told, style="yellow")
    if golden is not None:
        screens = seal(done.network, done.manifest, golden)
        console.print(f"{golden / SEALED_FILE}: the module's probabilities of {screens} screens")
    made = {name: one.fidelity for name, one in done.made.items()}
    if made:
        console.print(fidelity_table(made), markup=True)
    if picture is not None:
        curves = {label: {"before": one.before, "after": one.after} for label, one in done.sureness.items()}
        draw(picture, calibration=done.calibration, curves=curves)
    figures = {"precisions": made, "probabilities": done.sureness, "calibration": done.calibration.as_dict()}
    write_json(json_file, figures)


@app.command()
def bench(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", exists=True, file_okay=False)],
    bundle: Annotated[Path | None, typer.Option(help="Its bundle: the runtimes take turns with PyTorch.")] = None,
    batch: Annotated[int | None, typer.Option(help="Patches of a batch.", min=1)] = None,
    patch: Annotated[int | None, typer.Option(help="Side of a patch; default: the bundle's, or the data's.")] = None,
    seconds: Annotated[float, typer.Option(help="Measured time for each row, on average.", min=0)] = 10.0,
    json_file: Json = None,
) -> None:
    """Time a run's network in PyTorch, eager and compiled, and beside it the runtimes of its bundle."""
    from engine import Manifest
    from engine import bench as benchmark
    from training.benchmark import contestants, patch_of

    side = Manifest.read(bundle).patch_px if bundle is not None else patch or patch_of(run)
    if patch not in (None, side):
        raise typer.BadParameter(f"{bundle} takes patches of {side} px: name no other", param_hint="--patch")
    others, missing = contestants(run, batch_size=batch, patch_px=side)
    found = benchmark.bench(bundle, batch_size=batch, seconds=seconds, others=others, missing=missing, console=console)
    benchmark.show(found, console)
    write_json(json_file, found.as_dict())
