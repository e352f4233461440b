"""OpenVINO on the CPU, an extra: the features graph by it, the reasoning by ONNX Runtime as everywhere.

The only file that imports openvino; its exceptions stop here. Left alone it computes in bfloat16 wherever the CPU can,
which moves scores by more than any tolerance: here all arithmetic outside of quantised layers is float32, but for the
layers which may round, in a graph that was made for bfloat16.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any
from xml.etree import ElementTree

# Importing OpenVINO reports to Google Analytics that it was imported, unasked. Where this package cannot be imported it
# takes a stub of its own; a line makes no call to the outside.
modules: dict[str, Any] = sys.modules
modules["openvino_telemetry"] = None

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import frontend, opset1, opset13, properties
from openvino.exceptions import OVError

from engine.cpu import CpuBackend
from engine.cpus import openvino_vectors
from engine.errors import BundleError, InferenceError
from engine.graphs import ONNXRUNTIME, Graph
from engine.mirror import write_mirrored
from engine.streams import Run
from engine.tuning import Share

# what crosses from C++ is a RuntimeError; the rest is raised by the bindings
FOREIGN_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    TypeError,
    OVError,
    *(kind for kind in vars(frontend).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)

# One for the life of the process. With the last of its graphs its CPU plugin would go, and with that the stack for the
# signals of the thread that loaded the first graph: after a close in another thread, a signal would crash the process.
CORE = openvino.Core()


class OpenVinoBackend(CpuBackend):
    """A bundle in OpenVINO, its reasoning in ONNX Runtime."""

    runtime = "openvino"
    versions = f"openvino {openvino.__version__}, {ONNXRUNTIME}"

    @classmethod
    def rounds(cls) -> bool:
        """See `CpuBackend.rounds`."""
        return "BF16" in CORE.get_property("CPU", properties.device.capabilities)

    def _opener(self, graph: Graph) -> Callable[[Share], list[Run]]:
        """The graph with the one shape that is ever run; read for each share, as a model kept is memory kept."""
        narrow = self.precision == "bf16"
        kind = openvino.Type.bf16 if narrow else openvino.Type.f32

        def read() -> openvino.Model:
            model = CORE.read_model(graph.onnx)
            model.reshape([graph.rows, 1, graph.side, graph.side])
            return _read_in_groups(model) if "avx512f" in openvino_vectors() else model

        with _refusing(graph.file):
            marked = _held_in_float32(read(), but=graph.rounding) if narrow else None

        def open_share(share: Share) -> list[Run]:
            settings = {
                properties.hint.inference_precision: kind,
                properties.inference_num_threads: share.threads,
                properties.num_streams: 1,
                # two services that pin their threads pin them to the same CPUs
                properties.hint.enable_cpu_pinning: False,
            }
            with _refusing(graph.file):
                model = read() if marked is None else CORE.read_model(*marked)
                # one for each stream: the streams of one compiled graph and those of a glance's wait for each other
                graphs = [CORE.compile_model(model, "CPU", settings) for _ in range(share.streams)]
                return [_Request(compiled, graph.outputs).run for compiled in graphs]

        return open_share


class _Request:
    """A request of a compiled graph, for one thread at a time.

    The bindings set themselves up within their first answer and give the interpreter away meanwhile, so that two
    threads that get their first answers at the same time wait for each other for ever: the first one is got here, and
    by one thread at a time.
    """

    _first_answer = Lock()

    def __init__(self, compiled: openvino.CompiledModel, outputs: tuple[str, ...]) -> None:
        self._compiled = compiled
        self._outputs = outputs
        self._request: openvino.InferRequest | None = None
        with self._first_answer:
            self._answer(np.zeros(compiled.input(0).shape, np.uint8))

    def run(self, patches: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """One run, waited for.

        Raises:
            InferenceError: the runtime failed.
        """
        try:
            return self._answer(patches)
        except FOREIGN_ERRORS as error:
            self._request = None  # the next run makes another
            raise InferenceError(f"openvino failed: {error}") from error

    def _answer(self, patches: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        if self._request is None:
            self._request = self._compiled.create_infer_request()
        write_mirrored(patches, self._request.get_input_tensor(0).data)  # handed over instead, they would take longer
        self._request.infer(share_outputs=True)
        return [self._request.get_tensor(name).data.copy() for name in self._outputs]


@contextmanager
def _refusing(file: str) -> Iterator[None]:
    """What OpenVINO raises of a graph is a fault of its file."""
    try:
        yield
    except FOREIGN_ERRORS as error:
        raise BundleError(f"openvino refuses the graph: {error}", key=file) from error


def _held_in_float32(model: openvino.Model, *, but: frozenset[str]) -> tuple[bytes, openvino.Tensor]:
    """The model, in the form that is read, with a mark on every layer that must not round: all but those named.

    The hint of a precision is for a whole model. What OpenVINO holds to float32 all the same is marked `precise`; its
    Python interface cannot set the mark, so it is written into the model's form as a file.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "graph.xml"
        openvino.save_model(model, file, compress_to_fp16=False)
        tree = ElementTree.parse(file)  # noqa: S314 - OpenVINO has just written it
        for layer in tree.iter("layer"):
            # a convolution and its bias are two layers: `name/WithoutBiases` and `name`
            if layer.get("type") in ("Parameter", "Const", "Result") or layer.get("name", "").split("/")[0] in but:
                continue
            marks = layer.find("rt_info")
            marks = ElementTree.SubElement(layer, "rt_info") if marks is None else marks
            ElementTree.SubElement(marks, "attribute", name="precise", version="0")
        weights = np.fromfile(file.with_suffix(".bin"), np.uint8)
        return ElementTree.tostring(tree.getroot()), openvino.Tensor(weights)


