"""A picture of a verdict: the frame made small, a box and a name for each defect, a legend on top.

For people who look at doubtful screens; nothing is decided from it. Boxes of defects that would shrink
to a dot are drawn large enough to be seen, so a drawn box is never smaller than the real one.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from service.verdict import Defect, Verdict

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive

LONGEST_PX = 1600
LEAST_WIDTH_PX = 640  # room for the legend's words
LEAST_BOX_PX = 16
ROW_PX = 28
MARGIN_PX = 8
BRIGHT = 160  # grey level that nearly all of a dark frame stays below when it is shown
LEAST_BRIGHTER, MOST_BRIGHTER = 2.0, 8.0
FONT = cv2.FONT_HERSHEY_SIMPLEX
LEGEND_SCALE, TAG_SCALE = 0.55, 0.45

# BGR; the labels' colours tell apart on grey and for most colour-blind readers (after Okabe and Ito 2008)
LABEL_COLOURS: tuple[Colour, ...] = (
    (233, 180, 86),
    (0, 159, 230),
    (66, 228, 240),
    (167, 121, 204),
    (115, 158, 0),
    (0, 94, 213),
)
VERDICT_COLOURS: dict[str, Colour] = {"pass": (90, 160, 60), "review": (0, 165, 235), "fail": (50, 50, 215)}
INK, PAPER, BACKGROUND = (0, 0, 0), (255, 255, 255), (32, 32, 32)


def draw(frame: NDArray[np.uint8], verdict: Verdict) -> NDArray[np.uint8]:
    """The verdict's defects on a small colour copy of its frame, under a legend.

    Args:
        frame: (H, W) grey, as it was inspected.
        verdict: what was answered for it.

    Returns:
        (h, w, 3) BGR, at most 1600 pixels of frame in its longer side.
    """
    height, width = frame.shape
    scale = min(1.0, LONGEST_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small, brighter = _brightened(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
    picture = np.asarray(cv2.cvtColor(small, cv2.COLOR_GRAY2BGR), np.uint8)
    if size[0] < LEAST_WIDTH_PX:
        picture = np.pad(picture, ((0, 0), (0, LEAST_WIDTH_PX - size[0]), (0, 0)), constant_values=BACKGROUND[0])
    colours = colours_of(verdict)
    boxes = [_on_picture(defect, scale, size) for defect in verdict.defects]
    for defect, box in zip(verdict.defects, boxes, strict=True):
        _outline(picture, box, colours[defect.label])
    tags: list[Rectangle] = []
    # the surest defects get the best places for their names
    for defect, box in sorted(zip(verdict.defects, boxes, strict=True), key=lambda pair: -pair[0].score):
        _tag(picture, defect, box, colours[defect.label], tags)
    legend = _legend(picture.shape[1], frame.shape, verdict, brighter)
    return np.concatenate([legend, picture])


def colours_of(verdict: Verdict) -> dict[str, Colour]:
    """The colour of each label."""
    return {label: LABEL_COLOURS[index % len(LABEL_COLOURS)] for index, label in enumerate(verdict.labels)}


def _brightened(grey: NDArray[Any]) -> tuple[NDArray[np.uint8], float]:
    """A frame that is nearly black, such as of a dark field, as many times brighter as people need to see it."""
    times = min(MOST_BRIGHTER, BRIGHT / max(1.0, float(np.percentile(grey, 99)))) if grey.size else 1.0
    if times < LEAST_BRIGHTER:
        return np.asarray(grey, np.uint8), 1.0
    return np.asarray(cv2.convertScaleAbs(grey, alpha=times), np.uint8), times


def _on_picture(defect: Defect, scale: float, size: tuple[int, int]) -> Rectangle:
    """The defect's box in pixels of the picture of `size` (width, height), grown to be seen."""
    box = defect.box
    left, right = _grown(box.left * scale, box.right * scale, size[0])
    top, bottom = _grown(box.top * scale, box.bottom * scale, size[1])
    return left, top, right, bottom


