"""COCO's object annotations in the data form: what labelling tools export (CVAT, Label Studio, Roboflow and others).

Taken: `images` (id, file_name, width, height), `categories` (id, name) and `annotations` (id, image_id, category_id,
bbox [x, y, width, height], segmentation). An image without an annotation is a screen without a defect.

- A segmentation, polygons or run lengths, compressed or not, becomes a mask, and its pixels decide the box; several
  polygons of one annotation add up. A pixel belongs to a polygon where its centre lies inside (even-odd); where one is
  thinner than that it has the pixels that its outline runs through. Each connected region of an annotation's mask
  becomes one defect, gaps of a few pixels and specks aside (`training.conversion.regions`). A polygon without a point,
  `[[]]`, is none.
- Without one, the box is the bbox, outwards to whole pixels. It may leave its image by one pixel, as tools round;
  that pixel is cut off.
- A bbox that CVAT has turned (`attributes.rotation`, degrees, clockwise about its centre) becomes a mask of the turned
  box, of which the image may cut something off, as CVAT lets it.
- Beside a segmentation, a bbox that was not turned has to be its box, give or take two pixels within the image.
- `iscrowd` is taken as any other annotation: there is that defect, and some tools set it on every mask.
- `area`, which is what the mask or the box has, and keys that are not named here are not read.

Refused, naming the annotation: ids that are there twice or lead nowhere, boxes without area, of less than a pixel (in
fractions of the image) or beyond their image, a mask without a pixel, of another size or with counts that do not fill
it, polygons of fewer than three points. A key that an object has twice is refused, too: the last would silently count.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from training.conversion.form import Converted, Labelled, faulty, refuse_twins, write_form
from training.conversion.names import IMAGE_SUFFIXES, label_names, screen_name
from training.conversion.polygons import ROUNDING_PX, polygon_pixels, turned_corners
from training.conversion.regions import regions
from training.conversion.runs import runs_of_counts, unpack_counts
from training.membership import Division, division_of, draw_division, read_division
from training.truth import PARTS, Defect

OFF_PX = 2.0  # by which the bbox beside a segmentation may differ from it: tools round, or count the last pixel or not

Id = int | str
Box = tuple[float, float, float, float]
KINDS = {"images": "image", "categories": "category", "annotations": "annotation"}


class Image(BaseModel):
    """One of `images`."""

    id: Id
    file_name: str
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]


class Category(BaseModel):
    """One of `categories`."""

    id: Id
    name: str


class RunLengths(BaseModel):
    """A mask as counts, compressed where they are a text; `size` is (height, width)."""

    size: tuple[int, int]
    counts: str | list[int]


class Annotation(BaseModel):
    """One of `annotations`."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    segmentation: list[list[FiniteFloat]] | RunLengths | None = None
    attributes: object = None  # a tool's own


class Coco(BaseModel):
    """The file."""

    images: list[Image]
    categories: list[Category]
    annotations: list[Annotation]


def convert_coco(
    sources: Mapping[Path, str | None],
    out: Path,
    *,
    images: Path | None = None,
    splits: Path | None = None,
    test_share: float | None = None,
    link: bool = False,
    renamed: Mapping[str, str] | None = None,
) -> Converted:
    """Write annotation files as one folder in the data form.

    Args:
        sources: annotation files, each with the part that all of its images are in, or None.
        out: a folder that does not exist yet or is empty.
        images: folder that `file_name` counts from; None: that of each annotation file.
        splits: where no file names its part, a table that says which screen is in which part or fold, see
            `read_division`; None: a test part is drawn.
        test_share: of the images, where it is drawn; None: `DRAWN_SHARE`.
        link: symbolic links in the place of copies.
        renamed: labels for categories; one that is not named becomes a label by the rule of `label_name`.

    Raises:
        ValueError: a file is not of this form, or holds what is refused; the message names the file and the place, see
            `faulty`.
    """
    files = {path: read_coco(path) for path in sources}
    used = dict.fromkeys(name for coco in files.values() for name in _used_categories(coco))
    there = {category.name for coco in files.values() for category in coco.categories}
    labels = label_names([*used], renamed or {}, unused=there - used.keys())
    screens = [
        screen for path, coco in files.items() for screen in _labelled(path, coco, images or path.parent, labels)
    ]
    if not screens:
        raise ValueError(f"{', '.join(map(str, files))}: no image")
    refuse_twins((screen.name, str(screen.file)) for screen in screens)
    division = _divide(sources, files, screens, splits, test_share)
    unnamed = _count_unnamed(screens, images)
    return replace(write_form(out, screens, division, link=link), unnamed=unnamed)


