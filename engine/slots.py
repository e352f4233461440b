"""Does a patch's score depend on its slot in the batch? Measured, not assumed: runtimes have been seen to do so."""

import numpy as np
from numpy.typing import NDArray

from engine.backend import Backend


def slot_spread(backend: Backend, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """How far the same patch's score moves with its slot, by label; 0 where it does not.

    Each patch fills every slot of a batch at once, and each slot is reasoned over alone.

    Args:
        backend: a loaded bundle.
        pixels: (n, 1, P, P) patches to try, n >= 1.

    Raises:
        InferenceError: the runtime failed.
    """
    widest = np.zeros(len(backend.manifest.labels), np.float32)
    for patch in pixels:
        features = backend.features(np.repeat(patch[None], backend.batch_size, axis=0))
        slots = zip(features.label_features[:, None], features.stage1[:, None], strict=True)
        probability = np.concatenate([backend.reason(label_features, stage1) for label_features, stage1 in slots])
        widest = np.maximum(widest, np.ptp(probability, axis=0))
    return dict(zip(backend.manifest.label_names, widest.astype(float).tolist(), strict=True))