def _read_in_groups(model: openvino.Model) -> openvino.Model:
    """The same model, in which a convolution of one channel that steps by s pixels takes rows in groups of s channels.

    On CPUs with AVX-512 OpenVINO multiplies by blocks of channels, and of a single channel fills one lane: the stem of
    the embedded network and the block after it took nearly half of its time. Pixels of a row that are neighbours are in
    memory what channels are, so only the padding is a copy, and the same products are summed. Without AVX-512 OpenVINO
    has another way, which is faster.
    """
    for layer in model.get_ordered_ops():
        shape = layer.get_output_partial_shape(0)
        if layer.get_type_name() != "Convolution" or shape.is_dynamic or len(shape) != 4:
            continue
        pixels, weight = layer.input_value(0), layer.input_value(1).get_node()
        facts = layer.get_attributes()
        (down, step), (above, left) = facts["strides"], facts["pads_begin"]
        below, right = facts["pads_end"]
        count, channels, rows, width = pixels.get_shape()
        outputs, _, high, wide = weight.get_output_shape(0)
        grouped = (width + left + right) // step
        plain = facts["dilations"] == [1, 1] and weight.get_type_name() == "Constant"
        # whole groups in a row and in the kernel, whose place is then the same in each
        if channels > 1 or step == 1 or not plain or (width + left + right) % step or wide % step:
            continue
        in_groups = opset13.reshape(
            _padded(pixels, left, right), np.array([count, rows, grouped, step]), special_zero=False
        )
        kernel = weight.get_data().reshape(outputs, high, wide // step, step).transpose(0, 3, 1, 2)
        channels_first = opset13.transpose(in_groups, np.array([0, 3, 1, 2]))
        for way in (in_groups, channels_first):  # named for the convolution, for it rounds where that may
            way.set_friendly_name(f"{layer.get_friendly_name()}/{way.get_type_name()}")
        same = opset13.convolution(
            channels_first,
            np.ascontiguousarray(kernel),
            [down, 1],
            [above, 0],
            [below, 0],
            [1, 1],
        )
        same.set_friendly_name(layer.get_friendly_name())
        layer.output(0).replace(same.output(0))
    return model


def _padded(pixels: openvino.Output, left: int, right: int) -> openvino.Output:
    """Zeros beside each row, put there before whatever leaves a zero as it is: of bytes the copy is a quarter.

    By the first form of the operation: a later one is turned into it when a graph is compiled, and loses its mark.
    """
    node = pixels.get_node()
    if node.get_type_name() == "Sqrt":
        return opset13.sqrt(_padded(node.input_value(0), left, right)).output(0)
    if node.get_type_name() == "Convert":
        before = _padded(node.input_value(0), left, right)
        return opset13.convert(before, node.get_output_element_type(0)).output(0)
    zero = opset1.constant(0, pixels.get_element_type())
    return opset1.pad(pixels, [0, 0, 0, left], [0, 0, 0, right], "constant", zero).output(0)