def read_coco(path: Path) -> Coco:
    """An annotation file whose ids are there once each and lead somewhere.

    Raises:
        ValueError: it is no such file.
    """
    try:
        told = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        coco = Coco.model_validate(told)
    except ValidationError as error:
        raise faulty([f"{path}: {fault}" for fault in _misshapen(told, error)]) from error
    for key, entries in (("images", coco.images), ("categories", coco.categories), ("annotations", coco.annotations)):
        again = [one for one, count in Counter(entry.id for entry in entries).items() if count > 1]
        if again:
            raise faulty([f"{path}: the id {one} is there twice among {key}" for one in again])
    image_ids, category_ids = {image.id for image in coco.images}, {category.id for category in coco.categories}
    faults = []
    for one in coco.annotations:
        if one.image_id not in image_ids:
            faults.append(f"{path}: annotation {one.id!r} is of image {one.image_id!r}, which is not there")
        elif one.category_id not in category_ids:
            faults.append(f"{path}: annotation {one.id!r} is of category {one.category_id!r}, which is not there")
    if faults:
        raise faulty(faults)
    return coco


def defects_of(annotation: Annotation, label: str, height: int, width: int) -> list[Defect]:
    """What an annotation of an image (height, width) shows, with its pixels where it has a segmentation.

    Raises:
        ValueError: it has neither box nor segmentation, or one that does not fit; the message does not name it.
    """
    found, bbox, degrees = annotation.segmentation, annotation.bbox, _turn(annotation.attributes)
    if isinstance(found, list):
        found = [polygon for polygon in found if polygon]
    if isinstance(found, RunLengths):
        if found.size != (height, width):
            raise ValueError(f"a mask of {found.size[1]} x {found.size[0]}, but the image has {width} x {height} px")
        counts = unpack_counts(found.counts) if isinstance(found.counts, str) else found.counts
        rows, columns = runs_of_counts(counts, height, width).pixels()
    elif found:
        rows, columns = polygon_pixels(found, height, width)
    elif bbox is None:
        raise ValueError("neither bbox nor segmentation")
    elif degrees:
        rows, columns = _turned_pixels(bbox, degrees, height, width)
    else:
        left, top, right, bottom = _outward(bbox, height, width)
        return [Defect(label=label, left=left, top=top, right=right, bottom=bottom)]
    if not len(rows):
        raise ValueError("a mask without a pixel")
    if found:
        edges = _edges(found, Defect.of_pixels(label, rows, columns))
        if isinstance(found, list) and max(edges) <= 1 and max(edges[2] - edges[0], edges[3] - edges[1]) < 1:
            raise ValueError("a polygon of less than a pixel at the corner: fractions of the image?")
        if bbox is not None and not degrees:  # of a turned one the bbox is what it was before
            _refuse_another(bbox, edges, height, width)
    return regions(rows, columns, label)


def _turn(attributes: object) -> float:
    """The degrees by which CVAT turned a box; a text, or yes or no, is an attribute of the user's own."""
    degrees = attributes.get("rotation", 0) if isinstance(attributes, dict) else 0
    if isinstance(degrees, bool) or not isinstance(degrees, int | float):
        return 0.0
    if not abs(degrees) < math.inf:  # nor where it is no number
        raise ValueError(f"a rotation of {degrees} degrees")
    return float(degrees % 360)


