"""Does a score depend on the patch's place in the batch? Measured, not assumed.

A compiled plan may take another kernel, or another order of sums, for another row of a batch: TensorRT has answered
identical inputs of one batch differently. The spread becomes the guard band of a plan.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from engine.backend import Backend, Features
from engine.parity import extreme_patches

GRAIN_PATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What changed when a patch changed its slot.

    Attributes:
        probability: by label, the largest minus the smallest probability over the slots; the worst of the patches.
        same_bits: whether all features of all slots were equal bit for bit.
    """

    probability: dict[str, float]
    same_bits: bool


def slot_patches(golden: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What slots are measured on: golden patches (n, 1, P, P), the extreme ones, and the grain of dark panels."""
    side = golden.shape[-1]
    grain = np.random.default_rng(0).integers(8, 40, (GRAIN_PATCHES, 1, side, side), np.uint8)
    return np.concatenate([golden, extreme_patches(side), grain])


def measure_slots(backend: Backend, pixels: NDArray[np.uint8]) -> Spread:
    """Fill every slot of a batch with one patch, for each of the patches, and reason over each slot alone.

    Args:
        backend: a loaded bundle.
        pixels: (n, 1, P, P) patches, n >= 1.

    Raises:
        ValueError: there is no patch, or the patches do not fit the bundle.
        InferenceError: the runtime failed.
    """
    if not len(pixels):
        raise ValueError("a spread needs at least one patch")
    spreads, same_bits = [], True
    for patch in pixels:
        features = backend.features(np.repeat(patch[None], backend.batch_size, axis=0))
        probability = [
            backend.reason(features.label_features[slot : slot + 1], features.stage1[slot : slot + 1])[0]
            for slot in range(backend.batch_size)
        ]
        spreads.append(np.ptp(np.stack(probability), axis=0))
        same_bits &= all(_rows_equal(getattr(features, field.name)) for field in fields(Features))
    worst = np.stack(spreads).max(axis=0)
    return Spread(
        probability=dict(zip(backend.manifest.label_names, map(float, worst), strict=True)), same_bits=same_bits
    )


def _rows_equal(rows: NDArray[np.float32]) -> bool:
    return all(row.tobytes() == rows[0].tobytes() for row in rows)
