"""The four defects and what looks like them, each drawn alone on a small array.

A drawing is (h, w) float32 with zero for "nothing here": its strongest part is about 1, parts of the other
polarity are negative. Where it stands on a screen and how strong it is there is decided in `placing`. The
defects follow Zhou et al. 2023: bubble, pinhole, scratch, tin ash.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Drawing = NDArray[np.float32]

LABELS = ("bubble", "pinhole", "scratch", "tin_ash")


class Polar(NamedTuple):
    """Offsets from the centre of a square array, in pixels: distance and angle, each (n, n)."""

    radius: NDArray[np.float32]
    angle: NDArray[np.float32]


def bubble(rng: np.random.Generator, limit_px: int) -> Drawing:
    """A ring with a soft rim, whole or in part, sometimes with a filled interior, fringes or a highlight."""
    radius = min(log_uniform(rng, 30, 400), limit_px) / 2
    # thin rims on small bubbles, a wider range on large ones; broad soft rings are reflections, not bubbles
    rim = log_uniform(rng, 0.9, max(1.6, min(0.06 * radius, 5.0)))
    polar = _polar(int(2 * radius * 1.25 + 8 * rim) + 5)
    edge = radius * _outline(rng, polar.angle, aspect=1.25, wobble=0.03)
    outward = polar.radius - edge
    softness = np.where(outward < 0, rim * rng.uniform(1.0, 2.5), rim).astype(np.float32)
    ring = np.exp(-0.5 * (outward / softness) ** 2)
    ring *= _around(rng, polar.angle, partial=0.35)
    shape = ring
    inside = _step(-outward, rim)
    kind = rng.random()
    if kind < 0.45:  # the pocket changes the reflection of the whole interior, more towards its rim or its middle
        depth = np.clip(polar.radius / edge, 0, 1)
        profile = depth**2 if rng.random() < 0.5 else 1 - 0.7 * depth**2
        shape = shape + float(rng.uniform(-0.5, 0.6)) * inside * profile * (1 - np.clip(ring, 0, 1))
    elif kind < 0.6:  # interference fringes
        rings = np.cos(2 * np.pi * float(rng.uniform(1.5, 4)) * (polar.radius / edge) ** 2)
        shape = shape + float(rng.uniform(0.15, 0.4)) * inside * rings * (1 - np.clip(ring, 0, 1))
    if rng.random() < 0.2:  # a second, weaker rim outside
        shape = shape - float(rng.uniform(0.2, 0.5)) * np.exp(-0.5 * ((outward - 3 * rim) / rim) ** 2)
    if rng.random() < 0.35:
        shape = shape + float(rng.uniform(0.5, 1.2)) * _highlight(rng, polar, radius)
    return _float32(shape)


def pinhole(rng: np.random.Generator, limit_px: int) -> Drawing:
    """A small sharp dot, roundish, sometimes with a faint halo or a thin opposite ring."""
    radius = min(log_uniform(rng, 3, 14), limit_px) / 2
    polar = _polar(int(2 * radius * 4) + 9, centre=rng.uniform(-0.5, 0.5, size=2))
    edge = radius * _outline(rng, polar.angle, aspect=1.35, wobble=0.06)
    outward = polar.radius - edge
    shape = _step(-outward, float(rng.uniform(0.35, 0.8)))
    if rng.random() < 0.3:
        shape = np.maximum(shape, rng.uniform(0.1, 0.3) * np.exp(-np.maximum(outward, 0) / (0.7 * radius)))
    elif rng.random() < 0.2:
        shape -= rng.uniform(0.15, 0.4) * np.exp(-0.5 * ((outward - 1.5) / 0.8) ** 2)
    return _float32(shape)


def scratch(rng: np.random.Generator, limit_px: int) -> Drawing:
    """A thin line or curve of varying strength that fades, breaks off and goes on."""
    length = min(log_uniform(rng, 30, 3000), 1.2 * limit_px)
    step = float(np.clip(length / 60, 3, 12))
    count = max(int(length / step), 6)
    points = _path(rng, count, step=step)
    strength = _strength(rng, count)
    width = float(np.clip(log_uniform(rng, 0.8, 3.6), 0.8, 0.8 + length / 40))
    canvas = _strokes([(points, strength)], width)
    if rng.random() < 0.2:  # a second edge of the same tool beside it
        along = points[-1] - points[0]
        shift = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1.0)
        shift *= rng.choice([-1, 1]) * rng.uniform(width + 2, 12)
        part = slice(int(rng.integers(0, count // 3)), int(rng.integers(count // 2, count)))
        second = strength[part] * float(rng.uniform(0.3, 0.9))
        canvas = _strokes([(points, strength), (points[part] + shift, second)], width)
    if rng.random() < 0.2:  # a groove: one flank lit, the other in shade
        shade = np.roll(canvas, tuple(rng.choice([-1, 1], size=2) * max(1, round(width / 2))), axis=(0, 1))
        canvas = canvas - float(rng.uniform(0.3, 0.8)) * shade * (canvas < 0.2)
    return canvas


def tin_ash(rng: np.random.Generator, limit_px: int) -> Drawing:
    """A cloud of irregular specks, denser in places; a part of it looks like pinholes."""
    extent = min(log_uniform(rng, 70, 500), limit_px)
    wanted = log_uniform(rng, max(12, extent / 8), 150)  # sparser would be pinholes
    count = int(np.clip(wanted, 12, max(12, extent**2 / 150)))
    side = int(extent) + 13
    positions = _cloud(rng, count, extent)
    shape = np.zeros((side, side), np.float32)
    largest = float(rng.uniform(2.0, 6.0))
    mixed = rng.random() < 0.1
    for x, y in positions + side / 2:
        diameter = log_uniform(rng, 1.0, largest)
        polarity = -1.0 if mixed and rng.random() < 0.4 else 1.0
        _speck(rng, shape, (x, y), radius=diameter / 2, strength=polarity * float(rng.uniform(0.5, 1.0)))
    if rng.random() < 0.25:  # the finest dust cannot be resolved
        haze = cv2.GaussianBlur(np.abs(shape), (0, 0), 0.06 * extent + 2)
        shape += float(rng.uniform(0.05, 0.15)) * haze / max(float(haze.max()), 1e-6)
    return shape


DEFECTS: dict[str, Callable[[np.random.Generator, int], Drawing]] = {
    "bubble": bubble,
    "pinhole": pinhole,
    "scratch": scratch,
    "tin_ash": tin_ash,
}


def fibre(rng: np.random.Generator, limit_px: int) -> Drawing:
    """A lint of dust that lies on the glass: curled, soft, even along its length; no defect."""
    length = min(log_uniform(rng, 40, 300), limit_px)
    count = max(int(length / 4), 8)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(_smooth(rng, count, knots=5) * rng.uniform(6, 14) / count)
    heading += np.linspace(0, rng.choice([-1, 1]) * rng.uniform(1.0, 3.0), count)  # more would close to a bubble
    points = np.cumsum(4 * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
    canvas = _strokes([(points, np.ones(count))], float(rng.uniform(2, 4)))
    return _float32(cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(1.0, 2.2))))


def blob(rng: np.random.Generator, limit_px: int) -> Drawing:
    """A soft grain of dust or a drop's trace, out of focus; no defect."""
    radius = min(rng.uniform(26, 70), limit_px) / 2  # smaller would be a pinhole
    polar = _polar(int(4 * radius) + 5)
    edge = radius * _outline(rng, polar.angle, aspect=1.8, wobble=0.04)
    return _float32(np.exp(-1.4 * (polar.radius / edge) ** 2))


