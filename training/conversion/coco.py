"""COCO's object annotations in the data form: what labelling tools export (CVAT, Label Studio, Roboflow and others).

Taken: `images` (id, file_name, width, height), `categories` (id, name) and `annotations` (id, image_id, category_id,
bbox [x, y, width, height], segmentation). An image without an annotation is a screen without a defect.

- A segmentation, polygons or run lengths, compressed or not, becomes the defect's mask, and its pixels decide the box;
  several polygons of one annotation add up. A pixel belongs to a polygon where its centre lies inside (even-odd); one
  that is thinner than that has the pixels that its outline runs through.
- Without one, the box is the bbox, outwards to whole pixels. It may leave its image by one pixel, as tools round;
  that pixel is cut off.
- `iscrowd` is taken as any other annotation: there is that defect, and some tools set it on every mask.
- `area`, which is what the mask or the box has, and keys that are not named here are not read.

Refused, naming the annotation: ids that are there twice or lead nowhere, boxes without area or beyond their image, a
mask without a pixel, of another size or with counts that do not fill it, polygons of fewer than three points.
"""

from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from training.conversion.form import (
    Converted,
    Division,
    Labelled,
    division_of,
    draw_division,
    read_division,
    refuse_twins,
    write_form,
)
from training.conversion.names import label_names, screen_name
from training.conversion.polygons import ROUNDING_PX, polygon_pixels
from training.conversion.runs import runs_of_counts, unpack_counts
from training.truth import PARTS, Defect

Id = int | str


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
    test_share: float = 0.1,
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
        test_share: of the images, where it is drawn.
        link: symbolic links in the place of copies.
        renamed: labels for categories; one that is not named becomes a label by the rule of `label_name`.

    Raises:
        ValueError: a file is not of this form, or holds what is refused; the message names the file and the place.
    """
    files = {path: read_coco(path) for path in sources}
    used = [name for path, coco in files.items() for name in _used_categories(path, coco)]
    labels = label_names(list(dict.fromkeys(used)), renamed or {})
    screens = [
        screen for path, coco in files.items() for screen in _labelled(path, coco, images or path.parent, labels)
    ]
    if not screens:
        raise ValueError(f"{', '.join(map(str, files))}: no image")
    refuse_twins((screen.name, str(screen.file)) for screen in screens)
    return write_form(out, screens, _divide(sources, files, screens, splits, test_share), link=link)


def read_coco(path: Path) -> Coco:
    """An annotation file whose ids are there once each and lead somewhere.

    Raises:
        ValueError: it is no such file.
    """
    try:
        coco = Coco.model_validate_json(path.read_bytes().removeprefix(BOM_UTF8))
    except ValidationError as error:
        # of a segmentation, which has two forms, the one that was meant is told from furthest inside
        place, said = max(((one["loc"], one["msg"]) for one in error.errors()), key=lambda told: len(told[0]))
        raise ValueError(f"{path}: {'.'.join(map(str, place)) or 'no annotations'}: {said}") from error
    for key, entries in (("images", coco.images), ("categories", coco.categories), ("annotations", coco.annotations)):
        seen: set[Id] = set()
        for entry in entries:
            if entry.id in seen:
                raise ValueError(f"{path}: the id {entry.id} is there twice among {key}")
            seen.add(entry.id)
    image_ids, category_ids = {image.id for image in coco.images}, {category.id for category in coco.categories}
    for one in coco.annotations:
        if one.image_id not in image_ids:
            raise ValueError(f"{path}: annotation {one.id!r} is of image {one.image_id!r}, which is not there")
        if one.category_id not in category_ids:
            raise ValueError(f"{path}: annotation {one.id!r} is of category {one.category_id!r}, which is not there")
    return coco


def defect_of(annotation: Annotation, label: str, height: int, width: int) -> Defect:
    """What an annotation of an image (height, width) shows, with its pixels where it has a segmentation.

    Raises:
        ValueError: it has neither box nor segmentation, or one that does not fit; the message does not name it.
    """
    found = annotation.segmentation
    if isinstance(found, RunLengths):
        if found.size != (height, width):
            raise ValueError(f"a mask of {found.size[1]} x {found.size[0]}, but the image has {width} x {height} px")
        counts = unpack_counts(found.counts) if isinstance(found.counts, str) else found.counts
        rows, columns = runs_of_counts(counts, height, width).pixels()
    elif found:
        rows, columns = polygon_pixels(found, height, width)
    elif annotation.bbox is not None:
        left, top, right, bottom = _outward(annotation.bbox, height, width)
        return Defect(label=label, left=left, top=top, right=right, bottom=bottom)
    else:
        raise ValueError("neither bbox nor segmentation")
    if not len(rows):
        raise ValueError("a mask without a pixel")
    return Defect.of_pixels(label, rows, columns)


def _outward(bbox: tuple[float, float, float, float], height: int, width: int) -> tuple[int, int, int, int]:
    x, y, wide, high = bbox
    if wide <= 0 or high <= 0:
        raise ValueError(f"a box of {wide:g} x {high:g} px")
    if min(x, y) < -ROUNDING_PX or x + wide > width + ROUNDING_PX or y + high > height + ROUNDING_PX:
        raise ValueError(f"the box {x:g}, {y:g}, {wide:g}, {high:g} leaves the image of {width} x {height} px")
    if x + wide <= 0 or y + high <= 0 or x >= width or y >= height:
        raise ValueError(f"the box {x:g}, {y:g}, {wide:g}, {high:g} lies beside the image of {width} x {height} px")
    edges = np.array([x, y, x + wide, y + high]).round(3)  # sums of decimals end a little beyond
    left, top = np.floor(edges[:2]).astype(int).clip(0, [width - 1, height - 1])
    right, bottom = np.ceil(edges[2:]).astype(int).clip([left + 1, top + 1], [width, height])
    return int(left), int(top), int(right), int(bottom)


def _used_categories(path: Path, coco: Coco) -> list[str]:
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
            found = []
            for annotation in on_image.get(image.id, []):
                try:
                    label = label_of[annotation.category_id]
                    found.append(defect_of(annotation, label, image.height, image.width))
                except ValueError as error:
                    raise ValueError(f"{path}: annotation {annotation.id} on {image.file_name}: {error}") from error
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
    test_share: float,
) -> Division:
    named = [part for part in sources.values() if part is not None]
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
