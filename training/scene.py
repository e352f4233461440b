"""The screen under its lamp, without defects: panel, bezel, pixel lattice, light, reflections, dust.

All in linear light in grey levels, (H, W) float32. Every parameter is drawn anew for each screen, widely.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.defects import LOOK_ALIKES

_CELL_PX = 16  # illumination has no detail below this
_BAND_ROWS = 128
_FIXED = 16  # OpenCV draws with 4 fractional bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """`light` (H, W) float32; `panel` (H, W) uint8, 255 on the panel, or None where it fills the frame."""

    light: NDArray[np.float32]
    panel: NDArray[np.uint8] | None


def draw_scene(rng: np.random.Generator, *, height: int, width: int, base: float, dirt: float = 1.0) -> Scene:
    """A screen without defects whose panel has about the light `base`, and `dirt` times as much on it as usual."""
    light = _illumination(rng, height=height, width=width)
    light *= base
    _lattice(rng, light)
    panel = None
    if rng.random() < 0.55:
        panel = _housing(rng, light, base=base)
    _look_alikes(rng, light, panel, base=base, dirt=dirt)
    return Scene(light=light, panel=panel)


def _illumination(rng: np.random.Generator, *, height: int, width: int) -> NDArray[np.float32]:
    """Relative light (H, W), median about 1: uneven lamp, annular light, reflections."""
    rows, columns = height // _CELL_PX + 3, width // _CELL_PX + 3
    y = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / rows
    x = (np.arange(columns, dtype=np.float32)[None] + 0.5) / columns
    field = 1 + rng.uniform(0, 0.15) * _cloudy(rng, rows, columns)
    field += rng.uniform(-0.25, 0.25) * (x - 0.5) + rng.uniform(-0.25, 0.25) * (y - 0.5)
    ratio = height / width
    distance = np.hypot(x - rng.uniform(0.1, 0.9), ratio * (y - rng.uniform(0.1, 0.9)))
    field *= 1 - rng.uniform(0, 0.3) * np.clip(distance / np.hypot(1, ratio), 0, 1) ** 2
    if rng.random() < 0.6:
        ring_radius, ring_width = rng.uniform(0.15, 0.8), rng.uniform(0.06, 0.35)
        field += rng.uniform(-0.2, 0.5) * np.exp(-(((distance - ring_radius) / ring_width) ** 2))
    for _ in range(int(rng.integers(0, 6))):
        field += _reflection(rng, x, ratio * y, ratio=ratio)
    field /= max(float(np.median(field)), 0.2)
    np.clip(field, 0.25, 3.0, out=field)
    whole = cv2.resize(field.astype(np.float32), (columns * _CELL_PX, rows * _CELL_PX), interpolation=cv2.INTER_CUBIC)
    # the cells at the edges are extrapolated: leave them outside the frame
    return np.ascontiguousarray(whole[_CELL_PX : _CELL_PX + height, _CELL_PX : _CELL_PX + width])


def _cloudy(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    """Smooth noise (rows, columns) of three scales, unit height."""
    total = np.zeros((rows, columns), np.float32)
    for octave in range(3):
        knots = rng.normal(0, 0.6**octave, size=(3 * 2**octave, 2 * 2**octave)).astype(np.float32)
        total += cv2.resize(knots, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return total / max(float(np.abs(total).max()), 1e-6)


def _reflection(
    rng: np.random.Generator, x: NDArray[np.floating], y: NDArray[np.floating], *, ratio: float
) -> NDArray[np.float32]:
    """What the glass mirrors: a streak or an ellipse with soft edges; added to the relative light."""
    turn = rng.uniform(0, np.pi) if rng.random() < 0.5 else rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.05)
    dx, dy = x - rng.uniform(0, 1), y - rng.uniform(0, ratio)
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    long, short = rng.uniform(0.1, 1.2), rng.uniform(0.02, 0.25)
    reach = np.hypot(along / long, across / short)
    softness = rng.uniform(0.08, 0.5)
    plateau = 1 / (1 + np.exp(np.clip((reach - 1) / softness, -30, 30)))
    return np.asarray(rng.choice([1, 1, 1, -0.5]) * np.exp(rng.uniform(np.log(0.02), np.log(0.6))) * plateau)


def _lattice(rng: np.random.Generator, light: NDArray[np.float32]) -> None:
    """Modulate by the pixels of the display, in place: two axes, slightly turned; the camera makes moire."""
    if rng.random() < 0.15:
        return
    height, width = light.shape
    period = rng.uniform(2, 7)
    turn = rng.normal(0, 0.01) if rng.random() < 0.6 else 0.0
    amplitude = rng.uniform(0, 0.06) * np.array([1.0, rng.uniform(0, 1)])
    waves: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    for axis, strength in zip((turn, turn + np.pi / 2), amplitude, strict=True):
        frequency = 2 * np.pi / period
        u = frequency * np.cos(axis) * np.arange(width) + rng.uniform(0, 2 * np.pi)
        v = frequency * np.sin(axis) * np.arange(height)
        # cos(u + v) as two outer products: no cosine per pixel
        waves.append(((strength * np.cos(v)).astype(np.float32), np.cos(u).astype(np.float32)))
        waves.append(((-strength * np.sin(v)).astype(np.float32), np.sin(u).astype(np.float32)))
    for top in range(0, height, _BAND_ROWS):
        band = light[top : top + _BAND_ROWS]
        factor = np.ones_like(band)
        for down, over in waves:
            factor += down[top : top + len(band), None] * over
        band *= factor


def _housing(rng: np.random.Generator, light: NDArray[np.float32], *, base: float) -> NDArray[np.uint8]:
    """Put bezel and table around the panel, in place; gives the panel's mask (H, W)."""
    height, width = light.shape
    short = min(height, width)
    margins = rng.uniform(0, 0.12, size=4) * short * (rng.random(4) < 0.7)
    bezel = rng.uniform(0.003, 0.05, size=4) * short
    corner = rng.uniform(0.01, 0.09) * short
    turn = float(rng.normal(0, 0.004))
    low, high = margins[:2], np.array([width, height]) - margins[2:]
    body = _rounded(low, high, corner=corner + bezel.min(), turn=turn)
    glass = _rounded(low + bezel[:2], high - bezel[2:], corner=corner, turn=turn)
    panel = np.zeros((height, width), np.uint8)
    cv2.fillPoly(panel, [glass], 255, cv2.LINE_AA, shift=4)
    _cut_out(rng, panel, low + bezel[:2], high - bezel[2:])
    around = np.full((height, width), _table_level(rng, base), np.float32)
    frame = float(rng.uniform(0.15, 0.9) * base if rng.random() < 0.75 else rng.uniform(150, 235))
    cv2.fillPoly(around, [body], frame, cv2.LINE_8, shift=4)
    if rng.random() < 0.6:
        _glints(rng, around, [body, glass], frame=frame)
    grain = rng.normal(1, rng.uniform(0.005, 0.08), size=(_BAND_ROWS, width)).astype(np.float32)
    grain = np.asarray(cv2.GaussianBlur(grain, (0, 0), float(rng.uniform(0.4, 1.5))), np.float32)
    for top in range(0, height, _BAND_ROWS):
        band = light[top : top + _BAND_ROWS]
        share = panel[top : top + _BAND_ROWS].astype(np.float32) / 255
        outside = around[top : top + _BAND_ROWS] * np.roll(grain[: len(band)], int(rng.integers(width)), axis=1)
        band -= outside
        band *= share
        band += outside
    return np.where(panel == 255, panel, np.uint8(0))


