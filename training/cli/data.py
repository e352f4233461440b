"""Labelled data: brought into the data form, and checked. No command here needs torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from training.cli import Json, app, console, in_a_folder, write_json

if TYPE_CHECKING:
    from training.conversion.form import Converted

convert = typer.Typer(help="Bring a data set of another form into the data form (no torch needed).")
app.add_typer(convert, name="convert", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder to write; the data form.")]
Link = Annotated[bool, typer.Option("--link", help="Link to the images in place of copying them.")]
Rename = Annotated[list[str] | None, typer.Option(help="CLASS=LABEL; may be given again.")]
TestShare = Annotated[
    float | None, typer.Option(help="Of the images, where a test part is drawn. Default: 0.1.", min=0, max=1)
]


@convert.command()
def severstal(
    source: Annotated[Path, typer.Argument(help="Folder of train.csv.", exists=True, file_okay=False)],
    out: Out,
    images: Annotated[Path | None, typer.Option(help="Default: SOURCE/train_images.", exists=True)] = None,
    division: Annotated[Path | None, typer.Option(help="Folder of the official division.", exists=True)] = None,
    test_share: TestShare = None,
    link: Link = False,
    rename: Rename = None,
    json_file: Json = None,
) -> None:
    """Severstal steel (Kaggle): train.csv with run lengths. Then: cut --patch 256 --stride 224."""
    from training.conversion.severstal import convert_severstal

    found = convert_severstal(
        source,
        out,
        images=images,
        division=division,
        test_share=test_share,
        link=link,
        renamed=_pairs(rename),
    )
    _tell(found, json_file)


@convert.command()
def coco(
    source: Annotated[list[str], typer.Argument(help="Annotation file, or PART=FILE for each part.")],
    out: Out,
    images: Annotated[Path | None, typer.Option(help="What file_name counts from. Default: the file's.")] = None,
    splits: Annotated[
        Path | None, typer.Option(help="CSV: screen,part or screen,fold, and others such as phone.", exists=True)
    ] = None,
    test_share: TestShare = None,
    link: Link = False,
    rename: Rename = None,
    json_file: Json = None,
) -> None:
    """COCO boxes, polygons and run lengths, as labelling tools export them."""
    from training.conversion.coco import convert_coco
    from training.truth import PARTS

    sources: dict[Path, str | None] = {}
    for text in source:
        part, equals, file = text.partition("=")
        if equals and part not in PARTS and Path(text).exists():
            part, equals = "", ""  # of the file's own name
        path = Path(file if equals else text)
        if path in sources:
            raise typer.BadParameter(f"{path} is there twice", param_hint="SOURCE")
        sources[path] = part if equals else None
    found = convert_coco(
        sources,
        out,
        images=images,
        splits=splits,
        test_share=test_share,
        link=link,
        renamed=_pairs(rename),
    )
    _tell(found, json_file)


def _pairs(renamed: list[str] | None) -> dict[str, str]:
    pairs = [text.rpartition("=") for text in renamed or ()]
    broken = next((text for text, (original, _, label) in zip(renamed or (), pairs, strict=True) if not original), None)
    if broken is not None:
        raise typer.BadParameter(f"CLASS=LABEL, not {broken!r}", param_hint="--rename")
    return {original: label for original, _, label in pairs}


def _tell(found: "Converted", json_file: Path | None) -> None:
    table = Table("", "count")
    for part, count in found.screens.items():
        table.add_row(f"screens, {part}", str(count))
    table.add_row("screens without a defect", str(found.clean))
    for label, count in found.defects.items():
        table.add_row(f"defects, {label}", str(count))
    table.add_row("defects with a mask", str(found.masks))
    console.print(table)
    for folder, count in found.unnamed.items():
        console.print(f"images under {folder} that are in no annotation file: {count}", soft_wrap=True)
    write_json(json_file, found)


@app.command()
def validate(
    source: Annotated[Path, typer.Argument(help="In the data form, or cut.", exists=True, file_okay=False)],
    patch: Annotated[int, typer.Option(help="Side of the patches that it will be cut into.", min=1)] = 1024,
    label: Annotated[list[str] | None, typer.Option(help="A label that there should be; default: any.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with pictures of what was found.", callback=in_a_folder)
    ] = None,
    json_file: Json = None,
) -> None:
    """Find what would spoil training: broken files, leaks, boxes and masks that do not fit. Status 1 for an error."""
    from training import tables
    from training.validation.form import validate_form
    from training.validation.page import write_page
    from training.validation.patches import validate_cut

    is_cut = (source / "cut.json").is_file()
    wanted = label or ()
    report = validate_cut(source, labels=wanted) if is_cut else validate_form(source, labels=wanted, patch_px=patch)
    tables.print_validation(report, console)
    write_json(json_file, report.as_dict())
    if html is not None:
        write_page(report, html)
    if report.errors:
        raise typer.Exit(1)
