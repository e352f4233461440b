"""Do two ways of running a bundle agree, and does one hold at the extremes?

Measured on probabilities, the numbers that decide, and on activation maps, which say where.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.backend import Backend, infer
from engine.errors import ParityError
from engine.warmth import FLAT


class Difference(NamedTuple):
    """Largest and mean absolute difference of probability."""

    largest: float
    mean: float


def check_parity(
    backend: Backend,
    pixels: NDArray[np.uint8],
    expected: NDArray[np.float32],
    activation: NDArray[np.float32],
    *,
    tolerance: float,
    map_tolerance: float,
) -> Difference:
    """Compare a backend with the probabilities and the maps that it should give.

    Args:
        backend: a loaded bundle.
        pixels: (K, 1, P, P) patches, reasoned together.
        expected: (K, C) probabilities of the source.
        activation: (K, C, h, w) maps of the source.
        tolerance: largest absolute difference allowed of a probability.
        map_tolerance: largest difference allowed of a map, as a share of its label's range over all the patches: maps
            have no level of their own.

    Raises:
        ParityError: a larger difference, maps of another form, or a value that is not finite.
    """
    features, probability = infer(backend, pixels)
    if not np.isfinite(probability).all():
        raise ParityError("the exported graphs gave a probability that is not finite")
    gap = np.abs(probability.astype(np.float64) - expected)
    difference = Difference(float(gap.max()), float(gap.mean()))
    if not difference.largest <= tolerance:
        raise ParityError(
            f"the exported {backend.precision} graphs differ from their source by {difference.largest:.3g} in "
            f"probability, over the tolerance of {tolerance:.3g}"
        )
    moved = map_difference(features.activation, activation)
    if not moved <= map_tolerance:  # written so that NaN fails
        raise ParityError(
            f"the activation maps of the exported {backend.precision} graphs differ from their source by {moved:.3g} "
            f"of their range, over the tolerance of {map_tolerance:.3g}"
        )
    return difference


def map_difference(
    found: NDArray[np.float32], wanted: NDArray[np.float32], range_C: NDArray[np.float64] | None = None
) -> float:
    """The largest difference of maps (K, C, h, w), as a share of each label's range; of other forms NaN.

    Args:
        found: maps.
        wanted: that they should be.
        range_C: by label; None: that of its maps over all K.
    """
    if found.shape != wanted.shape:
        return float("nan")
    gap_C = np.abs(found.astype(np.float64) - wanted).max((0, 2, 3))
    return float((gap_C / np.maximum(range_of(wanted) if range_C is None else range_C, FLAT)).max())


def range_of(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """From the lowest to the highest value of each label's maps (K, C, h, w), over all K."""
    return np.asarray(np.ptp(maps.astype(np.float64), axis=(0, 2, 3)))


def extreme_patches(patch_px: int) -> NDArray[np.uint8]:
    """Patches that a camera gives when something is wrong: (E, 1, P, P) black, white, noise, saturated blocks, stripes.

    They drive a network's sums as far as pixels can: what overflows in half precision does so here.
    """
    rng = np.random.default_rng(0)
    row, column = np.indices((patch_px, patch_px))
    coarse, fine = max(patch_px // 4, 1), max(patch_px // 32, 1)
    patches = [
        np.zeros((patch_px, patch_px)),
        np.full((patch_px, patch_px), 255),
        rng.integers(0, 256, (patch_px, patch_px)),
        rng.integers(0, 2, (patch_px, patch_px)) * 255,
        *(((row // side + column // side) % 2) * 255 for side in (coarse, fine)),
        (column // 2 % 2) * 255,
        (row < coarse) * 255,
    ]
    return np.stack(patches).astype(np.uint8)[:, None]


def check_finite(backend: Backend) -> None:
    """Run the extreme patches, together as one screen.

    Raises:
        ParityError: a feature, a cosine, an activation or a probability is not finite.
    """
    features, probability = infer(backend, extreme_patches(backend.manifest.patch_px))
    outputs = {
        "label_features": features.label_features,
        "stage1": features.stage1,
        "activation": features.activation,
        "probability": probability,
    }
    for name, output in outputs.items():
        if not np.isfinite(output).all():
            raise ParityError(f"the {backend.precision} graph gives {name} that are not finite on extreme patches")