def _table_level(rng: np.random.Generator, base: float) -> float:
    return float(rng.uniform(0.1, 0.8) * base if rng.random() < 0.5 else rng.uniform(2, 110))


def _rounded(low: NDArray[np.float64], high: NDArray[np.float64], *, corner: float, turn: float) -> NDArray[np.int32]:
    """Outline (n, 1, 2) in 1/16 pixel of a rectangle (x, y) with round corners, turned about its middle."""
    quarter = np.linspace(0, np.pi / 2, 24)
    corner = min(corner, float((high - low).min()) / 2)
    centres = [(high[0], high[1]), (low[0], high[1]), (low[0], low[1]), (high[0], low[1])]
    points = []
    for k, (x, y) in enumerate(centres):
        angle = quarter + k * np.pi / 2
        inwards = corner * np.array([-1 if x == high[0] else 1, -1 if y == high[1] else 1])
        points.append(np.array([x, y]) + inwards + corner * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    outline = np.concatenate(points)
    middle = (low + high) / 2
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.asarray(np.rint(((outline - middle) @ rotate + middle) * _FIXED), np.int32)[:, None]


def _cut_out(
    rng: np.random.Generator, panel: NDArray[np.uint8], low: NDArray[np.float64], high: NDArray[np.float64]
) -> None:
    """Take the camera out of the panel: a notch or a punch hole at its upper or lower end, or nothing."""
    kind = rng.choice(["notch", "punch hole", "none"], p=[0.3, 0.35, 0.35])
    if kind == "none":
        return
    across = high[0] - low[0]
    x = low[0] + across * rng.uniform(0.08, 0.92 if kind == "punch hole" else 0.5)
    inwards, y = (1, low[1]) if rng.random() < 0.7 else (-1, high[1])
    if kind == "punch hole":
        radius = across * rng.uniform(0.012, 0.04)
        y += inwards * radius * rng.uniform(1.6, 3)
        for centre in (x, x + 2.6 * radius)[: int(rng.integers(1, 3))]:
            place = (round(centre * _FIXED), round(y * _FIXED))
            cv2.circle(panel, place, round(radius * _FIXED), 0, -1, cv2.LINE_AA, shift=4)
        return
    half = np.array([across * rng.uniform(0.04, 0.2), across * rng.uniform(0.015, 0.05)])
    middle = np.array([low[0] + across / 2 + rng.normal(0, 2), y])
    notch = _rounded(middle - half, middle + half, corner=float(half.min()), turn=0.0)
    cv2.fillPoly(panel, [notch], 0, cv2.LINE_AA, shift=4)


def _glints(
    rng: np.random.Generator, around: NDArray[np.float32], outlines: list[NDArray[np.int32]], *, frame: float
) -> None:
    """Light on the edges of body and glass, uneven along them; drawn under the panel."""
    for outline in outlines:
        count = len(outline)
        peak = frame + np.exp(rng.uniform(np.log(5), np.log(180)))
        bright = np.clip(
            0.5 + 0.8 * np.cos(np.arange(count) / count * 2 * np.pi * rng.integers(1, 4) + rng.uniform(0, 6)),
            0,
            1,
        )
        thickness = int(rng.integers(1, 7))
        for k in range(count):
            ends = outline[k, 0].tolist(), outline[(k + 1) % count, 0].tolist()
            cv2.line(around, *ends, float(frame + bright[k] * (peak - frame)), thickness, cv2.LINE_8, shift=4)


def _look_alikes(
    rng: np.random.Generator,
    light: NDArray[np.float32],
    panel: NDArray[np.uint8] | None,
    *,
    base: float,
    dirt: float,
) -> None:
    """Lay dust, grease and broad reflections on the panel, in place."""
    height, width = light.shape
    dirt *= float(np.exp(rng.uniform(np.log(0.05), np.log(2.5)))) * height * width / 2**24
    expected = {"fibre": 4.0, "blob": 8.0, "soft_ring": 0.7, "fingerprint": 0.8}
    # strength as a share of the panel's light
    strength = {
        "fibre": (0.03, 0.5),
        "blob": (0.02, 0.15),
        "soft_ring": (0.02, 0.15),
        "fingerprint": (0.01, 0.05),
    }
    limit = int(0.8 * min(height, width))
    for kind, mean in expected.items():
        for _ in range(rng.poisson(mean * dirt)):
            shape = LOOK_ALIKES[kind](rng, limit)
            low, high = strength[kind]
            level = np.exp(rng.uniform(np.log(low), np.log(high))) * base * (1 if rng.random() < 0.75 else -1)
            top = int(rng.integers(-shape.shape[0] // 2, height - shape.shape[0] // 2))
            left = int(rng.integers(-shape.shape[1] // 2, width - shape.shape[1] // 2))
            rows = slice(max(top, 0), min(top + shape.shape[0], height))
            columns = slice(max(left, 0), min(left + shape.shape[1], width))
            shape = shape[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            if panel is not None:
                shape = shape * (panel[rows, columns] > 0)
            light[rows, columns] += np.float32(level) * shape