def _grown(low: float, high: float, limit: int) -> tuple[int, int]:
    """At least `LEAST_BOX_PX` long, and inside the picture: at an edge it grows inwards."""
    lack = max(0.0, LEAST_BOX_PX - (high - low)) / 2
    first, last = int(np.floor(low - lack)), int(np.ceil(high + lack))
    inwards = max(0, -first) - max(0, last - limit)
    return max(0, first + inwards), min(limit, last + inwards)


def _outline(picture: NDArray[np.uint8], box: Rectangle, colour: Colour) -> None:
    left, top, right, bottom = box
    for line, thickness in ((INK, 4), (colour, 2)):  # dark around bright shows on any grey
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), line, thickness)


def _tag(picture: NDArray[np.uint8], defect: Defect, box: Rectangle, colour: Colour, tags: list[Rectangle]) -> None:
    """Write the defect's name where no other name is; where all places are taken its colour names it."""
    text = f"{defect.label} {defect.score:.2f}"
    (width, height), _ = cv2.getTextSize(text, FONT, TAG_SCALE, 1)
    places = _places(box, width + 6, height + 8, picture.shape[:2])
    place = next((place for place in places if not any(_meet(place, tag) for tag in tags)), None)
    if place is None:
        return
    tags.append(place)
    left, top, right, bottom = place
    cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), colour, cv2.FILLED)
    cv2.putText(picture, text, (left + 3, bottom - 5), FONT, TAG_SCALE, INK, 1, cv2.LINE_AA)


def _places(box: Rectangle, width: int, height: int, size: tuple[int, int]) -> Iterator[Rectangle]:
    """Places for a tag, the best first: above, below and beside its box where the picture has room, then in it."""
    left, top, right, bottom = box
    for x, y in ((left, top - height), (left, bottom), (right, top), (left - width, top)):
        place = _moved_in(x, y, width, height, size)
        if not _meet(place, box):
            yield place
    yield _moved_in(left, top, width, height, size)


def _moved_in(x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Rectangle:
    """A tag at (x, y), moved until it lies in the picture of `size` (height, width)."""
    x, y = min(max(0, x), max(0, size[1] - width)), min(max(0, y), max(0, size[0] - height))
    return x, y, x + width, y + height


def _meet(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _legend(width: int, frame_shape: tuple[int, ...], verdict: Verdict, brighter: float) -> NDArray[np.uint8]:
    """A strip of `width` pixels: the verdict and its reasons, then one row for each label."""
    colours = colours_of(verdict)
    strip = np.full((ROW_PX * (len(colours) + 1) + MARGIN_PX, width, 3), BACKGROUND, np.uint8)
    word = verdict.verdict.upper()
    (word_width, _), _ = cv2.getTextSize(word, FONT, LEGEND_SCALE, 2)
    end = MARGIN_PX * 3 + word_width
    cv2.rectangle(strip, (MARGIN_PX, 5), (end, ROW_PX), VERDICT_COLOURS[verdict.verdict], cv2.FILLED)
    cv2.putText(strip, word, (2 * MARGIN_PX, ROW_PX - 7), FONT, LEGEND_SCALE, PAPER, 2, cv2.LINE_AA)
    facts = [verdict.screen_id, f"{frame_shape[1]} x {frame_shape[0]}", *verdict.reasons]
    if brighter > 1:
        facts.append(f"shown {brighter:.1f} times brighter")
    _write(strip, "  ".join(facts), end + 2 * MARGIN_PX, ROW_PX - 7)
    for row, (label, found) in enumerate(verdict.labels.items(), start=2):
        baseline = row * ROW_PX - 7
        cv2.rectangle(strip, (MARGIN_PX, baseline - 12), (3 * MARGIN_PX, baseline + 2), colours[label], cv2.FILLED)
        count = f"{found.count} defect{'' if found.count == 1 else 's'}"
        _write(strip, f"{label}   {found.score:.3f}   {count}", 4 * MARGIN_PX, baseline)
    return strip


def _write(strip: NDArray[np.uint8], text: str, left: int, baseline: int) -> None:
    cv2.putText(strip, text, (left, baseline), FONT, LEGEND_SCALE, PAPER, 1, cv2.LINE_AA)
