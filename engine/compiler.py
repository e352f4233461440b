"""An ONNX graph to a TensorRT plan: one function for TensorRT 10.12 and later, 11, and TensorRT-RTX.

The graph alone decides the precision. Networks are strongly typed: TensorRT 11 knows nothing else and has no precision
flags any more, and tools that still set one silently make engines in float32. So nothing is asked for here, and what
came out is read back and compared. A graph is taken as bytes, which somebody has verified: from a file TensorRT would
follow to weights beside it, which no hash covers.

The one file that imports TensorRT; `engine.gpu` has it from here.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import EngineError, OutOfMemory, PlanError, RuntimeUnavailable
from engine.layers import PRECISIONS, Layer, from_inspector, from_log, heavy_counts, real_precision, wider
from engine.plans import Compiled

if TYPE_CHECKING:
    import tensorrt as trt  # typings/tensorrt
else:
    try:
        import tensorrt as trt
    except ImportError:
        try:
            import tensorrt_rtx as trt
        except ImportError as error:
            raise RuntimeUnavailable(f"neither tensorrt nor tensorrt_rtx can be imported: {error}") from error

__all__ = [
    "CONFIGURATION",
    "MESSAGES",
    "RTX",
    "VERSION",
    "Monitor",
    "Progress",
    "RefusedPlan",
    "check_precision",
    "compile_graph",
    "compile_product",
    "deserialise",
    "trt",
]

RTX = trt.__name__ == "tensorrt_rtx"
# what a plan is built with besides its graph; counted up with whatever here makes other plans of the same graph
CONFIGURATION = 1
VERSION = f"{trt.__name__} {trt.__version__}"
OLDEST = (10, 12)
# a graph's outside weights would be looked for beside it, by default in the working directory; here can be none
NOWHERE = f"{os.devnull}/graph"
# TensorRT answers None or False when memory is short, and tells why by a message alone
FULL_MEMORY = re.compile(
    r"out ?of ?memory|could not be allocated|memory ?allocation|insufficient memory", re.IGNORECASE
)

Made = TypeVar("Made")
Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all


def compile_graph(
    onnx: bytes,
    *,
    name: str,
    precision: str,
    batch_size: int,
    capabilities: Sequence[str] = (),
    timing_cache: bytes = b"",
    progress: Progress | None = None,
) -> Compiled:
    """Compile a graph for one static batch.

    Args:
        onnx: the graph, strongly typed, its weights inside, its batch the first dimension of its inputs.
        name: of its file, for messages.
        precision: that the graph was made in, and that the engine must then have: fp32, fp16 or int8.
        batch_size: patches in a batch, N.
        capabilities: of RTX, compute capabilities to compile for (`SM86`); none for the GPU at hand. TensorRT itself
            always compiles for the GPU at hand.
        timing_cache: of an earlier build.
        progress: called from the builder's threads; what it raises ends the build.

    Raises:
        PlanError: TensorRT refuses the graph or cannot build it, or the engine has another precision.
        RuntimeUnavailable: TensorRT makes no builder here.
        OutOfMemory: the GPU's memory is full.
        RuntimeUnavailable: this TensorRT is too old.
    """
    if not RTX and tuple(map(int, trt.__version__.split(".")[:2])) < OLDEST:
        raise RuntimeUnavailable(f"TensorRT is {trt.__version__}, {OLDEST[0]}.{OLDEST[1]} or later is needed")
    with MESSAGES.listen() as heard:
        builder = _made(trt.Builder, heard)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, MESSAGES)
        if not parser.parse(onnx, NOWHERE):
            refusals = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
            raise PlanError(f"{name}: TensorRT refuses the graph: {refusals}")
        config = _configure(builder, network, batch_size, capabilities, timing_cache)
        monitor = Monitor(progress) if progress else None
        if monitor:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if monitor and monitor.failure:
        raise monitor.failure
    if plan is None:
        raise heard.failure(PlanError, f"{name}: TensorRT cannot build it")
    compiled = Compiled(
        plan=bytes(plan),
        layers=_layers_of(bytes(plan), heard.layers),
        timing_cache=b"" if RTX else bytes(config.get_timing_cache().serialize()),
    )
    check_precision(heavy_counts(compiled.layers), precision, graph=_counts_of(network))
    return compiled


def compile_product(side: int, *, half: bool, capabilities: Sequence[str] = ()) -> bytes:
    """An engine that multiplies the matrices `left` and `right` (side, side) into `product`, in float16 or float32.

    Raises:
        PlanError: TensorRT cannot build it.
        OutOfMemory: the GPU's memory is full.
    """
    with MESSAGES.listen() as heard:
        builder = _made(trt.Builder, heard)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        kind = trt.float16 if half else trt.float32
        left, right = (network.add_input(name, kind, (side, side)) for name in ("left", "right"))
        plain = trt.MatrixOperation.NONE
        product = network.add_matrix_multiply(left, plain, right, plain).get_output(0)
        product.name = "product"
        network.mark_output(product)
        plan = builder.build_serialized_network(network, _configure(builder, network, side, capabilities, b""))
    if plan is None:
        raise heard.failure(PlanError, "TensorRT cannot build a matrix product")
    return bytes(plan)


def deserialise(plan: bytes) -> "tuple[trt.Runtime, trt.ICudaEngine]":
    """A plan as an engine, and the runtime, which the engine needs to its end.

    Raises:
        OutOfMemory: the GPU's memory does not hold it.
        RefusedPlan: TensorRT does not take it, whatever its record says.
    """
    with MESSAGES.listen() as heard:
        runtime = _made(trt.Runtime, heard)
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise heard.failure(RefusedPlan, "TensorRT does not load the plan")
    return runtime, engine


def check_precision(engine: Mapping[str, int], asked: str, *, graph: Mapping[str, int]) -> None:
    """Compare the precision that an engine has with the one asked for.

    Args:
        engine: how many of its convolutions and matrix products have each precision.
        asked: fp32, fp16 or int8.
        graph: the same of the graph, which may keep some of them wider than asked for, or most.

    Raises:
        PlanError: the engine has none in that precision, or some in a narrower one, or more in wider ones than the
            graph keeps there.
    """
    told = ", ".join(f"{count} in {name}" for name, count in sorted(engine.items())) or "none"
    real = real_precision(engine)
    if real != asked:
        raise PlanError(
            f"the engine is {real or 'of no known precision'}, not {asked}: of its convolutions and products {told}"
        )
    for precision in PRECISIONS:
        found, kept = wider(engine, precision), wider(graph, precision)
        if found > kept:
            raise PlanError(
                f"the engine runs {found} convolutions and products wider than {precision}, the graph only {kept}: "
                f"{told}"
            )


class RefusedPlan(PlanError):
    """TensorRT does not take a plan that was found."""


@dataclass(slots=True)
class Heard:
    """What TensorRT said during one call.

    Attributes:
        errors: in their order.
        layers: of the engine, as RTX's builder tells them.
    """

    errors: list[str] = field(default_factory=list)
    layers: str = ""

    def failure(self, kind: type[EngineError], what: str) -> EngineError:
        """The error of a call that failed: `OutOfMemory` where TensorRT complained of that, else `kind`."""
        full = any(map(FULL_MEMORY.search, self.errors))
        why = self.errors[-1] if self.errors else "it does not say why"
        return (OutOfMemory if full else kind)(f"{what}: {why}")


class Messages(trt.ILogger):
    """TensorRT's messages, sorted by the call that they belong to.

    One for the process (`MESSAGES`): TensorRT keeps the first logger that it is given, and may use it at any time.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._listening: dict[int, Heard] = {}  # by thread

    def log(self, severity: "trt.ILogger.Severity", msg: str) -> None:
        """Called by TensorRT, from any thread; most of what it says is verbose and nobody's."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            for heard in self._concerned():
                heard.errors.append(msg)
        elif RTX and severity == trt.ILogger.VERBOSE and msg.startswith("Layers:"):
            for heard in self._concerned():
                heard.layers = msg

    @contextmanager
    def listen(self) -> Iterator[Heard]:
        """What TensorRT says inside, because of this thread."""
        thread, heard = get_ident(), Heard()
        assert thread not in self._listening
        self._listening[thread] = heard
        try:
            yield heard
        finally:
            del self._listening[thread]

    def _concerned(self) -> list[Heard]:
        """The call of this thread; of a thread of TensorRT's own nobody knows whose it is."""
        own = self._listening.get(get_ident())
        return list(self._listening.values()) if own is None else [own]


