"""What every peer shares: the bundle's graphs in ONNX Runtime, the windows of a raw frame, and the verdict of a screen.

Only what our service has of its own is missing, so that the peers answer the same and are spared the rest: no queue,
no deadline, no self-test, no digest of the pixels, and no record. The self-test counts as passed.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engine import Manifest, cover, cut, load
from service.aggregation import Observed, aggregate
from service.bench.peers.setting import Setting
from service.meter import Brightness
from service.selftest import JUST_PASSED
from service.settings import read_settings

REASONING = "reasoning.onnx"
OUTPUTS = ("label_features", "stage1", "activation")

Answer = dict[str, Any]
Run = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]


class Model:
    """A bundle as its users would load it by hand.

    Args:
        bundle: its folder.
        frame_size: (height, width) agreed for the line.
        threads: of the runtime for one run of the features graph.
        patches: that one run takes.
        ours: whether that run is one of our backend, in the runtime and precision that it takes by default.
    """

    def __init__(
        self, bundle: Path, frame_size: tuple[int, int], *, threads: int, patches: int, ours: bool = False
    ) -> None:
        self.manifest = Manifest.read(bundle)
        self.windows = cover(*frame_size, patch_px=self.manifest.patch_px, overlap_px=self.manifest.overlap_px)
        self._frame_size = frame_size
        self._patches = patches
        #: one run: (n, 1, P, P) to (n, C, d) label features, (n, C) cosines and (n, C, h, w) maps
        self.features: Run = (
            _our_session(bundle, threads, patches)
            if ours
            else _plain_session(bundle / self.manifest.features_file("fp32"), threads)
        )
        self._reasoning = _session(bundle / REASONING, 1)

    @classmethod
    def configured(cls) -> Self:
        """As the environment of this process says: `service.settings` the bundle and the frame, `Setting` the rest."""
        settings, setting = read_settings(), Setting()
        if settings.frame_size is None:
            raise ValueError("a peer needs INSPECT_FRAME_SIZE: it reads raw pixels")
        return cls(
            settings.bundle,
            settings.frame_size,
            threads=setting.threads,
            patches=setting.patches,
            ours=setting.ours,
        )

    def frame(self, body: bytes) -> NDArray[np.uint8]:
        """The frame (H, W) of a raw body, not copied.

        Raises:
            ValueError: the body has another length.
        """
        return np.frombuffer(body, np.uint8).reshape(self._frame_size)

    def inspect(self, body: bytes) -> Answer:
        """The answer for one raw body."""
        frame = self.frame(body)
        runs = [self.features(patches) for patches in self._batches(frame)]
        return self.judge(frame, *map(np.concatenate, zip(*runs, strict=True)))

    def judge(
        self,
        frame: NDArray[np.uint8],
        label_features: NDArray[np.float32],
        stage1: NDArray[np.float32],
        activation: NDArray[np.float32],
    ) -> Answer:
        """The answer for one frame (H, W), from the features (K, C, d), (K, C), (K, C, h, w) of all its windows."""
        feed = {"label_features": label_features, "stage1": stage1}
        (probability,) = self._reasoning.run(["probability"], feed)
        seen = Observed(
            brightness=Brightness.of(frame),
            size_from="setting",
            expected=self.windows,
            windows=self.windows,
            windows_turned=0,
            windows_cleared=0,
            probability=probability,
            activation=activation,
            self_test=JUST_PASSED,
        )
        return asdict(aggregate(seen, self.manifest))

    def _batches(self, frame: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self.windows), self._patches):
            yield cut(frame, self.windows[start : start + self._patches], self.manifest.patch_px)


def _plain_session(graph: Path, threads: int) -> Run:
    session = _session(graph, threads)
    return lambda patches: session.run(OUTPUTS, {"pixels": patches})


def _our_session(bundle: Path, threads: int, patches: int) -> Run:
    backend, alone = load(bundle, threads=threads, batch_size=patches), Lock()

    def run(patches: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        with alone:  # what a backend asks of its callers
            found = backend.features(patches)
        return [found.label_features, found.stage1, found.activation]

    return run


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # as ours: between two runs the CPUs belong to the client and to the other screens
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
