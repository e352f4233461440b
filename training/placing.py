"""Where a defect stands on a screen and how strong it is there.

Strength is decided as the camera will show it: in multiples of the local noise (sensor, stripes of its gains,
lattice and dirt together) and in grey levels, never below a floor at which a person still sees the defect.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from training.defects import DEFECTS, Drawing
from training.scene import Scene
from training.sensor import Sensor
from training.truth import Defect

CONTRAST_FLOOR = {"bubble": 4.0, "pinhole": 8.0, "scratch": 5.0, "tin_ash": 8.0}
"""Lowest contrast of a defect's strongest pixel over the local noise; what is small needs more."""

GREY_FLOOR = 6.0
"""Lowest contrast of a defect's strongest pixel in grey levels."""

_LEAST_PIXELS = {"bubble": 40, "pinhole": 4, "scratch": 20, "tin_ash": 15}
_LEAST_SCRATCH_PX = 28  # a shorter one would be a pinhole
_LEAST_SPECKS = 10  # fewer would be pinholes
_TRIES = 60
_CELL_PX = 8  # of the map of places already taken


class Placer:
    """Puts defects on one scene, before the camera's noise; knows where there already is one."""

    def __init__(self, rng: np.random.Generator, scene: Scene, sensor: Sensor, faintest: float = 1.0) -> None:
        self._faintest = faintest  # times the floor that the faintest defect stands out
        self._rng = rng
        self._scene = scene
        self._sensor = sensor
        height, width = scene.light.shape
        self._limit_px = int(0.6 * min(height, width))
        self._taken = np.zeros((height // _CELL_PX + 1, width // _CELL_PX + 1), np.bool_)
        self._last_pinhole: tuple[int, int] | None = None

    def place(self, label: str) -> Defect | None:
        """Draw one defect where it can be seen, or None if no place was found."""
        for attempt in range(_TRIES):
            shape = DEFECTS[label](self._rng, self._limit_px)
            if self._sensor.blur_px > 0:
                peak = float(np.abs(shape).max())
                shape = np.asarray(cv2.GaussianBlur(shape, (0, 0), self._sensor.blur_px), np.float32)
                shape *= peak / max(float(np.abs(shape).max()), 1e-6)
            # a pinhole beside a pinhole is still two pinholes, not tin ash
            near = self._last_pinhole if label == "pinhole" and self._rng.random() < 0.25 else None
            defect = self._lay(label, shape, near=near, crowded=attempt > _TRIES // 2)
            if defect is not None:
                return defect
        return None

    def _lay(self, label: str, shape: Drawing, *, near: tuple[int, int] | None, crowded: bool) -> Defect | None:
        height, width = self._scene.light.shape
        if near is None:
            row, column = int(self._rng.integers(height)), int(self._rng.integers(width))
        else:
            row, column = (int(c + d) for c, d in zip(near, self._rng.normal(0, 70, size=2), strict=True))
        dense_rows, dense_columns = np.nonzero(np.abs(shape) > 0.02)
        rows, columns = dense_rows + row - shape.shape[0] // 2, dense_columns + column - shape.shape[1] // 2
        on = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        values, rows, columns = shape[dense_rows, dense_columns][on], rows[on], columns[on]
        if self._scene.panel is not None and len(rows):
            glass = self._scene.panel[rows, columns] > 0
            if glass.mean() < 0.6:
                return None
            values, rows, columns = values[glass], rows[glass], columns[glass]
        # cut off by the frame, what is left must still be the defect and not an unlit part of it
        if len(rows) < _LEAST_PIXELS[label] or np.abs(values).max() < 0.7:
            return None
        if not crowded and self._taken[rows // _CELL_PX, columns // _CELL_PX].mean() > 0.2:
            return None
        return self._add(label, values, rows.astype(np.int32), columns.astype(np.int32))

    def _add(
        self, label: str, values: NDArray[np.float32], rows: NDArray[np.int32], columns: NDArray[np.int32]
    ) -> Defect | None:
        """Choose the strength, add the defect to the light; None where it would not be seen."""
        light, sensor = self._scene.light, self._sensor
        under = light[rows, columns]
        level = float(np.median(under[np.abs(values) > 0.3]))
        middle = int(rows[len(rows) // 2]), int(columns[len(columns) // 2])
        noise = math.hypot(sensor.noise(level), sensor.stripes(level, *middle), self._texture(*middle))
        floor = max(CONTRAST_FLOOR[label] * noise, GREY_FLOOR)
        grey = float(sensor.grey(np.array([level], np.float32))[0])
        least = self._faintest * floor
        step = self._strength(least, grey)
        if step is None:
            return None
        amplitude = sensor.light(grey + step) - level
        changed = under + np.float32(amplitude) * values
        np.maximum(changed, 0, out=changed)
        difference = np.abs(sensor.grey(changed) - sensor.grey(under))
        peak = float(difference.max())
        visible = difference > max(0.25 * peak, 0.5 * floor)
        if peak < least or not _is_still(label, rows[visible], columns[visible]):
            return None
        light[rows, columns] = changed
        rows, columns = rows[visible], columns[visible]
        self._taken[rows // _CELL_PX, columns // _CELL_PX] = True
        if label == "pinhole":
            self._last_pinhole = int(rows[0]), int(columns[0])
        return Defect.of_pixels(label, rows, columns, contrast=peak / noise)

    def _strength(self, least: float, grey: float) -> float | None:
        """Signed grey levels of the strongest part, about log-uniform from `least` upwards."""
        room = {1: 235 - grey, -1: grey - self._sensor.offset - 1}
        polarity = 1 if self._rng.random() < (0.8 if grey < 40 else 0.5) else -1
        if room[polarity] < 1.1 * least:
            polarity = -polarity
        if room[polarity] < 1.1 * least:
            return None
        strongest = max(room[polarity] * float(self._rng.uniform(0.3, 0.9)), 1.1 * least)
        weakest = 1.02 * least
        return polarity * weakest * float((strongest / weakest) ** (self._rng.random() ** 0.8))

    def _texture(self, row: int, column: int) -> float:
        """Grey-level sigma of lattice and dirt about a place, noise apart."""
        top, left = max(row - 32, 0), max(column - 32, 0)
        crop = self._sensor.grey(self._scene.light[top : top + 64, left : left + 64])
        detail = crop - cv2.blur(crop, (15, 15))
        return float(1.4826 * np.median(np.abs(detail)))


def _is_still(label: str, rows: NDArray[np.signedinteger], columns: NDArray[np.signedinteger]) -> bool:
    """Whether these pixels alone are enough for a person to give them the label and no other."""
    if len(rows) < _LEAST_PIXELS[label]:
        return False
    if label == "scratch":
        return bool(max(np.ptp(rows), np.ptp(columns)) >= _LEAST_SCRATCH_PX)
    if label == "tin_ash":
        drawn = np.zeros((np.ptp(rows) + 1, np.ptp(columns) + 1), np.uint8)
        drawn[rows - rows.min(), columns - columns.min()] = 1
        regions, _ = cv2.connectedComponents(drawn, connectivity=8)
        return regions - 1 >= _LEAST_SPECKS
    return True
