"""The Severstal steel set (Kaggle 2019) in the data form: 12,568 images of 1600 x 256 px, four classes, masks.

`train.csv` in both layouts that Kaggle gave out, `train_images/*.jpg`, and the official 8:1:1 division with its
image-level labels, which Table 9 of Zhou et al. 2023 is made with; the masks and the division have to agree.

A class has one row for an image, however many defects that are: each connected region becomes one defect
(`training.conversion.regions`), or a window could hold too small a share of "the" defect to be labelled.

How the whole images of Table 9 go on from here: `cut --patch 256 --stride 224` covers an image by seven windows, evenly
spaced, and labels each by the masks; `export --overlap 32` serves it by the same. A label's score on a screen is its
highest over the windows, and its truth whether the image has any defect of it. So `judge --part test`, on the verdicts
of `service inspect`, gives accuracy, precision, recall and F of the labels of whole images, as the table does;
`evaluate` gives those of the windows. That is not the paper's way, which shows the network whole images, of a size that
it does not state: here the window is learnt and the image judged.
"""

from collections.abc import Mapping
from pathlib import Path

from training.conversion.form import Converted, Labelled, refuse_twins, write_form
from training.conversion.names import label_names, screen_name
from training.conversion.regions import regions
from training.conversion.runs import Runs, runs_of_pairs
from training.membership import division_of, draw_division
from training.rows import read_lines

HEIGHT, WIDTH = 256, 1600
CLASSES = ("1", "2", "3", "4")
LABELS = {name: f"class_{name}" for name in CLASSES}  # they have no names
FILES = {"train": "train_label_train.csv", "validation": "train_label_val.csv", "test": "train_label_test.csv"}


def convert_severstal(
    source: Path,
    out: Path,
    *,
    images: Path | None = None,
    division: Path | None = None,
    test_share: float | None = None,
    link: bool = False,
    renamed: Mapping[str, str] | None = None,
) -> Converted:
    """Write the set as a folder in the data form.

    Args:
        source: the folder of `train.csv`.
        out: a folder that does not exist yet or is empty.
        images: folder of the images; None: `source/train_images`.
        division: folder of the three tables of the official division, whose images are taken; None: every image is
            taken, and a test part is drawn.
        test_share: of the images, where there is no division; None: `DRAWN_SHARE`.
        link: symbolic links in the place of copies.
        renamed: labels for the classes "1" to "4"; one that is not named becomes class_1 and so on.

    Raises:
        ValueError: a table is broken, tables disagree, an image is missing or of another size, a file among the images
            is none, or there is a share beside a division; the message names the file, and the row or image.
    """
    if division is not None and test_share is not None:
        raise ValueError(f"--test-share draws a test part, but --division {division} names the parts")
    labels = label_names(list(CLASSES), {**LABELS, **(renamed or {})})
    images = images or source / "train_images"
    table = source / "train.csv"
    masks, complete = read_masks(table)
    if division is None:
        files = _image_files(images)
        parts = draw_division([screen_name(file) for file in files], test_share=test_share)
    else:
        official = read_official(division)
        files = list(official)
        parts = division_of({screen_name(file): part for file, (part, _) in official.items()})
    refuse_twins((screen_name(file), file) for file in files)
    stranger = next(iter(masks.keys() - set(files)), None)
    if stranger is not None:
        raise ValueError(f"{table} names {stranger}, which is not in {division or images}")
    lost = next((file for file in files if complete and file not in masks), None)
    if lost is not None:
        raise ValueError(f"{table} has no row of {lost}: it has all four of an image, or none but those of defects")
    if division is not None:
        _refuse_disagreement(table, masks, official)

    def labelled(file: str) -> Labelled:
        runs = masks.get(file, {})
        return Labelled(
            name=screen_name(file),
            file=images / file,
            size=(HEIGHT, WIDTH),
            defects=lambda: [one for name, found in runs.items() for one in regions(*found.pixels(), labels[name])],
        )

    return write_form(out, [labelled(file) for file in files], parts, link=link)


