"""The line-scan camera: blur, gains of lines and columns, noise, tone curve, eight bits.

Light is linear and measured in grey levels: 255 is the full range of the converter before the tone curve.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.defects import log_uniform

_BAND_ROWS = 128  # a band of every array in use stays in the second-level cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """One camera: `row_gain` (H,), `column_gain` (W,), noise and tone.

    `shot_ratio` is the variance per grey level of light (255 over the full well); `read_noise` and `offset`
    are grey levels; `blur_px` is the optics' sigma.
    """

    row_gain: NDArray[np.float32]
    column_gain: NDArray[np.float32]
    blur_px: float
    shot_ratio: float
    read_noise: float
    gamma: float
    offset: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, height: int, width: int) -> "Sensor":
        """A camera from the range of cameras that a line may have."""
        return cls(
            row_gain=_row_gain(rng, height),
            column_gain=_column_gain(rng, width),
            blur_px=float(rng.uniform(0.3, 1.2)) if rng.random() < 0.7 else 0.0,
            shot_ratio=255.0 / log_uniform(rng, 3_000, 60_000),
            read_noise=log_uniform(rng, 0.3, 3.0),
            gamma=float(rng.uniform(0.7, 1.4)) if rng.random() < 0.4 else 1.0,
            offset=float(rng.uniform(0, 6)),
        )

    def grey(self, light: NDArray[np.float32]) -> NDArray[np.float32]:
        """Grey levels of light without gains and noise, any shape; not rounded, clipped to 0-255."""
        return np.clip(255 * (np.maximum(light, 0) / 255) ** self.gamma + self.offset, 0, 255)

    def light(self, grey: float) -> float:
        """The light that `grey` gives this grey level."""
        return float(255 * (max(grey - self.offset, 0.0) / 255) ** (1 / self.gamma))

    def noise(self, light: float) -> float:
        """Sigma in grey levels of the noise at a level of light, rounding included."""
        sigma = float(np.sqrt(self.shot_ratio * max(light, 0.0) + self.read_noise**2))
        step = sigma + 0.5
        below = max(light - step, 0.0)
        slope = float(np.diff(self.grey(np.array([below, light + step], np.float32)))[0]) / (light + step - below)
        return float(np.hypot(sigma * slope, 12**-0.5))

    def stripes(self, light: float, row: int, column: int) -> float:
        """Sigma in grey levels of the lines and columns that the gains draw about a place at a level of light."""
        relative = float(np.hypot(_detail(self.row_gain, row), _detail(self.column_gain, column)))
        low, high = self.grey(np.array([light, light * (1 + relative)], np.float32))
        return float(high - low)

    def blur(self, light: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blur (H, W) in place by the optics."""
        if self.blur_px > 0:
            side = 2 * int(np.ceil(3 * self.blur_px)) + 1
            cv2.GaussianBlur(light, (side, side), self.blur_px, dst=light, borderType=cv2.BORDER_REFLECT)
        return light

    def expose(self, light: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
        """The frame (H, W) that the camera reads; `light` (H, W), already blurred, is overwritten."""
        frame = np.empty(light.shape, np.uint8)
        noise = np.empty((_BAND_ROWS, light.shape[1]), np.float32)
        sigma = np.empty_like(noise)
        for top in range(0, len(light), _BAND_ROWS):
            band = light[top : top + _BAND_ROWS]
            drawn, spread = noise[: len(band)], sigma[: len(band)]
            band *= self.row_gain[top : top + _BAND_ROWS, None]
            band *= self.column_gain
            np.maximum(band, 0, out=band)
            np.multiply(band, self.shot_ratio, out=spread)
            spread += self.read_noise**2
            np.sqrt(spread, out=spread)
            rng.standard_normal(dtype=np.float32, out=drawn)
            drawn *= spread
            band += drawn
            if self.gamma != 1.0:
                np.maximum(band, 0, out=band)
                band /= 255
                cv2.pow(band, self.gamma, dst=band)
                band *= 255
            band += self.offset
            np.rint(band, out=band)
            np.clip(band, 0, 255, out=band)
            frame[top : top + _BAND_ROWS] = band
        return frame


def _row_gain(rng: np.random.Generator, height: int) -> NDArray[np.float32]:
    """The lamp's flicker from line to line, correlated, and its slow drift down the frame."""
    steps = rng.standard_normal(height)
    memory = rng.uniform(0, 0.97)
    flicker = np.empty(height)
    value = 0.0
    for row, step in enumerate(steps):
        value = memory * value + step
        flicker[row] = value
    flicker *= rng.uniform(0, 0.015) * np.sqrt(1 - memory**2)
    return (1 + flicker + rng.uniform(0, 0.04) * _slow(rng, height)).astype(np.float32)


def _column_gain(rng: np.random.Generator, width: int) -> NDArray[np.float32]:
    """Fixed gain of each camera column: slow, random, a few outliers, sometimes steps between taps."""
    gain = 1 + rng.uniform(0, 0.08) * _slow(rng, width) + rng.uniform(0, 0.012) * rng.standard_normal(width)
    outliers = rng.integers(0, width, size=rng.poisson(1.5))
    gain[outliers] += rng.normal(0, 0.03, size=len(outliers))
    if rng.random() < 0.25:
        taps = int(rng.choice([2, 4, 8]))
        gain += np.repeat(rng.normal(0, 0.006, size=taps), -(-width // taps))[:width]
    return gain.astype(np.float32)


def _detail(gain: NDArray[np.float32], place: int) -> float:
    """Sigma of a gain (n,) about a place, its slow course apart."""
    near = gain[max(place - 32, 0) : place + 32][None]
    return float(np.std(near - cv2.blur(near, (15, 1))))


def _slow(rng: np.random.Generator, length: int) -> NDArray[np.float64]:
    """A slowly varying curve (length,) of about unit height."""
    knots = int(rng.integers(3, 9))
    return np.interp(np.linspace(0, 1, length), np.linspace(0, 1, knots), rng.normal(0, 0.6, size=knots))