def _turned_pixels(bbox: Box, degrees: float, height: int, width: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    x, y, wide, high = bbox
    _refuse_no_area(bbox)
    if not (0 <= x + wide / 2 <= width and 0 <= y + high / 2 <= height):
        raise ValueError(f"the centre of the box {_told(bbox)} lies beside the image of {width} x {height} px")
    return polygon_pixels([turned_corners(bbox, degrees)], height, width, cut=True)


def _edges(found: list[list[float]] | RunLengths, defect: Defect) -> Box:
    """Of a segmentation; of polygons those that were drawn, as a tip may be too thin for a pixel."""
    if isinstance(found, RunLengths):
        return defect.box
    across, down = [x for one in found for x in one[::2]], [y for one in found for y in one[1::2]]
    return min(across), min(down), max(across), max(down)


def _refuse_another(bbox: Box, edges: Box, height: int, width: int) -> None:
    """Refuse a bbox that is not that of these edges; both within the image, as tools cut off the one or the other."""
    x, y, wide, high = bbox
    size = [width, height, width, height]
    if np.abs(np.clip([x, y, x + wide, y + high], 0, size) - np.clip(edges, 0, size)).max() > OFF_PX:
        left, top, right, bottom = edges
        theirs = _told((left, top, right - left, bottom - top))
        raise ValueError(
            f"the box {_told(bbox)} is not that of its segmentation, {theirs}: drawn elsewhere, or counted row by row?"
        )


def _refuse_no_area(bbox: Box) -> None:
    wide, high = bbox[2:]
    if wide <= 0 or high <= 0:
        raise ValueError(f"a box of {wide:g} x {high:g} px")
    if wide < 1 and high < 1:
        raise ValueError(f"a box of {wide:g} x {high:g} px: fractions of the image?")


def _told(bbox: Box) -> str:
    return ", ".join(f"{value:g}" for value in bbox)


def _outward(bbox: Box, height: int, width: int) -> tuple[int, int, int, int]:
    x, y, wide, high = bbox
    _refuse_no_area(bbox)
    if min(x, y) < -ROUNDING_PX or x + wide > width + ROUNDING_PX or y + high > height + ROUNDING_PX:
        raise ValueError(f"the box {_told(bbox)} leaves the image of {width} x {height} px")
    if x + wide <= 0 or y + high <= 0 or x >= width or y >= height:
        raise ValueError(f"the box {_told(bbox)} lies beside the image of {width} x {height} px")
    edges = np.array([x, y, x + wide, y + high]).round(3)  # sums of decimals end a little beyond
    left, top = np.floor(edges[:2]).astype(int).clip(0, [width - 1, height - 1])
    right, bottom = np.ceil(edges[2:]).astype(int).clip([left + 1, top + 1], [width, height])
    return int(left), int(top), int(right), int(bottom)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of the file, which has each of its keys once."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        again = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        whose = f" where the id is {entry['id']!r}" if "id" in entry else ""
        raise ValueError(f"the key {again!r} is there twice{whose}")
    return entry


def _misshapen(told: object, error: ValidationError) -> Iterable[str]:
    """What does not have the form of an annotation file, once for each entry."""
    furthest: dict[tuple[int | str, ...], tuple[tuple[int | str, ...], str]] = {}
    for one in error.errors(include_url=False, include_input=False):
        # of a segmentation, which has two forms, the one that was meant is told from furthest inside
        place, kept = one["loc"], furthest.get(one["loc"][:2])
        if kept is None or len(place) > len(kept[0]):
            furthest[place[:2]] = place, one["msg"]
    for place, said in furthest.values():
        whose = ""
        if isinstance(told, dict) and len(place) > 1 and isinstance(place[1], int):
            entry = told[place[0]][place[1]]
            if isinstance(entry, dict) and isinstance(entry.get("id"), Id):
                whose = f"{KINDS[str(place[0])]} {entry['id']!r}: "
        yield f"{whose}{'.'.join(map(str, place)) or 'no annotations'}: {said}"


def _count_unnamed(screens: Sequence[Labelled], images: Path | None) -> dict[str, int]:
    """By folder the images that no annotation file names: below `images`, else beside those that are named."""
    named = {screen.file for screen in screens}
    roots = {screen.file.parent for screen in screens} if images is None else {images}
    found = {root: root.glob("*") if images is None else root.rglob("*") for root in sorted(roots)}
    counts = {
        str(root): sum(
            path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path not in named
            for path in paths
        )
        for root, paths in found.items()
    }
    return {root: count for root, count in counts.items() if count}


def _used_categories(coco: Coco) -> list[str]:
    """Names of the categories that an annotation has: tools export some that stand for nothing."""
    used = {annotation.category_id for annotation in coco.annotations}
    return [category.name for category in coco.categories if category.id in used]


def _labelled(path: Path, coco: Coco, folder: Path, labels: Mapping[str, str]) -> list[Labelled]:
    label_of = {category.id: labels.get(category.name, "") for category in coco.categories}
    on_image: dict[Id, list[Annotation]] = {}
    for annotation in coco.annotations:
        on_image.setdefault(annotation.image_id, []).append(annotation)

    def labelled(image: Image) -> Labelled:
        def defects() -> list[Defect]:
            found: list[Defect] = []
            faults: list[str] = []
            for annotation in on_image.get(image.id, []):
                try:
                    label = label_of[annotation.category_id]
                    found += defects_of(annotation, label, image.height, image.width)
                except ValueError as error:
                    faults.append(f"{path}: annotation {annotation.id} on {image.file_name}: {error}")
            if faults:
                raise ValueError("\n".join(faults))
            return found

        name = screen_name(image.file_name)
        file = folder / image.file_name.replace("\\", "/")
        return Labelled(name=name, file=file, size=(image.height, image.width), defects=defects)

    return [labelled(image) for image in coco.images]


def _divide(
    sources: Mapping[Path, str | None],
    files: Mapping[Path, Coco],
    screens: Sequence[Labelled],
    splits: Path | None,
    test_share: float | None,
) -> Division:
    named = [part for part in sources.values() if part is not None]
    if test_share is not None and (named or splits is not None):
        raise ValueError("--test-share draws a test part, but the parts are named already")
    if not named:
        names = [screen.name for screen in screens]
        return draw_division(names, test_share=test_share) if splits is None else read_division(splits, names)
    if len(named) < len(sources) or splits is not None:
        raise ValueError("the part is named for every annotation file, or for none and then --splits may name it")
    unknown = next((part for part in named if part not in PARTS), None)
    if unknown is not None:
        raise ValueError(f"unknown part {unknown!r}: {', '.join(PARTS)}")
    part_of = {screen_name(i.file_name): str(sources[path]) for path, coco in files.items() for i in coco.images}
    return division_of(part_of)
