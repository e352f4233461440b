"""What pictures for people share: crops, heat over grey, outlines, words and tiles. numpy, OpenCV and Pillow only.

A picture is (h, w, 3) uint8 RGB, or (h, w) where it is grey.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive

# tell apart on grey, and for most colour-blind readers (after Okabe and Ito 2008)
FOR, STRONGLY_FOR, AGAINST, TRUTH = (240, 150, 0), (225, 20, 0), (0, 114, 200), (0, 220, 150)
INK, PAPER, BACKGROUND, QUIET = (0, 0, 0), (255, 255, 255), (32, 32, 32), (170, 170, 170)
FRAME = (110, 110, 110)
WORDS_PX = 14  # size of words
LINE_PX = 4  # between two lines of them
EDGE_PX = 6  # left and right of words
BAR_PX = 12  # of a scale of colours


def coloured(grey: Picture) -> Picture:
    """A grey picture as an RGB one."""
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)


def stretched(grey: Picture) -> Picture:
    """More contrast: nearly all of its grey levels over the whole range, so that what is faint is seen."""
    low, high = np.percentile(grey, (0.5, 99.5))
    return np.asarray(np.clip((grey - low) * (255 / max(high - low, 16)), 0, 255), np.uint8)


def crop(picture: Picture, row: int, column: int, side: int) -> tuple[Picture, int, int]:
    """A square around a pixel, moved inwards at the borders; it, its first row and its first column."""
    top = min(max(row - side // 2, 0), max(picture.shape[0] - side, 0))
    left = min(max(column - side // 2, 0), max(picture.shape[1] - side, 0))
    return picture[top : top + side, left : left + side].copy(), top, left


def tiles(pictures: Sequence[Picture], columns: int) -> Picture:
    """Pictures of one size, grey or coloured, in rows of `columns`, each in a thin frame."""
    framed = [cv2.copyMakeBorder(one, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=FRAME) for one in pictures]
    framed += [np.full_like(framed[0], BACKGROUND[0])] * (-len(framed) % columns)
    rows = [np.hstack(framed[first : first + columns]) for first in range(0, len(framed), columns)]
    return np.asarray(np.vstack(rows), np.uint8)


def over_pixels(part: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """A map (h, w) over so many rows and columns of pixels: smooth between cells, in the middle of each its own value.

    Between pixels that lie further apart than cells, or beside their middles, a single cell would be lost.
    """
    over = np.asarray(cv2.resize(part, shape[::-1], interpolation=cv2.INTER_LINEAR), np.float64)
    row, column = (
        ((np.arange(cells) + 0.5) * pixels / cells).astype(int) for cells, pixels in zip(part.shape, shape, strict=True)
    )
    by_strength = np.unravel_index(np.argsort(np.abs(part), axis=None), part.shape)  # the last of a pixel's cells stays
    over[row[by_strength[0]], column[by_strength[1]]] = part[by_strength]
    return over


def heated(picture: Picture, heat: NDArray[np.float64]) -> Picture:
    """Heat over a picture, both (h, w): from 0 to 1 orange to red, from 0 to -1 blue, 0 leaves it as it is."""
    warm = np.clip(heat, 0, 1)[..., None]
    colour = np.where(heat[..., None] < 0, AGAINST, (1 - warm) * np.array(FOR) + warm * np.array(STRONGLY_FOR))
    cover = 0.75 * np.abs(heat)[..., None] ** 0.7  # the faint is lifted a little, or only the strongest cell is seen
    return np.asarray(np.clip((1 - cover) * picture + cover * colour, 0, 255), np.uint8)


def outline(picture: Picture, box: Rectangle, colour: Colour) -> None:
    """Draw a rectangle around a box: dark around bright shows on any grey."""
    left, top, right, bottom = box
    for line, thickness in ((INK, 3), (colour, 1)):
        cv2.rectangle(picture, (left - 2, top - 2), (right + 1, bottom + 1), line, thickness)


def outline_cells(picture: Picture, cells: NDArray[np.bool_], colour: Colour) -> None:
    """Draw the outline of a region (h, w) of a picture of the same size."""
    contours, _ = cv2.findContours(cells.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for line, thickness in ((INK, 3), (colour, 1)):
        cv2.drawContours(picture, contours, -1, line, thickness)


def words(lines: Sequence[tuple[str, Colour]], width: int, *, size: int = WORDS_PX) -> Picture:
    """A strip of `width` pixels with one line of words under the other, each in its colour; too long a line is cut."""
    font = ImageFont.load_default(size)
    row = size + 2 * LINE_PX
    strip = Image.new("RGB", (width, row * len(lines) + LINE_PX), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for number, (text, colour) in enumerate(lines):
        draw.text((EDGE_PX, LINE_PX + number * row), text, fill=colour, font=font)
    return np.asarray(strip, np.uint8)


def wrapped(text: str, width: int) -> list[str]:
    """Words in lines that a strip of `width` pixels shows whole, but for a single word that is wider."""
    font = ImageFont.load_default(WORDS_PX)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 2 * EDGE_PX:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def colour_bar(width: int, most: float, unit: str) -> Picture:
    """What the colours of `heated` stand for: a bar over `width` pixels, under it its numbers, under these their unit.

    Args:
        width: of the strip.
        most: what has full colour; against the label it is as much below 0.
        unit: of the numbers, in words.
    """
    heat = np.tile(np.linspace(-1, 1, width), (BAR_PX, 1))
    bar = heated(np.full((BAR_PX, width, 3), BACKGROUND, np.uint8), heat)
    bar[:, width // 2] = PAPER
    strip = Image.new("RGB", (width, 2 * (WORDS_PX + LINE_PX) + LINE_PX), BACKGROUND)
    draw, font, middle = ImageDraw.Draw(strip), ImageFont.load_default(WORDS_PX), width // 2
    for x, text, anchor in ((0, f"-{most:.2g}", "la"), (middle, "0", "ma"), (width, f"+{most:.2g}", "ra")):
        draw.text((x, LINE_PX), text, fill=QUIET, font=font, anchor=anchor)
    draw.text((middle, LINE_PX + WORDS_PX + LINE_PX), unit, fill=QUIET, font=font, anchor="ma")
    return np.vstack([bar, np.asarray(strip, np.uint8)])


def write(path: Path, picture: Picture) -> None:
    """Write a picture, in the format that its name ends with.

    Raises:
        ValueError: no picture's name ends like that.
        OSError: it cannot be written.
    """
    Image.fromarray(picture).save(path, quality=90)