MESSAGES = Messages()


def _made(make: "Callable[[trt.ILogger], Made]", heard: Heard) -> Made:
    """A builder or a runtime.

    Raises:
        OutOfMemory: the GPU's memory is full.
        RuntimeUnavailable: TensorRT makes none, as on a driver that is too old for it.
    """
    try:
        return make(MESSAGES)
    except TypeError as error:  # how its bindings say that they got none
        raise heard.failure(RuntimeUnavailable, f"TensorRT makes no {make.__name__}") from error


class Monitor(trt.IProgressMonitor):
    """TensorRT's progress, told on.

    Attributes:
        failure: what `progress` raised, which cannot pass through TensorRT; it stops the build instead.
    """

    def __init__(self, progress: Progress) -> None:
        trt.IProgressMonitor.__init__(self)
        self.failure: BaseException | None = None
        self._progress = progress
        self._steps: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Called by TensorRT, from any thread."""
        self._steps[phase_name] = num_steps
        self._tell(phase_name, 0)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT; False stops the build."""
        self._tell(phase_name, step + 1)
        return self.failure is None

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT, also when a phase ends early."""
        self._tell(phase_name, self._steps.get(phase_name, 1))

    def _tell(self, phase_name: str, done: int) -> None:
        try:
            self._progress(phase_name, done, self._steps.get(phase_name, 1))
        except BaseException as error:  # noqa: BLE001 - kept, and raised again by `compile_graph`
            self.failure = self.failure or error


def _configure(
    builder: "trt.Builder",
    network: "trt.INetworkDefinition",
    batch_size: int,
    capabilities: Sequence[str],
    timing_cache: bytes,
) -> "trt.IBuilderConfig":
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector tells names alone
    config.clear_flag(trt.BuilderFlag.TF32)  # 10 bits of mantissa are no fp32
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        port = network.get_input(index)
        shape = (batch_size, *tuple(port.shape)[1:])
        profile.set_shape(port.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    if RTX:
        chosen: Any = config  # which TensorRT has not
        names: Any = trt
        if capabilities:
            chosen.num_compute_capabilities = len(capabilities)
            for index, name in enumerate(capabilities):
                chosen.set_compute_capability(getattr(names.ComputeCapability, name), index)
    else:
        for content in (timing_cache, b""):  # one of another GPU or version is refused
            cache = config.create_timing_cache(content)
            if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
                break
    return config


def _layers_of(plan: bytes, printed: str) -> list[Layer]:
    """The engine's layers: by the inspector where a GPU can load the engine, else as RTX's builder printed them."""
    try:
        _runtime, engine = deserialise(plan)
    except RefusedPlan as error:
        if printed:
            return from_log(printed)
        raise PlanError(f"what was built cannot be used: {error}") from error  # built again, it would be no better
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        return from_inspector(information)
    except ValueError as error:
        raise PlanError(str(error)) from error


def _counts_of(network: "trt.INetworkDefinition") -> dict[str, int]:
    """How many convolutions and matrix products of the graph have each precision; int8 dequantises both factors."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    dequantised = {layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.DEQUANTIZE}
    names = {trt.float32: "fp32", trt.float16: "fp16", trt.bfloat16: "bf16"}
    counts: Counter[str] = Counter()
    for layer in layers:
        if layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY):
            factors = [layer.get_input(index) for index in range(min(2, layer.num_inputs))]
            if len(factors) == 2 and all(factor.name in dequantised for factor in factors):
                counts["int8"] += 1
            else:
                counts[names.get(factors[0].dtype, "int8")] += 1
    return dict(counts)
