"""ONNX Runtime on the CPU: the backend that is always there, and the one that reasons for all others.

The only file that imports onnxruntime; its exceptions stop here. A graph must carry its weights inside:
weights in a file beside it would be covered by no hash.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from engine.backend import NO_GUARD, Features, check_pixels, check_screen
from engine.cpus import available_cpus
from engine.errors import BundleError, InferenceError
from engine.manifest import Manifest

REASONING_FILE = "reasoning.onnx"
LOG_NOTHING_BUT_FATAL = 4  # errors come as exceptions; logged, they would be told twice

# ONNX Runtime's exceptions have no base class of their own
FOREIGN_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)

ANY = None  # a dimension of whatever size
OPEN = -1  # a dimension that must not be fixed in the graph
Form = Mapping[str, tuple[str, tuple[int | None, ...]]]


class OnnxRuntimeBackend:
    """A bundle in two sessions of ONNX Runtime.

    Args:
        bundle: folder of the bundle.
        precision: which of the bundle's features graphs runs: fp32, fp16, int8, or, to measure it, int8-trt. Few
            operators have half-precision kernels on a CPU; the others run in float32, so fp16 is neither faster
            here nor rounded as on a GPU (`engine.half.rounded_copy` is).
        threads: of the features session; by default the CPUs that the process may use. The reasoning is
            tiny and has one of its own, so that screens reason while others are in the features graph.

    Raises:
        BundleError: the bundle is not whole, its graphs do not fit its manifest, or it has no such precision.
    """

    runtime = "onnxruntime"
    guard = NO_GUARD

    def __init__(self, bundle: Path, *, precision: str = "fp32", threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.manifest = Manifest.read(bundle)
        self.precision = precision
        self.batch_size = self.manifest.batch_size
        features_file = self.manifest.features_file(precision)
        self._features: onnxruntime.InferenceSession | None = _session(
            bundle / features_file, threads=available_cpus() if threads is None else threads
        )
        _check_features_graph(self._features, self.manifest, key=features_file)
        self._reasoning = Reasoning(bundle, self.manifest)
        self._has_activation = "activation" in {output.name for output in self._features.get_outputs()}

    def features(self, pixels: NDArray[np.uint8]) -> Features:
        """See `Backend.features`."""
        check_pixels(pixels, self.manifest, self.batch_size)
        batch = self._full_batch(pixels)
        names = ["label_features", "stage1"] + ["activation"] * self._has_activation
        outputs = dict(zip(names, _run(self._features, names, {"pixels": batch}), strict=True))
        rows, labels = len(batch), len(self.manifest.labels)
        outputs.setdefault("activation", np.zeros((rows, labels, 1, 1), np.float32))
        for (name, output), dimensions in zip(outputs.items(), (3, 2, 4), strict=True):
            _check_whole(output, (rows, labels), dimensions=dimensions, name=name)
        return Features(**{name: output[: len(pixels)] for name, output in outputs.items()})

    def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.reason`."""
        return self._reasoning.run(label_features, stage1)

    def close(self) -> None:
        """See `Backend.close`; a call under way in another thread holds its session until it ends."""
        self._features = None
        self._reasoning.close()

    def _full_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """`pixels` filled up with black patches to the one batch size that ever runs."""
        if len(pixels) == self.batch_size:
            return pixels
        batch = np.zeros((self.batch_size, *pixels.shape[1:]), np.uint8)
        batch[: len(pixels)] = pixels
        return batch


class Reasoning:
    """The reasoning graph of a bundle, which is tiny: one thread, float32, whatever runs the features.

    Args:
        bundle: folder of the bundle.
        manifest: what it says of itself.

    Raises:
        BundleError: the graph does not fit the manifest.
    """

    def __init__(self, bundle: Path, manifest: Manifest) -> None:
        self._manifest = manifest
        self._session: onnxruntime.InferenceSession | None = _session(bundle / REASONING_FILE, threads=1)
        _check_reasoning_graph(self._session, manifest)

    def run(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.reason`."""
        check_screen(label_features, stage1, self._manifest)
        feed = {"label_features": label_features, "stage1": stage1}
        (probability,) = _run(self._session, ["probability"], feed)
        _check_whole(probability, stage1.shape, dimensions=2, name="probability")
        return probability

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None


def _session(graph: Path, *, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_NOTHING_BUT_FATAL
    # between two batches the CPUs belong to decoding and to the other screens
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # where a graph's outside weights would be looked for: in a place that can hold none
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        return onnxruntime.InferenceSession(
            graph.read_bytes(),
            sess_options=options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # to the same provider: it would only print, and try again
        )
    except FOREIGN_ERRORS as error:
        raise BundleError(f"onnxruntime refuses the graph: {error}", key=graph.name) from error


def _run(
    session: onnxruntime.InferenceSession | None, names: Sequence[str], feed: Mapping[str, NDArray[Any]]
) -> list[NDArray[np.float32]]:
    if session is None:
        raise InferenceError("the backend is closed")
    try:
        outputs: list[NDArray[np.float32]] = session.run(names, feed)
    except FOREIGN_ERRORS as error:
        raise InferenceError(f"onnxruntime failed: {error}") from error
    return outputs


def _check_whole(output: NDArray[Any], leading: tuple[int, ...], *, dimensions: int, name: str) -> None:
    """Refuse an answer that has lost rows or labels."""
    if output.dtype != np.float32 or output.ndim != dimensions or output.shape[:2] != leading:
        raise InferenceError(f"{name} came back as {output.shape} {output.dtype}, expected {leading} and float32")


def _check_features_graph(session: onnxruntime.InferenceSession, manifest: Manifest, *, key: str) -> None:
    rows, labels, side = manifest.batch_size, len(manifest.labels), manifest.patch_px
    _check_form(
        session.get_inputs(),
        {"pixels": ("tensor(uint8)", (rows, 1, side, side))},
        key=key,
    )
    _check_form(
        session.get_outputs(),
        {
            "label_features": ("tensor(float)", (rows, labels, ANY)),
            "stage1": ("tensor(float)", (rows, labels)),
            "activation": ("tensor(float)", (rows, labels, ANY, ANY)),
        },
        key=key,
        optional="activation",
    )


def _check_reasoning_graph(session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
    labels = len(manifest.labels)
    _check_form(
        session.get_inputs(),
        {
            "label_features": ("tensor(float)", (OPEN, labels, ANY)),
            "stage1": ("tensor(float)", (OPEN, labels)),
        },
        key=REASONING_FILE,
    )
    _check_form(
        session.get_outputs(),
        {"probability": ("tensor(float)", (OPEN, labels))},
        key=REASONING_FILE,
    )


def _check_form(values: Sequence[Any], form: Form, *, key: str, optional: str = "") -> None:
    """Refuse a graph whose inputs or outputs are not `form`; a dimension it leaves open is no offence."""
    declared = {value.name: value for value in values}
    if not set(form) - {optional} <= set(declared) <= set(form):
        raise BundleError(f"has {sorted(declared)}, expected {sorted(form)}", key=key)
    for name, value in declared.items():
        kind, shape = form[name]
        fits = len(value.shape) == len(shape) and all(map(_fits, value.shape, shape))
        if value.type != kind or not fits:
            raise BundleError(f"{name} is {value.type} {value.shape}, expected {kind} {shape}", key=key)


def _fits(declared: int | str | None, expected: int | None) -> bool:
    return expected is ANY or not isinstance(declared, int) or declared == expected
