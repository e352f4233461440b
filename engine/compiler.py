"""An ONNX graph to a TensorRT plan: one function for TensorRT 10.12 and later, 11, and TensorRT-RTX.

The graph alone decides the precision. Networks are strongly typed: TensorRT 11 knows nothing else and has no precision
flags any more, and tools that still set one silently make engines in float32. So nothing is asked for here, and what
came out is read back and compared.

The one file that imports TensorRT; `engine.gpu` has it from here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import PlanError, RuntimeUnavailable
from engine.layers import Layer, from_inspector, from_log, heavy_counts, real_precision

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

__all__ = ["RTX", "VERSION", "Compiled", "Messages", "Monitor", "Progress", "check_precision", "compile_graph", "trt"]

RTX = trt.__name__ == "tensorrt_rtx"
VERSION = f"{trt.__name__} {trt.__version__}"
OLDEST = (10, 12)

Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What a build gives.

    Attributes:
        plan: the serialized engine.
        layers: of the engine, as TensorRT tells them.
        timing_cache: what the builder has measured, for the next build; empty for RTX, which measures nothing.
    """

    plan: bytes
    layers: list[Layer]
    timing_cache: bytes


def compile_graph(
    graph: Path,
    *,
    precision: str,
    batch_size: int,
    capabilities: Sequence[str] = (),
    timing_cache: bytes = b"",
    progress: Progress | None = None,
) -> Compiled:
    """Compile a graph for one static batch.

    Args:
        graph: ONNX file, strongly typed, its batch the first dimension of its inputs.
        precision: that the graph was made in, and that the engine must then have: fp32, fp16 or int8.
        batch_size: patches in a batch, N.
        capabilities: of RTX, compute capabilities to compile for (`SM86`); none for the GPU at hand. TensorRT itself
            always compiles for the GPU at hand.
        timing_cache: of an earlier build.
        progress: called from the builder's threads; what it raises ends the build.

    Raises:
        PlanError: TensorRT refuses the graph or cannot build it, or the engine has another precision.
        RuntimeUnavailable: this TensorRT is too old.
    """
    if not RTX and tuple(map(int, trt.__version__.split(".")[:2])) < OLDEST:
        raise RuntimeUnavailable(f"TensorRT is {trt.__version__}, {OLDEST[0]}.{OLDEST[1]} or later is needed")
    messages = Messages()
    builder = trt.Builder(messages)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages)
    if not parser.parse_from_file(str(graph)):
        refusals = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise PlanError(f"{graph.name}: TensorRT refuses the graph: {refusals}")
    config = _configure(builder, network, batch_size, capabilities, timing_cache)
    monitor = Monitor(progress) if progress else None
    if monitor:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor and monitor.failure:
        raise monitor.failure
    if plan is None:
        raise PlanError(f"{graph.name}: TensorRT cannot build it: {messages.last_error}")
    compiled = Compiled(
        plan=bytes(plan),
        layers=_layers_of(bytes(plan), messages),
        timing_cache=b"" if RTX else bytes(config.get_timing_cache().serialize()),
    )
    check_precision(compiled.layers, precision, in_graph=_float_layers(network))
    return compiled


def check_precision(layers: Sequence[Layer], asked: str, *, in_graph: int) -> None:
    """Compare the precision that an engine has with the one asked for.

    Args:
        layers: of the engine.
        asked: fp32, fp16 or int8.
        in_graph: convolutions and matrix products that the graph itself keeps in float32.

    Raises:
        PlanError: most of the engine's work is done in another precision, or more of a half-precision graph in float32
            than the graph has there.
    """
    counts = heavy_counts(layers)
    real = real_precision(counts)
    told = ", ".join(f"{count} in {name}" for name, count in sorted(counts.items())) or "none"
    if real != asked:
        raise PlanError(
            f"the engine is {real or 'of no known precision'}, not {asked}: of its convolutions and products {told}"
        )
    if asked == "fp16" and counts.get("fp32", 0) > in_graph:
        raise PlanError(f"the engine runs more in fp32 than the {in_graph} layers that the graph keeps there: {told}")


class Messages(trt.ILogger):
    """TensorRT's messages: the last error, for ours, and the engine's layers."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.last_error = "it does not say why"
        self.layers = ""

    def log(self, severity: "trt.ILogger.Severity", msg: str) -> None:
        """Called by TensorRT."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.last_error = msg
        elif msg.startswith("Layers:"):
            self.layers = msg


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


def _layers_of(plan: bytes, messages: Messages) -> list[Layer]:
    """The engine's layers: by the inspector where a GPU can load the engine, else as the builder told them."""
    printed = messages.layers
    engine = trt.Runtime(messages).deserialize_cuda_engine(plan)
    if engine is None:
        return from_log(printed)
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        return from_inspector(information)
    except ValueError as error:
        raise PlanError(str(error)) from error


def _float_layers(network: "trt.INetworkDefinition") -> int:
    """Convolutions and matrix products that the graph has in float32."""
    heavy = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return sum(layer.type in heavy and layer.get_input(0).dtype == trt.float32 for layer in layers)
