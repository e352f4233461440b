"""A backend without a network, for tests and load tests: a function of the pixels gives the scores.

It travels in the package, as httpx ships its mock transport, so that the service can be driven through
every answer without a graph. It has the form of a one-stage network: one feature per label, its logit.
`load_fake` (`INSPECT_RUNTIME=fake`) puts such a function behind a real bundle's manifest.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.backend import NO_GUARD, Features, batch_of, check_pixels, check_screen
from engine.errors import InferenceError, RuntimeUnavailable
from engine.golden import read_golden
from engine.looks import NO_SECOND_LOOK
from engine.manifest import REQUIRED_FILES, FrameLimits, LabelLimits, Manifest

FAKED = "fake-"
NAME_MOST = 64  # letters of a manifest's name
RARITY = 499  # a prime: one patch in so many is not clean

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
    versions = ""

    def __init__(self, manifest: Manifest, function: ScoreFunction, *, guard: Mapping[str, float] = NO_GUARD) -> None:
        self.manifest = manifest
        self.batch_size = manifest.batch_size
        self.guard = guard
        self._function = function
        self._closed = False

    def features(self, pixels: NDArray[np.uint8], *, glance: bool = True) -> Features:
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
            doubt=np.ones(len(logits), np.float32),
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


def load_fake(
    bundle: Path, *, precision: str | None = None, threads: int | None = None, batch_size: int | None = None
) -> FakeBackend:
    """A bundle's manifest and golden answers, without its network: for tests of load, not of screens.

    The golden patches give their golden probabilities, so that the self-test passes. Of all others one in `RARITY`,
    as a checksum of its pixels decides, shows one label at some score; the rest is clean. So a screen of 50 patches
    has one chance in ten to be doubtful or bad, and the same pixels always give the same answer. The model is called
    `fake-` and what it stands for, so that no verdict of it can be taken for one of the network.

    Args:
        bundle: folder of the bundle.
        precision: fp32 or None; there is no other.
        threads: of no effect.
        batch_size: patches of a batch; by default the manifest's.

    Raises:
        BundleError: the bundle is not whole.
        RuntimeUnavailable: another precision.
        ValueError: fewer than one patch in a batch.
    """
    if precision not in (None, "fp32"):
        raise RuntimeUnavailable(f"fake runs nothing, and so not in {precision}")
    manifest = Manifest.read(bundle)
    golden = read_golden(bundle, manifest=manifest)
    known = {_checksum(patch): index for index, patch in enumerate(golden.pixels)}

    def scores(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        result = np.zeros((len(pixels), len(manifest.labels)))
        for row, patch in zip(result, pixels, strict=True):
            checksum = _checksum(patch)
            index = known.get(checksum)
            if index is not None and np.array_equal(patch, golden.pixels[index]):
                row[:] = golden.probability[index]
            elif checksum % RARITY == 0:
                row[checksum // RARITY % len(row)] = checksum / 2**32
        return result

    name = f"{FAKED}{manifest.name}"[:NAME_MOST]
    return FakeBackend(replace(manifest, name=name, batch_size=batch_of(manifest, batch_size)), scores)


def _checksum(patch: NDArray[np.uint8]) -> int:
    """Of every eighth row: a tenth of a millisecond for a patch of 1024 pixels."""
    return zlib.crc32(patch[:, ::8].tobytes())


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
        second_look=NO_SECOND_LOOK,
        batch_size=batch_size,
        frame=FrameLimits(saturated_ratio_max=0.5, contrast_min=4.0),
        files=dict.fromkeys(REQUIRED_FILES, "0" * 64),
        parity_tolerance={"fp32": 1e-4},
        data_id="none",
        training={},
    )
