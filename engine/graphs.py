"""The two graphs of a bundle as ONNX Runtime reads them, whatever runs the features graph: read, checked, run.

The only file that runs onnxruntime; its exceptions stop here. (`engine.quantise` has its tool for the export.) A graph
must carry its weights inside: weights in a file beside it would be covered by no hash.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from engine.backend import Features, check_screen
from engine.errors import BundleError, InferenceError
from engine.manifest import BFLOAT_LAYERS, REASONING_FILE, Manifest

Session: TypeAlias = onnxruntime.InferenceSession
ONNXRUNTIME = f"onnxruntime {onnxruntime.__version__}"
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

# layers that multiply and add, and the products of one value of their answer by the shapes of their first two inputs
SUMMED: Mapping[str, Callable[[Sequence[int], Sequence[int]], int]] = {
    "Conv": lambda _, weight: math.prod(weight[1:]),
    "MatMul": lambda left, _: left[-1],
    "Gemm": lambda left, _: left[-1],
}

ANY = None  # a dimension of whatever size
OPEN = -1  # a dimension that must not be fixed in the graph
Form = Mapping[str, tuple[str, tuple[int | None, ...]]]


class Reasoning:
    """The second graph of a bundle, in float32 whatever runs the first one.

    It is tiny and has one thread of its own, so that screens reason while others are in the features graph.

    Args:
        bundle: folder of the bundle.
        manifest: of the bundle.

    Raises:
        BundleError: the graph cannot be read or does not fit the manifest.
    """

    def __init__(self, bundle: Path, manifest: Manifest) -> None:
        self._manifest = manifest
        onnx = manifest.verified(bundle, REASONING_FILE)
        self._session: Session | None = open_session(onnx, key=REASONING_FILE, threads=1)
        _check_reasoning_graph(self._session, manifest)

    def run(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.reason`."""
        check_screen(label_features, stage1, self._manifest)
        session = self._session  # its own: another thread may close
        if session is None:
            raise InferenceError("the backend is closed")
        feed = {"label_features": label_features, "stage1": stage1}
        (probability,) = run_session(session, ["probability"], feed)
        _check_whole(probability, stage1.shape, dimensions=2, name="probability")
        return probability

    def close(self) -> None:
        """See `Backend.close`; a run under way keeps its session until it ends."""
        self._session = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one patch costs.

    Attributes:
        multiply_adds: of convolutions and matrix products.
        moved_bytes: what these layers read and write in float32 when all between them is fused into them.
    """

    multiply_adds: float
    moved_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A graph that takes patches, as ONNX Runtime has read it: weights inside, form as the manifest says.

    Attributes:
        file: its name in the bundle.
        onnx: its bytes.
        rows: patches of one run: 1, or the batch size where the graph takes no other number.
        side: pixels of a side of what it takes: a patch's, or more, which are the patch's mirror image around it.
        outputs: names of what it answers.
        rounding: names of the layers that may round to bfloat16.
    """

    file: str
    onnx: bytes
    rows: int
    side: int
    outputs: tuple[str, ...]
    rounding: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesGraph(Graph):
    """A features graph, whose outputs stand in the order of `Features`; a network without a map has no `activation`.

    Attributes:
        labels: C.
    """

    labels: int

    @classmethod
    def read(cls, bundle: Path, manifest: Manifest, *, precision: str, batch_size: int) -> "FeaturesGraph":
        """Read and check the graph of one precision.

        Raises:
            BundleError: the bundle has none, or it must not be run.
        """
        file = manifest.features_file(precision)
        onnx = manifest.verified(bundle, file)
        session = open_session(onnx, key=file, threads=1, as_written=True)
        _check_features_graph(session, manifest, rows=batch_size, key=file)
        has_activation = "activation" in {output.name for output in session.get_outputs()}
        return cls(
            file=file,
            onnx=onnx,
            rows=batch_size if isinstance(session.get_inputs()[0].shape[0], int) else 1,
            side=manifest.patch_px,
            labels=len(manifest.labels),
            outputs=("label_features", "stage1", "activation")[: 2 + has_activation],
            rounding=rounding_layers(session),
        )

    def split(self, pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """The patches run by run; where a run takes more than there are, black ones fill it up."""
        for start in range(0, len(pixels), self.rows):
            patches = pixels[start : start + self.rows]
            if len(patches) < self.rows:
                missing = self.rows - len(patches)
                patches = np.concatenate([patches, np.zeros((missing, *patches.shape[1:]), np.uint8)])
            yield patches

    def join(self, runs: Sequence[Sequence[NDArray[np.float32]]], doubt: Sequence[float], count: int) -> Features:
        """The features of the first `count` patches; the map of a network without one is zeros.

        Args:
            runs: of each run the outputs, in the order of `split`.
            doubt: of a glance at each of the runs.
            count: patches that were split.

        Raises:
            InferenceError: a run has lost rows or labels, or has others than the rest: a glance that does not fit.
        """
        for outputs in runs:
            for name, output, dimensions in zip(self.outputs, outputs, (3, 2, 4), strict=False):
                _check_whole(output, (self.rows, self.labels), dimensions=dimensions, name=name)
        joined = {}
        for name, rows in zip(self.outputs, zip(*runs, strict=True), strict=True):
            if len(shapes := {row.shape for row in rows}) > 1:
                raise InferenceError(f"{name} of one patch is {' and of another '.join(map(str, sorted(shapes)))}")
            joined[name] = np.concatenate(rows)[:count]
        joined.setdefault("activation", np.zeros((count, self.labels, 1, 1), np.float32))
        return Features(**joined, doubt=np.repeat(np.array(doubt, np.float32), self.rows)[:count])


def count_work(bundle: Path, manifest: Manifest) -> Work:
    """The features graph's work for one patch, from the shapes that its layers have when ONNX Runtime runs it once.

    Raises:
        BundleError: the graph cannot be read.
        InferenceError: the runtime failed.
    """
    graph = FeaturesGraph.read(bundle, manifest, precision="fp32", batch_size=manifest.batch_size)
    pixels = np.zeros((graph.rows, 1, manifest.patch_px, manifest.patch_px), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(graph.onnx, key=graph.file, threads=1, as_written=True, profile=Path(folder) / "layers")
        run_session(session, graph.outputs, {"pixels": pixels})
        events = json.loads(Path(session.end_profiling()).read_text())
    multiply_adds = moved_bytes = 0
    for layer in (event["args"] for event in events if event.get("args", {}).get("op_name") in SUMMED):
        inputs, (output,) = (
            [shape for value in layer[key] for shape in value.values()]
            for key in ("input_type_shape", "output_type_shape")
        )
        multiply_adds += math.prod(output) * SUMMED[layer["op_name"]](*inputs[:2])
        moved_bytes += 4 * sum(map(math.prod, [*inputs, output]))
    return Work(multiply_adds=multiply_adds / graph.rows, moved_bytes=moved_bytes / graph.rows)


def open_session(
    onnx: bytes, *, key: str, threads: int, as_written: bool = False, profile: Path | None = None
) -> Session:
    """A session of a graph, optimised unless it is only to be looked at `as_written`.

    Raises:
        BundleError: the runtime refuses the graph.
    """
    options = onnxruntime.SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_NOTHING_BUT_FATAL
    # between two batches the CPUs belong to decoding and to the other screens
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # where a graph's outside weights would be looked for: in a place that can hold none
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        return Session(
            onnx,
            sess_options=options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # to the same provider: it would only print, and try again
        )
    except FOREIGN_ERRORS as error:
        raise BundleError(f"onnxruntime refuses the graph: {error}", key=key) from error


def run_session(session: Session, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
    """The outputs `names` of one run.

    Raises:
        InferenceError: the runtime failed.
    """
    try:
        outputs: list[NDArray[np.float32]] = session.run(names, feed)
    except FOREIGN_ERRORS as error:
        raise InferenceError(f"onnxruntime failed: {error}") from error
    return outputs


def rounding_layers(session: Session) -> frozenset[str]:
    """Names of the layers of a graph that may round to bfloat16."""
    return frozenset(session.get_modelmeta().custom_metadata_map.get(BFLOAT_LAYERS, "").split("\n")) - {""}


def _check_whole(output: NDArray[Any], leading: tuple[int, ...], *, dimensions: int, name: str) -> None:
    """Refuse an answer that has lost rows or labels."""
    if output.dtype != np.float32 or output.ndim != dimensions or output.shape[:2] != leading:
        raise InferenceError(f"{name} came back as {output.shape} {output.dtype}, expected {leading} and float32")


def _check_features_graph(session: Session, manifest: Manifest, *, rows: int, key: str) -> None:
    labels, side = len(manifest.labels), manifest.patch_px
    check_form(
        session.get_inputs(),
        {"pixels": ("tensor(uint8)", (rows, 1, side, side))},
        key=key,
    )
    check_form(
        session.get_outputs(),
        {
            "label_features": ("tensor(float)", (rows, labels, ANY)),
            "stage1": ("tensor(float)", (rows, labels)),
            "activation": ("tensor(float)", (rows, labels, ANY, ANY)),
        },
        key=key,
        optional="activation",
    )


def _check_reasoning_graph(session: Session, manifest: Manifest) -> None:
    labels = len(manifest.labels)
    check_form(
        session.get_inputs(),
        {
            "label_features": ("tensor(float)", (OPEN, labels, ANY)),
            "stage1": ("tensor(float)", (OPEN, labels)),
        },
        key=REASONING_FILE,
    )
    check_form(
        session.get_outputs(),
        {"probability": ("tensor(float)", (OPEN, labels))},
        key=REASONING_FILE,
    )


def check_form(values: Sequence[Any], form: Form, *, key: str, optional: str = "") -> None:
    """Refuse a graph whose inputs or outputs are not `form`; a dimension it leaves open is no offence.

    Raises:
        BundleError: they are not.
    """
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
