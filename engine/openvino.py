"""OpenVINO on the CPU, an extra: the features graph by it, the reasoning by ONNX Runtime as everywhere.

The only file that imports openvino; its exceptions stop here. Left alone it computes in bfloat16 wherever the CPU can,
which moves scores by more than the tolerance of float32: here all arithmetic outside of quantised layers is float32.
"""

from pathlib import Path
from queue import SimpleQueue

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import frontend, properties
from openvino.exceptions import OVError

from engine.backend import NO_GUARD, Features, check_pixels
from engine.errors import BundleError, InferenceError
from engine.manifest import Manifest
from engine.onnxruntime import FeaturesGraph, Reasoning, Run, SideBySide, features_of
from engine.tuning import Share, tune

# what crosses from C++ is a RuntimeError; the rest is raised by the bindings
FOREIGN_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    TypeError,
    OVError,
    *(kind for kind in vars(frontend).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)


class OpenVinoBackend:
    """A bundle in OpenVINO, its reasoning in ONNX Runtime.

    Args:
        bundle: folder of the bundle.
        precision: of the features graph, fp32, fp16 (weights; a CPU computes in float32) or int8.
        threads: of the features graph; by default as many as were measured to serve best, see `engine.tuning`.
        batch_size: patches of a batch; by default the manifest's.

    Raises:
        BundleError: the bundle is not whole, its graphs do not fit its manifest, or it has no such precision.
    """

    runtime = "openvino"
    guard = NO_GUARD

    def __init__(
        self, bundle: Path, *, precision: str = "fp32", threads: int | None = None, batch_size: int | None = None
    ) -> None:
        self.manifest = Manifest.read(bundle)
        self.precision = precision
        self.batch_size = batch_size or self.manifest.batch_size
        # read by ONNX Runtime first: OpenVINO would take weights from files in the folder it was started in
        graph = FeaturesGraph.read(bundle, self.manifest, precision=precision, batch_size=self.batch_size)
        model = _model(graph, self.manifest)

        def build(share: Share) -> SideBySide:
            return SideBySide(graph, _run(model, graph, share), streams=share.streams)

        self.tuned = tune(build, bundle, threads=threads, patches=self.batch_size // graph.rows)
        self._features: SideBySide | None = build(self.tuned.share)
        self._reasoning = Reasoning(bundle, self.manifest)

    def features(self, pixels: NDArray[np.uint8]) -> Features:
        """See `Backend.features`."""
        check_pixels(pixels, self.manifest, self.batch_size)
        if self._features is None:
            raise InferenceError("the backend is closed")
        return features_of(self._features(pixels))

    def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.reason`."""
        return self._reasoning(label_features, stage1)

    def close(self) -> None:
        """See `Backend.close`; a call under way in another thread holds its graph until it ends."""
        self._features = None
        self._reasoning.close()


def _run(model: openvino.Model, graph: FeaturesGraph, share: Share) -> Run:
    """What runs the graph once, called by as many threads as there are streams."""
    settings = {
        properties.hint.inference_precision: openvino.Type.f32,
        properties.inference_num_threads: share.total,
        properties.num_streams: share.streams,
        # two services that pin their threads pin them to the same CPUs
        properties.hint.enable_cpu_pinning: False,
    }
    requests: SimpleQueue[openvino.InferRequest] = SimpleQueue()
    try:
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        for _ in range(share.streams):
            requests.put(compiled.create_infer_request())
    except FOREIGN_ERRORS as error:
        raise BundleError(f"openvino refuses the graph: {error}", key=graph.file) from error

    def run(patches: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        request = requests.get()
        try:
            answer = request.infer([patches], share_inputs=True)
            return [np.asarray(answer[name]) for name in graph.outputs]
        except FOREIGN_ERRORS as error:
            raise InferenceError(f"openvino failed: {error}") from error
        finally:
            requests.put(request)

    return run


def _model(graph: FeaturesGraph, manifest: Manifest) -> openvino.Model:
    """The graph with the one shape that is ever run."""
    try:
        model = openvino.Core().read_model(graph.onnx)
        model.reshape([graph.rows, 1, manifest.patch_px, manifest.patch_px])
    except FOREIGN_ERRORS as error:
        raise BundleError(f"openvino refuses the graph: {error}", key=graph.file) from error
    return model