def read_masks(table: Path) -> tuple[dict[str, dict[str, Runs]], bool]:
    """The masks of `train.csv` by image and class, and whether it has every image, with a row for each class.

    In the older layout (`ImageId_ClassId,EncodedPixels`) an image without a defect is there with no masks; the newer
    one (`ImageId,ClassId,EncodedPixels`) does not name it.

    Raises:
        ValueError: another header, no row, a row that is no such row or is there twice, or, in the older layout, an
            image without a row for each class; the message names the line.
    """
    header, lines = read_lines(table)
    older = set(header) == {"ImageId_ClassId", "EncodedPixels"}
    if not older and set(header) != {"ImageId", "ClassId", "EncodedPixels"}:
        raise ValueError(f"{table}: the header is neither ImageId_ClassId,EncodedPixels nor ImageId,ClassId,...")
    masks: dict[str, dict[str, Runs]] = {}
    seen: dict[str, set[str]] = {}
    for number, row, wrong in lines:
        try:
            if wrong:
                raise ValueError(wrong)
            file, _, name = row["ImageId_ClassId"].rpartition("_") if older else (row["ImageId"], "", row["ClassId"])
            if not file or name not in CLASSES:
                raise ValueError(f"{file or 'no image'} with the class {name!r}: {', '.join(CLASSES)}")
            if name in seen.setdefault(file, set()):
                raise ValueError(f"a second row for class {name} of {file}")
            seen[file].add(name)
            found = masks.setdefault(file, {})
            if row["EncodedPixels"].strip():
                found[name] = runs_of_pairs(row["EncodedPixels"], HEIGHT, WIDTH)
            elif not older:
                raise ValueError(f"{file} has no pixels of class {name}")
        except ValueError as error:
            raise ValueError(f"{table}, line {number}: {error}") from error
    if not seen:
        raise ValueError(f"{table} has no rows below its header")
    partial = next((file for file, names in seen.items() if len(names) < len(CLASSES)), None) if older else None
    if partial is not None:
        raise ValueError(f"{table} has {len(seen[partial])} of the {len(CLASSES)} rows of {partial}")
    return masks, older


def read_official(division: Path) -> dict[str, tuple[str, set[str]]]:
    """Part and classes of each image of the official division.

    Raises:
        ValueError: a table is missing or another, a row is broken, or an image is there twice.
    """
    official: dict[str, tuple[str, set[str]]] = {}
    for part, name in FILES.items():
        table = division / name
        if not table.is_file():
            raise ValueError(f"{table} is missing")
        for number, row, wrong in read_lines(table)[1]:
            if wrong or set(row) != {"img_names", *CLASSES} or not {row[c] for c in CLASSES} <= {"0", "1"}:
                raise ValueError(f"{table}, line {number}: not an image and four times 0 or 1 (img_names,1,2,3,4)")
            file = row["img_names"]
            if file in official:
                raise ValueError(f"{table}, line {number}: {file} is in the part {official[file][0]} already")
            official[file] = part, {c for c in CLASSES if row[c] == "1"}
    if not official:
        raise ValueError(f"{division} divides no image")
    return official


def _image_files(images: Path) -> list[str]:
    """The .jpg of a folder, in small or large letters; no other file is passed over but what systems leave there."""
    found = [path for path in sorted(images.glob("*")) if not path.name.startswith(".") and path.name != "Thumbs.db"]
    stranger = next((path for path in found if path.suffix.lower() != ".jpg"), None)
    if stranger is not None:
        raise ValueError(f"{stranger} is no .jpg, which all images of this set are")
    if not found:
        raise ValueError(f"{images} holds no .jpg")
    return [path.name for path in found]


def _refuse_disagreement(
    table: Path, masks: Mapping[str, Mapping[str, Runs]], official: Mapping[str, tuple[str, set[str]]]
) -> None:
    wrong = [file for file, (_, classes) in official.items() if classes != set(masks.get(file, ()))]
    if wrong:
        theirs, ours = sorted(official[wrong[0]][1]), sorted(masks.get(wrong[0], ()))
        raise ValueError(
            f"{table} has the classes {ours} on {wrong[0]}, the division has {theirs} (and {len(wrong) - 1} more)"
        )
