"""A report as one HTML file that opens offline: counts, findings, and little pictures of what was found."""

import base64
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from training.validation.findings import CHECKS, Check, Finding, Picture, Report

SHOWN = 24  # findings of a kind on the page, and as many pictures of a kind
SIDE_PX = 320
MARGIN = 3.0  # of a box, times its side, that is shown around it


@dataclass(frozen=True, slots=True)
class _Section:
    key: str
    check: Check
    findings: list[Finding]
    shown: list[dict[str, object]]


def write_page(report: Report, file: Path) -> None:
    """Write the page; the names in it come from the data and are escaped."""
    environment = Environment(
        loader=PackageLoader("training.validation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    columns = list(dict.fromkeys(column for count in report.counts.values() for column in count))
    text = environment.get_template("page.html").render(
        report=report,
        columns=columns,
        sections=[_section(key, findings) for key, findings in report.by_check().items()],
        when=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    )
    file.write_text(text, encoding="utf-8", errors="backslashreplace")  # a name of a file need not be UTF-8


def _section(key: str, findings: list[Finding]) -> _Section:
    left = SHOWN
    shown: list[dict[str, object]] = []
    for finding in findings[:SHOWN]:
        pictures = [{"caption": p.caption, "data": draw(p)} for p in finding.pictures[:left]]
        left -= len(pictures)
        shown.append({"text": finding.text, "pictures": pictures})
    return _Section(key, CHECKS[key], findings, shown)


def draw(picture: Picture) -> str:
    """The image in little as JPEG, base64, its box drawn with what lies around; empty where it cannot be decoded.

    What an incomplete file still shows is shown: that is what is looked for here.
    """
    try:
        image = cv2.imread(str(picture.file), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # of more pixels than it reads
        image = None
    if image is None:
        return ""
    if picture.box is not None:
        height, width = image.shape[:2]
        # a side that lies outside stays so, but not by more than can be drawn
        left, right = (min(max(side, -1), width + 1) for side in picture.box[::2])
        top, bottom = (min(max(side, -1), height + 1) for side in picture.box[1::2])
        thick = max(1, round(max(right - left, bottom - top) / 100))
        cv2.rectangle(image, (left, top), (right - 1, bottom - 1), (40, 40, 230), thick)
        image = image[_around(top, bottom, height), _around(left, right, width)]
    scale = min(SIDE_PX / max(image.shape[:2]), 4.0)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    _, data = cv2.imencode(".jpg", cv2.resize(image, size, interpolation=how), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return base64.b64encode(np.asarray(data).tobytes()).decode()


def _around(start: int, stop: int, length: int) -> slice:
    """The side of a box with what lies around it, within the image; at least 64 px, at most all."""
    extra = round(max((stop - start) * MARGIN, 64 - (stop - start)) / 2)
    low = min(max(start - extra, 0), max(length - 64, 0))
    return slice(low, max(min(stop + extra, length), low + 1))
