"""Does a score depend on the patch's place in the batch? Measured, not assumed.

A compiled plan may take another kernel, or another order of sums, for another row of a batch: TensorRT has answered
identical inputs of one batch differently. The spread becomes the guard band of a plan.

Golden patches have scores near 0 and 1, where a sigmoid is flat; limits lie where it is steeper. So what counts is how
far a score would move where the sigmoid is steepest, if its logit moved as far: from -d/2 to d/2, by tanh(d/4).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from engine.backend import Backend, Features
from engine.parity import extreme_patches

GRAIN_PATCHES = 4
_SMALLEST, _SHORT_OF_1 = 1e-6, 1e-4  # nearer to the ends a logit tells of float32's steps, or of nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What changed when a patch changed its slot.

    Attributes:
        probability: by label, the largest minus the smallest probability of a patch, its own slot or that of the
            screen's other patches changed; the worst of the patches.
        guard: by label, how far any probability may move so: what the same noise does where the sigmoid is steepest.
        same_bits: whether all features of all slots were equal bit for bit.
    """

    probability: dict[str, float]
    guard: dict[str, float]
    same_bits: bool


def slot_patches(golden: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What slots are measured on: golden patches (n, 1, P, P), the extreme ones, and the grain of dark panels."""
    side = golden.shape[-1]
    grain = np.random.default_rng(0).integers(8, 40, (GRAIN_PATCHES, 1, side, side), np.uint8)
    return np.concatenate([golden, extreme_patches(side), grain])


def measure_slots(backend: Backend, pixels: NDArray[np.uint8]) -> Spread:
    """Fill every slot of a batch with one patch, for each of the patches, and reason over what the slots gave.

    Each patch is a screen by itself, in each slot. And all patches are one screen, on which the reasoning relates them
    to each other: first each in the first slot, then all in the same other one, then each alone in every other slot
    that gave other bits. A patch may then move by its neighbours' slots.

    Args:
        backend: a loaded bundle.
        pixels: (n, 1, P, P) patches, n >= 1.

    Raises:
        ValueError: there is no patch, or the patches do not fit the bundle.
        InferenceError: the runtime failed.
    """
    if not len(pixels):
        raise ValueError("a spread needs at least one patch")
    patches, slots = range(len(pixels)), range(backend.batch_size)
    answers = [backend.features(np.repeat(patch[None], len(slots), axis=0)) for patch in pixels]

    def reason(screen: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        """Probabilities of a screen that is given by its patches, and for each the slot that it came from."""
        return backend.reason(
            np.stack([answers[patch].label_features[slot] for patch, slot in screen]),
            np.stack([answers[patch].stage1[slot] for patch, slot in screen]),
        )

    alone = [np.concatenate([reason([(patch, slot)]) for patch in patches]) for slot in slots]
    screens = [[(patch, slot) for patch in patches] for slot in slots]
    screens += [
        [(patch, slot if patch == moved else 0) for patch in patches]
        for moved in patches
        for slot in slots
        if not _same_bits(answers[moved], slot, 0)
    ]
    together = [reason(screen) for screen in screens]
    labels = backend.manifest.label_names
    found = [np.stack(alone), np.stack(together)]
    moved = np.concatenate([np.ptp(found_SNL, axis=0) for found_SNL in found]).max(axis=0)
    anywhere = np.concatenate([_anywhere(found_SNL) for found_SNL in found]).max(axis=0)
    return Spread(
        probability=dict(zip(labels, moved.tolist(), strict=True)),
        guard=dict(zip(labels, np.maximum(moved, anywhere).tolist(), strict=True)),
        same_bits=all(_same_bits(answer, slot, 0) for answer in answers for slot in slots),
    )


def _anywhere(found_SNL: NDArray[np.float32]) -> NDArray[np.float64]:
    """By patch and label (N, L): how far a probability would move over the slots where the sigmoid is steepest."""
    within = np.clip(found_SNL.astype(np.float64), _SMALLEST, 1 - _SHORT_OF_1)
    logit = np.log(within / (1 - within))
    moved: NDArray[np.float64] = np.tanh(np.ptp(logit, axis=0) / 4)
    return moved


def _same_bits(features: Features, one: int, other: int) -> bool:
    """Whether two slots gave the same bits."""
    return all(
        getattr(features, field.name)[one].tobytes() == getattr(features, field.name)[other].tobytes()
        for field in fields(Features)
    )
