"""The picture of a verdict that people look at: the overlay, and close-ups of the defects beside it.

The close-ups are cut from the frame at its own resolution, for a pinhole is a dot on no overlay. They share the colours
of `service.overlay`, and each is stretched to the full range of grey by itself.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from service.overlay import BACKGROUND, FONT, INK, MARGIN_PX, TAG_SCALE, colours_of, draw
from service.verdict import Box, Defect, Verdict

TILE_PX = 256
LEAST_SIDE_PX = 128  # of the frame: a closer look shows nothing but pixels
ROOM = 1.5  # a tile shows its box and half as much around it
LEAST_RANGE = 24  # grey levels: what varies less is not stretched, or noise would look like something
COLUMNS = 2
TAG_PX = 20

Grey = NDArray[np.uint8]


def write(path: Path, frame: Grey, verdict: Verdict) -> None:
    """Draw into a PNG file, whatever its name ends with.

    Args:
        path: of the file.
        frame: (H, W) grey, as it was inspected.
        verdict: what was answered for it.

    Raises:
        OSError: it cannot be written.
    """
    overlay = draw(frame, verdict)
    picture = np.concatenate([overlay, closeups(frame, verdict, len(overlay))], axis=1)
    _, encoded = cv2.imencode(".png", picture)
    path.write_bytes(encoded.tobytes())


def closeups(frame: Grey, verdict: Verdict, height: int) -> Grey:
    """Tiles of the surest defects of each label in turn, in columns beside a picture of this height.

    Args:
        frame: (H, W) grey, as it was inspected.
        verdict: what was answered for it.
        height: pixels, that of the picture.

    Returns:
        (height, w, 3) BGR; w is 0 where there is no defect.
    """
    rows = max(1, height // (TILE_PX + MARGIN_PX))
    shown = list(islice(_in_turn(verdict), rows * COLUMNS))
    columns = [shown[start : start + rows] for start in range(0, len(shown), rows)]
    strip = np.full((height, len(columns) * (TILE_PX + MARGIN_PX), 3), BACKGROUND, np.uint8)
    colours = colours_of(verdict)
    for x, defects in enumerate(columns):
        for y, defect in enumerate(defects):
            top, left = y * (TILE_PX + MARGIN_PX), x * (TILE_PX + MARGIN_PX) + MARGIN_PX
            tile = _tile(frame, defect, colours[defect.label])[: height - top]
            strip[top : top + TILE_PX, left : left + TILE_PX] = tile
    return strip


def _in_turn(verdict: Verdict) -> Iterator[Defect]:
    """The surest of each label, then the second of each, and so on; a verdict has its defects in that order."""
    by_label: Sequence[list[Defect]] = [[d for d in verdict.defects if d.label == label] for label in verdict.labels]
    return (defect for defect in chain.from_iterable(zip_longest(*by_label)) if defect is not None)


def _tile(frame: Grey, defect: Defect, colour: tuple[int, int, int]) -> Grey:
    """A square (T, T, 3) with the defect in its middle and its label on top."""
    left, top, side = _square(defect.box, frame.shape)
    cut = frame[top : top + side, left : left + side]
    grow = cv2.INTER_AREA if side > TILE_PX else cv2.INTER_LINEAR
    shape = max(1, round(TILE_PX * cut.shape[1] / side)), max(1, round(TILE_PX * cut.shape[0] / side))
    tile = np.full((TILE_PX, TILE_PX, 3), BACKGROUND, np.uint8)
    tile[: shape[1], : shape[0]] = cv2.resize(_stretched(cut), shape, interpolation=grow)[:, :, None]
    cv2.rectangle(tile, (0, 0), (TILE_PX - 1, TILE_PX - 1), colour, 2)
    cv2.rectangle(tile, (0, 0), (TILE_PX - 1, TAG_PX), colour, cv2.FILLED)
    text = f"{defect.label} {defect.score:.2f}  {side} px"
    cv2.putText(tile, text, (4, TAG_PX - 5), FONT, TAG_SCALE, INK, 1, cv2.LINE_AA)
    return tile


def _square(box: Box, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Left, top and side of the square around a box, moved into the frame where it can be."""
    side = max(LEAST_SIDE_PX, round(ROOM * max(box.right - box.left, box.bottom - box.top)))
    centre = (box.left + box.right) // 2, (box.top + box.bottom) // 2
    left, top = (
        max(0, min(middle - side // 2, length - side))
        for middle, length in zip(centre, (shape[1], shape[0]), strict=True)
    )
    return left, top, side


def _stretched(grey: Grey) -> Grey:
    """From its darkest to its brightest, but for a few pixels that would decide alone."""
    low, high = (float(level) for level in np.percentile(grey, (0.5, 99.8)))
    middle, reach = (low + high) / 2, max(high - low, LEAST_RANGE) / 2
    bright = (grey.astype(np.float32) - (middle - reach)) * (255 / (2 * reach))
    return np.asarray(np.clip(bright, 0, 255), np.uint8)
