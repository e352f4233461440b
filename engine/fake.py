"""A backend without a network, for tests and load tests: a function of the pixels gives the scores.

It travels in the package, as httpx ships its mock transport, so that the service can be driven through
every answer without a graph. It has the form of a one-stage network: one feature per label, its logit.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.backend import NO_GUARD, Features, check_pixels, check_screen
from engine.errors import InferenceError
from engine.manifest import REQUIRED_FILES, FrameLimits, LabelLimits, Manifest

ScoreFunction = Callable[[NDArray[np.uint8]], NDArray[np.floating]]


class FakeBackend:
    """Scores from a function instead of a graph.

    Args:
        manifest: what to pretend to be; see `fake_manifest`.
        function: (n, 1, P, P) uint8 patches to (n, C) scores in [0, 1]; what it raises goes through.
        guard: guard band by label.
    """

    runtime = "fake"
    precision = "fp32"

    def __init__(self, manifest: Manifest, function: ScoreFunction, *, guard: Mapping[str, float] = NO_GUARD) -> None:
        self.manifest = manifest
        self.batch_size = manifest.batch_size
        self.guard = guard
        self._function = function
        self._closed = False

    def features(self, pixels: NDArray[np.uint8]) -> Features:
        """See `Backend.features`; the label features and stage 1 are the scores' logits."""
        self._refuse_if_closed()
        check_pixels(pixels, self.manifest, self.batch_size)
        scores = np.asarray(self._function(pixels), np.float64)
        if scores.shape != (len(pixels), len(self.manifest.labels)):
            raise InferenceError(f"the function gave scores of shape {scores.shape}")
        with np.errstate(divide="ignore"):  # a score of 0 or 1 is an infinite logit, and comes back exactly
            logits = (np.log(scores) - np.log1p(-scores)).astype(np.float32)
        return Features(
            label_features=logits[:, :, None],
            stage1=logits,
            activation=np.zeros((*logits.shape, 1, 1), np.float32),
        )

    def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.reason`; the sigmoid, patch by patch."""
        self._refuse_if_closed()
        check_screen(label_features, stage1, self.manifest)
        logits = label_features[:, :, 0].astype(np.float64)
        sigmoid = (1 + np.tanh(logits / 2)) / 2  # which no logit overflows
        return sigmoid.astype(np.float32)

    def close(self) -> None:
        """See `Backend.close`."""
        self._closed = True

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise InferenceError("the backend is closed")


def fake_manifest(
    labels: Sequence[str] = ("bubble", "pinhole", "scratch", "tin_ash"),
    *,
    patch_px: int = 64,
    overlap_px: int = 0,
    batch_size: int = 5,
) -> Manifest:
    """A manifest with no bundle behind it: present from 0.5, fail from 0.7, review from 0.3."""
    return Manifest(
        name="fake",
        version="0",
        labels={label: LabelLimits(threshold=0.5, review=(0.3, 0.7)) for label in labels},
        patch_px=patch_px,
        overlap_px=overlap_px,
        batch_size=batch_size,
        frame=FrameLimits(saturated_ratio_max=0.5, contrast_min=4.0),
        files=dict.fromkeys(REQUIRED_FILES, "0" * 64),
        parity_tolerance={"fp32": 1e-4},
        data_id="none",
        training={},
    )