def soft_ring(rng: np.random.Generator, limit_px: int) -> Drawing:
    """The reflection of a lamp or a lens: a ring much broader and softer than a bubble's rim; no defect."""
    radius = min(log_uniform(rng, 120, 600), 0.8 * limit_px) / 2
    width = radius * float(rng.uniform(0.2, 0.35))
    polar = _polar(int(2 * radius * 1.3 + 6 * width))
    edge = radius * _outline(rng, polar.angle, aspect=1.3, wobble=0.0)
    ring = np.exp(-0.5 * ((polar.radius - edge) / width) ** 2)
    return _float32(ring * _around(rng, polar.angle, partial=0.3))


def fingerprint(rng: np.random.Generator, limit_px: int) -> Drawing:
    """Ridges of a finger's grease, or its smear without ridges; no defect."""
    side = int(min(rng.uniform(150, 420), limit_px))
    polar = _polar(side)
    edge = 0.38 * side * _outline(rng, polar.angle, aspect=1.5, wobble=0.06)
    envelope = np.clip(1.1 - (polar.radius / edge) ** 2, 0, 1) ** 1.5
    warp = cv2.resize(rng.normal(0, 1, size=(5, 5)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        return _float32(envelope * np.clip(0.5 + 0.4 * warp, 0, 1))
    x = np.arange(side, dtype=np.float32) - side * float(rng.uniform(-0.2, 1.2))
    core = np.hypot(x[None], 0.7 * (x[:, None] + float(rng.uniform(-40, 40))))
    ridges = 0.5 + 0.5 * np.cos(2 * np.pi * core / float(rng.uniform(9, 18)) + 2.5 * warp)
    return _float32(envelope * ridges * np.clip(0.7 + 0.3 * warp, 0, 1))


LOOK_ALIKES: dict[str, Callable[[np.random.Generator, int], Drawing]] = {
    "fibre": fibre,
    "blob": blob,
    "soft_ring": soft_ring,
    "fingerprint": fingerprint,
}


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between `low` and `high` whose logarithm is uniform: as often from 1 to 10 as from 10 to 100."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _polar(side: int, *, centre: NDArray[np.float64] | None = None) -> Polar:
    offset = (0.0, 0.0) if centre is None else (float(centre[0]), float(centre[1]))
    axis = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
    x, y = axis[None] - offset[0], axis[:, None] - offset[1]
    return Polar(np.hypot(x, y).astype(np.float32), np.arctan2(y, x).astype(np.float32))


def _outline(
    rng: np.random.Generator, angle: NDArray[np.float32], *, aspect: float, wobble: float
) -> NDArray[np.float32]:
    """Radius over angle of a slightly elliptical, slightly irregular circle; 1 on average."""
    squeeze = float(rng.uniform(1, aspect))
    turn = float(rng.uniform(0, np.pi))
    outline = 1 / np.sqrt(squeeze * np.cos(angle - turn) ** 2 + np.sin(angle - turn) ** 2 / squeeze)
    for order in (3, 4, 5):
        outline *= 1 + float(rng.normal(0, wobble / (order - 1))) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return _float32(outline)


def _around(rng: np.random.Generator, angle: NDArray[np.float32], *, partial: float) -> NDArray[np.float32]:
    """Strength of a ring over its angle, brighter on one side; with the probability `partial` only an arc."""
    side = float(rng.uniform(0, 2 * np.pi))
    strength = 1 - float(rng.uniform(0, 0.35)) * (1 - np.cos(angle - side))
    if rng.random() < partial:
        half_arc = float(rng.uniform(1.4, 2.6))  # less would be a curved scratch
        away = np.abs((angle - side + np.pi) % (2 * np.pi) - np.pi)
        strength = strength * _step(half_arc - away, 0.12)
    return _float32(strength)


def _highlight(rng: np.random.Generator, polar: Polar, radius: float) -> NDArray[np.float32]:
    """The lamp mirrored in a bubble: a small crescent near one side."""
    side = float(rng.uniform(0, 2 * np.pi))
    away = (polar.angle - side + np.pi) % (2 * np.pi) - np.pi
    along = away * radius * 0.7
    across = polar.radius - radius * float(rng.uniform(0.5, 0.85))
    length, width = radius * float(rng.uniform(0.12, 0.35)), max(1.0, radius * float(rng.uniform(0.03, 0.08)))
    return _float32(np.exp(-0.5 * ((along / length) ** 2 + (across / width) ** 2)))


def _path(rng: np.random.Generator, count: int, *, step: float) -> NDArray[np.float64]:
    """Points (count, 2) of a scratch: straight, an arc, a wave or a few bends."""
    heading = np.full(count, rng.uniform(0, 2 * np.pi))
    kind = rng.random()
    if kind < 0.4:
        heading += np.linspace(0, np.clip(rng.normal(0, 0.6), -1, 1), count)  # more would be a part of a bubble
    elif kind < 0.7:
        heading += 0.35 * _smooth(rng, count, knots=int(rng.integers(4, 8)))
    elif kind < 0.85:
        for bend in rng.integers(1, count, size=int(rng.integers(1, 4))):
            heading[bend:] += rng.normal(0, 0.6)
    heading += rng.normal(0, 0.04, size=count)
    return np.cumsum(step * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)


def _strength(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Strength (count,) along a scratch, 0-1: uneven, fading at its ends, sometimes interrupted."""
    uneven = 1 - rng.uniform(0, 0.6) * np.clip(0.5 + 0.5 * _smooth(rng, count, knots=9), 0, 1)
    uneven *= 1 - rng.uniform(0, 0.3) * rng.random(count)
    along = np.linspace(0, 1, count)
    fade = rng.uniform(0.02, 0.4, size=2)
    uneven *= np.clip(along / fade[0], 0.15, 1) * np.clip((1 - along) / fade[1], 0.15, 1)
    if rng.random() < 0.4:
        for start in rng.integers(0, count, size=int(rng.integers(1, 5))):
            uneven[start : start + max(1, int(count * rng.uniform(0.02, 0.12)))] = 0
    return np.asarray(uneven / max(uneven.max(), 1e-6))


def _strokes(strokes: list[tuple[NDArray[np.float64], NDArray[np.float64]]], width: float) -> Drawing:
    """Draw lines about `width` pixels wide; a stroke is its points (n, 2) and its strength at each (n,)."""
    corner = np.min([points.min(axis=0) for points, _ in strokes], axis=0) - 8
    extent = np.max([points.max(axis=0) for points, _ in strokes], axis=0) - corner + 8
    canvas = np.zeros((int(extent[1]) + 1, int(extent[0]) + 1), np.uint8)
    thickness = max(1, round(width))
    for points, strength in strokes:
        fixed = np.rint((points - corner) * 16).astype(int).tolist()
        for k in range(len(fixed) - 1):
            level = round(255 * float(strength[k]))
            if level > 0:
                cv2.line(canvas, fixed[k], fixed[k + 1], level, thickness, cv2.LINE_AA, shift=4)
    return np.multiply(canvas, 1 / 255, dtype=np.float32)


def _cloud(rng: np.random.Generator, count: int, extent: float) -> NDArray[np.float64]:
    """Positions (count, 2) about the origin: a few clusters in an ellipse and stragglers over all of it."""
    spread = extent / 2 * np.array([1.0, rng.uniform(0.45, 1.0)])
    centres = rng.normal(0, 0.35, size=(int(rng.integers(1, 5)), 2))
    widths = rng.uniform(0.1, 0.4, size=len(centres))
    which = rng.integers(0, len(centres), size=count)
    positions = centres[which] + rng.normal(0, 1, size=(count, 2)) * widths[which, None]
    stray = rng.random(count) < 0.25
    positions[stray] = rng.uniform(-1, 1, size=(int(stray.sum()), 2))
    positions /= np.maximum(1, np.hypot(positions[:, 0], positions[:, 1]) / rng.uniform(0.6, 1, size=count))[:, None]
    turn = rng.uniform(0, np.pi)
    rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.asarray((positions * spread) @ rotate.T)


def _speck(
    rng: np.random.Generator,
    shape: Drawing,
    centre: tuple[float, float],
    *,
    radius: float,
    strength: float,
) -> None:
    """Put one irregular speck on `shape`; the stronger of what is there and the new one stays."""
    half = int(radius * 1.6) + 2
    left, top = int(centre[0]) - half, int(centre[1]) - half
    x = np.arange(left, left + 2 * half + 1)[None] - centre[0]
    y = np.arange(top, top + 2 * half + 1)[:, None] - centre[1]
    turn, squeeze = rng.uniform(0, np.pi), rng.uniform(1, 1.8)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    grain = strength * _step(radius - np.hypot(u / np.sqrt(squeeze), v * np.sqrt(squeeze)), 0.4)
    rows = slice(max(top, 0), min(top + 2 * half + 1, shape.shape[0]))
    columns = slice(max(left, 0), min(left + 2 * half + 1, shape.shape[1]))
    grain = grain[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    there = shape[rows, columns]
    np.copyto(there, grain, where=np.abs(grain) > np.abs(there), casting="same_kind")


def _step(inwards: NDArray[np.floating], softness: float) -> NDArray[np.float32]:
    """0 outside, 1 inside, with an edge about `softness` wide."""
    return _float32(1 / (1 + np.exp(-np.clip(inwards / (0.6 * softness), -30, 30))))


def _smooth(rng: np.random.Generator, count: int, *, knots: int) -> NDArray[np.float64]:
    """A smooth random curve (count,) of about unit height."""
    values = rng.normal(0, 1, size=(1, knots)).astype(np.float32)
    return np.asarray(cv2.resize(values, (count, 1), interpolation=cv2.INTER_CUBIC)[0], np.float64)


def _float32(values: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)
