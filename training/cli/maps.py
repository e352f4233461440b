"""Maps: where scores come from, whether that is where the defects are, and what was told wrongly."""

from pathlib import Path
from typing import Annotated

import typer

from training.cli import Bundle, Data, Json, Part, app, console, in_a_folder, write_json


def _drawn(file: Path) -> Path:
    """A picture that Pillow can write at the end of the work."""
    from PIL import Image

    in_a_folder(file)
    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise typer.BadParameter(f"{file}: a picture's name ends with .jpg or .png")
    return file


@app.command()
def explain(
    images: Annotated[list[Path], typer.Argument(help="Screens or patches.", exists=True, dir_okay=False)],
    bundle: Bundle,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("explained"),
    label: Annotated[
        list[str] | None, typer.Option(help="A label; may be given again. Default: the present ones.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with their true boxes, in the data form or cut.", exists=True)
    ] = None,
) -> None:
    """Draw where the scores of both stages come from, one picture an image (no torch needed)."""
    from engine import Manifest
    from training import explaining

    pictures = explaining.explain(bundle, images, out, labels=label or (), data=data)
    console.print(explaining.looks(Manifest.read(bundle)), highlight=False, soft_wrap=True)
    for picture in pictures:
        console.print(str(picture), highlight=False, soft_wrap=True)  # as it is, for whoever reads on


@app.command()
def localise(
    data: Data,
    bundle: Annotated[
        list[Path] | None, typer.Option(help="A bundle; may be given again.", exists=True, file_okay=False)
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="A finished run, made a bundle or not; may be given again.", exists=True, file_okay=False),
    ] = None,
    part: Part = "test",
    json_file: Json = None,
) -> None:
    """Measure whether the maps of both stages point at the true boxes."""
    from training.attribution import Attribution
    from training.localisation import localisation_tables
    from training.localisation import localise as measure

    if not bundle and not run:
        raise typer.BadParameter("a bundle or a run", param_hint="--bundle, --run")
    networks = {str(one): Attribution(one) for one in bundle or ()}
    if run:
        from training.bare import attribution_of  # which needs torch

        networks |= {str(one): attribution_of(one) for one in run}
    found = {name: measure(one, data, part=part) for name, one in networks.items()}
    for table in localisation_tables(found):
        console.print(table, markup=True)
    write_json(json_file, found)


@app.command()
def worst(
    bundle: Bundle,
    data: Data,
    out: Annotated[Path, typer.Option(help="The picture, such as worst.jpg.", callback=_drawn)],
    part: Part = "test",
    count: Annotated[int, typer.Option(help="Patches of a label at most.", min=1)] = 24,
    json_file: Json = None,
) -> None:
    """Draw each label's worst mistakes: defects missed by the lowest scores, false alarms by the highest."""
    from training import mistakes
    from training.tables import print_mistakes

    sheet = mistakes.worst(bundle, data, out, part=part, count=count)
    print_mistakes(sheet, console)
    console.print(str(out))
    counts = {
        label: {"missed": len(wrong.missed), "false_alarms": len(wrong.false_alarms)}
        for label, wrong in sheet.mistakes.items()
    }
    write_json(json_file, {"mistakes": counts, "tiles": sheet.tiles})
