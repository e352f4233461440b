"""Bundles: their cards, their precisions, their borders."""

from pathlib import Path
from typing import Annotated

import typer

from training.cli import Bundle, CostsFile, Data, Json, Part, Picture, app, console, write_json


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
def calibrate(
    bundle: Annotated[Path, typer.Argument(help="A bundle; it stays as it is.", exists=True, file_okay=False)],
    data: Annotated[
        list[Path], typer.Option(help="A cut folder in the line's shares, not learnt from; may be given again.")
    ],
    version: Annotated[str, typer.Option(help="Version of the new bundle.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    costs: CostsFile = None,
    part: Part = "all",
    thresholds: Annotated[
        bool, typer.Option("--thresholds", help="From what score labels are present, alone: bands and glance stay.")
    ] = False,
    lost: Annotated[
        float | None,
        typer.Option(
            help="Share of the windows in which a defect is found that its glance may clear; by default the one that "
            "it was chosen by.",
            min=0,
            max=0.1,
        ),
    ] = None,
    drop_glance: Annotated[
        bool, typer.Option("--drop-glance", help="Leave its glance out: no window is cleared, which is slower on CPUs.")
    ] = False,
    picture: Picture = None,
    json_file: Json = None,
) -> None:
    """Choose other limits for a bundle by what wrong verdicts cost, without training; that of its glance with them."""
    from training.calibration_picture import draw
    from training.costs import Costs, read_costs
    from training.recalibration import recalibrate
    from training.tables import print_calibration, print_thresholds
    from training.thresholds import rethreshold

    if thresholds:
        if costs is not None or picture is not None:
            raise typer.BadParameter(
                "it leaves the bands, which --costs choose and --picture draws", param_hint="--thresholds"
            )
        if lost is not None or drop_glance:
            raise typer.BadParameter(
                "it leaves the glance, which --lost and --drop-glance change", param_hint="--thresholds"
            )
        chosen = rethreshold(bundle, data, out, version=version, part=part)
        print_thresholds(chosen, console)
        write_json(json_file, chosen.as_dict())
        console.print(
            f"{chosen.manifest.name} {chosen.manifest.version} in {out}: limits {chosen.manifest.limits_version}; seal "
            "a set for it anew and release it before it goes into service"
        )
        return
    stated = Costs() if costs is None else read_costs(costs)
    done = recalibrate(bundle, data, out, version=version, costs=stated, part=part, lost=lost, drop_glance=drop_glance)
    print_calibration(done.calibration, console)
    if done.glance is not None:
        console.print(f"its glance looks from a doubt of {done.glance.doubt_min:.4f} on: {done.glance}", soft_wrap=True)
    errors = {label: r.calibration_error for label, r in done.report.per_label.items()}
    console.print("calibration error: " + ", ".join(f"{label} {error:.4f}" for label, error in errors.items()))
    console.print(
        f"{done.manifest.name} {done.manifest.version} in {out}: limits {done.manifest.limits_version}, macro F "
        f"{done.report.f_measure:.4f} at its thresholds; release it before it goes into service"
    )
    if picture is not None:
        curves = {label: {"as it is": r.reliability} for label, r in done.report.per_label.items()}
        draw(picture, calibration=done.calibration, curves=curves)
    write_json(json_file, {**done.calibration.as_dict(), "evaluation": done.report, "glance": done.glance})


@app.command("glance")
def glance(
    bundle: Annotated[Path, typer.Argument(help="A bundle; it stays as it is.", exists=True, file_okay=False)],
    by: Annotated[Path, typer.Option(help="Folder of the run of the small network.", exists=True, file_okay=False)],
    data: Annotated[
        list[Path],
        typer.Option(help="A labelled cut folder that this run has not learnt from; may be given again."),
    ],
    version: Annotated[str, typer.Option(help="Version of the new bundle.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    lost: Annotated[
        float, typer.Option(help="Share of the windows in which a defect is found that may be cleared.", min=0, max=0.1)
    ] = 0.001,
    part: Part = "all",
    json_file: Json = None,
) -> None:
    """Let a small network clear windows before the whole one sees them, on CPUs."""
    from training.glance import add_glance

    manifest, chosen = add_glance(bundle, by, data, out, version=version, lost=lost, part=part)
    console.print(f"{manifest.name} {manifest.version} in {out}: {chosen}; evaluate and release it before its service")
    write_json(json_file, chosen)


@app.command()
def seal(
    run: Annotated[Path, typer.Argument(help="Folder of the run that the bundle is of.", exists=True, file_okay=False)],
    bundle: Annotated[Path, typer.Option(help="Its bundle, with whatever limits.", exists=True, file_okay=False)],
    golden: Annotated[Path, typer.Option(help="Screens in the data form to seal.", exists=True, file_okay=False)],
) -> None:
    """Seal screens for a bundle that was given other limits or a glance, as `export --golden` does for a new one."""
    from engine import Manifest
    from training import sealing

    screens = sealing.seal(sealing.module_of(run, bundle), Manifest.read(bundle), golden)
    console.print(f"{golden / sealing.SEALED_FILE}: the module's probabilities of {screens} screens")


@app.command()
def fidelity(
    bundle: Annotated[Path, typer.Argument(help="A bundle.", exists=True, file_okay=False)],
    data: Data,
    part: Part = "test",
    json_file: Json = None,
) -> None:
    """Compare each precision of a bundle with its fp32; exit code 1 if a stated tolerance does not hold."""
    from training.fidelity import fidelity as measure
    from training.fidelity import fidelity_table

    found = measure(bundle, data, part=part)
    console.print(fidelity_table(found), markup=True)
    write_json(json_file, found)
    raise typer.Exit(0 if all(one.holds for one in found.values()) else 1)


@app.command()
def borders(
    bundle: Bundle,
    data: Annotated[Path, typer.Option(help="Folder in the data form.", exists=True, file_okay=False)],
    crossing: Annotated[
        int, typer.Option(help="Besides, so many frames whose border runs through a defect of those screens.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of those frames.", min=0)] = 0,
    json_file: Json = None,
) -> None:
    """Compare windows looked at once, again, turned, and overlapping by half (no torch needed)."""
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
    write_json(json_file, found)


@app.command()
def untrained(
    labels: Annotated[list[int], typer.Option(help="How many; may be given again.", min=1)],
    out: Annotated[Path, typer.Option(help="Folder to write a bundle into for each number of labels.")],
    patch: Annotated[int, typer.Option(help="Side of a patch in pixels, a multiple of 32.", min=32)] = 1024,
) -> None:
    """Write bundles of the embedded network's form with random weights: to measure what labels cost."""
    from training.bare import untrained_bundle

    for count in labels:
        untrained_bundle(out / str(count), labels=count, patch_px=patch)
        console.print(f"{count} labels in {out / str(count)}")
