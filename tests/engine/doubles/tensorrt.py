# ruff: noqa: ANN401 - a double takes what comes
"""A double of the small part of `tensorrt` that the engine uses. It claims nothing of TensorRT.

A graph has one convolution, in the precision that it is named after; an engine's is `Machine.datatype`.
"""

import json
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from engine.graphs import FOREIGN_ERRORS
from tests.engine.doubles.cuda import Machine, Stream


def tensorrt(machine: Machine) -> ModuleType:
    """`tensorrt`: a builder whose plans are the ONNX file itself, run by ONNX Runtime."""

    class Base:
        def __init__(self, *_: object) -> None:
            pass

    class Logged:
        def __init__(self, logger: Any) -> None:
            if logger not in machine.loggers:
                machine.loggers.append(logger)

    class Network:
        num_inputs = 1

        def __init__(self) -> None:
            self.onnx, self.name, self.layers, self.inputs = b"", "", list[Any](), [port]

        @property
        def num_layers(self) -> int:
            return len(self.layers)

        def get_layer(self, index: int) -> Any:
            return self.layers[index]

        def get_input(self, index: int) -> Any:
            return self.inputs[index]

        def add_input(self, name: str, kind: str, shape: tuple[int, ...]) -> Any:
            self.inputs = [*self.inputs, tensor(name, kind, shape)][-2:]
            self.num_inputs = len(self.inputs)
            return self.inputs[-1]

        def add_matrix_multiply(self, left: Any, plain: str, right: Any, _: str) -> Any:
            assert [left, right] == self.inputs
            assert left.shape == right.shape
            assert plain == "none"
            return SimpleNamespace(get_output=lambda index: tensor("", left.dtype, left.shape))

        def mark_output(self, output: Any) -> None:
            assert output.name == "product"
            self.onnx = b"product"

    def tensor(name: str, dtype: str = "float32", shape: tuple[int, ...] = ()) -> Any:
        return SimpleNamespace(name=name, dtype=dtype, shape=shape)

    def layer(kind: str, inputs: list[Any], output: str) -> Any:
        return SimpleNamespace(
            type=kind, num_inputs=len(inputs), get_input=inputs.__getitem__, get_output=lambda index: tensor(output)
        )

    def layers_of(graph: str) -> list[Any]:
        kind = "float16" if "fp16" in graph else "float32"
        factors = [tensor(name, kind) for name in ("map", "kernel")]
        narrowed = [layer("dequantise", [tensor("narrow")], one.name) for one in factors if "int8" in graph]
        return [*narrowed, layer("convolution", factors, "seen")]

    class Builder(Logged):
        def __init__(self, logger: Any) -> None:
            super().__init__(logger)
            if machine.driver_too_old:
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int) -> Network:
            assert flags == 1 << 1, "strongly typed"
            return Network()

        def create_builder_config(self) -> Any:
            return Config()

        def create_optimization_profile(self) -> Any:
            return SimpleNamespace(set_shape=lambda name, low, best, high: shapes.update({name: (low, best, high)}))

        def build_serialized_network(self, network: Any, config: "Config") -> bytes | None:
            if machine.refuses("build"):
                return None
            if network.onnx == b"product":
                return b"product"
            batch = shapes["pixels"][0][0]
            assert shapes["pixels"] == ((batch, *port.shape[1:]),) * 3, "one static batch"
            machine.built.append((batch, config.timing))
            monitor = config.progress_monitor
            if monitor is not None:
                monitor.phase_start("Building", None, 2)
                if not all(monitor.step_complete("Building", step) for step in range(2)):
                    return None
                monitor.phase_finish("Building")
            datatypes = [kind for word, kind in machine.datatypes.items() if word in network.name]
            return json.dumps([batch, *(datatypes or [machine.datatype])]).encode() + b"\n" + bytes(network.onnx)

    class Config:
        profiling_verbosity = progress_monitor = None
        timing = b""

        def clear_flag(self, flag: str) -> None:
            assert flag == "tf32"

        def add_optimization_profile(self, profile: object) -> int:
            return 0

        def create_timing_cache(self, content: bytes) -> bytes:
            return content

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            self.timing = cache
            return cache != b"of another GPU"

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: b"timed " + self.timing)

    class OnnxParser:
        num_errors = 1

        def __init__(self, network: Any, logger: object) -> None:
            assert [logger] == machine.loggers
            self.network = network

        def parse(self, model: bytes, path: str) -> bool:
            assert not Path(path).parent.is_dir(), "no weights outside the graph"
            self.network.onnx = model
            try:
                session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            except FOREIGN_ERRORS:
                return False
            port.shape = (-1, *session.get_inputs()[0].shape[1:])
            self.network.name = session.get_modelmeta().graph_name
            self.network.layers = layers_of(self.network.name)
            return True

        def get_error(self, index: int) -> str:
            return "no graph"

    class Engine:
        def __init__(self, plan: bytes) -> None:
            head, _, model = plan.partition(b"\n")
            self.batch, self.datatype = json.loads(head)
            self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            self.names = ["pixels", *(output.name for output in self.session.get_outputs())]
            self.num_io_tensors = len(self.names)
            self.device_memory_size_v2 = machine.scratch_bytes_a_patch * self.batch

        def get_tensor_name(self, index: int) -> str:
            return str(self.names[index])

        def get_tensor_dtype(self, name: str) -> str:
            return "uint8" if name == "pixels" else "float32"

        def create_execution_context(self, strategy: str) -> "Execution | None":
            assert strategy == "user"
            return None if machine.refuses("create_execution_context") else Execution(self)

        def create_engine_inspector(self) -> Any:
            layer = {
                "Name": "conv",
                "LayerType": "CaskConvolution",
                "Inputs": [{"Format/Datatype": f"Row major linear {self.datatype} format"}],
            }
            return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": [layer]}))

    class Execution:
        def __init__(self, engine: Engine) -> None:
            self.engine = engine
            self.addresses: dict[str, int] = {}
            self.scratch = 0

        def set_device_memory(self, memory: int, size: int) -> None:
            assert size == self.engine.device_memory_size_v2
            assert machine.stack[-1].memory[memory].size == max(1, size)
            self.scratch = memory

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            machine.calls.append("set_input_shape")
            return name == "pixels" and shape[0] == self.engine.batch

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            shape = next(output.shape for output in self.engine.session.get_outputs() if output.name == name)
            return self.engine.batch, *shape[1:]

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self.addresses[name] = memory
            return not machine.refuses("set_tensor_address")

        def execute_async_v3(self, stream: Stream) -> bool:
            refused, context = machine.refuses("launch"), machine.stack[-1]
            machine.now_s += machine.seconds["launch"]
            if refused:
                return False
            assert sorted(self.addresses) == sorted(self.engine.names)
            assert self.scratch in context.memory
            memory = {name: context.memory[address] for name, address in self.addresses.items()}

            def work(drift: float) -> None:
                pixels = memory["pixels"].bytes.reshape(self.engine.batch, *port.shape[1:])
                outputs = self.engine.session.run(None, {"pixels": pixels})
                for name, output in zip(self.engine.names[1:], outputs, strict=True):
                    drifted = np.ascontiguousarray(output + np.float32(drift))
                    np.copyto(memory[name].bytes, drifted.reshape(-1).view(np.uint8))

            if stream.captured is None:
                stream.put(partial(work, machine.drift_of("launch")))
            else:
                stream.captured.append(work)
            return True

    class Product:
        """An engine that multiplies, and does not say what."""

        def create_execution_context(self, strategy: str) -> Any:
            assert strategy == "static"
            return SimpleNamespace(
                set_tensor_address=lambda name, memory: memory in machine.stack[-1].memory,
                execute_async_v3=lambda stream: not machine.refuses("multiply"),
            )

    class Runtime(Logged):
        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            if machine.refuses("deserialize"):
                return None
            return Product() if plan == b"product" else Engine(plan)

    port = SimpleNamespace(name="pixels", shape=())
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
    module = ModuleType("tensorrt")
    module.__dict__.update(
        __version__="10.13.0",
        Builder=Builder,
        OnnxParser=OnnxParser,
        Runtime=Runtime,
        ILogger=type("ILogger", (Base,), {"ERROR": "error", "INTERNAL_ERROR": "internal", "VERBOSE": ""}),
        IProgressMonitor=type("IProgressMonitor", (Base,), {}),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
        BuilderFlag=SimpleNamespace(TF32="tf32"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        LayerType=SimpleNamespace(CONVOLUTION="convolution", MATRIX_MULTIPLY="product", DEQUANTIZE="dequantise"),
        MatrixOperation=SimpleNamespace(NONE="none"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user", STATIC="static"),
        bfloat16="bfloat16",
        float16="float16",
        float32="float32",
        uint8="uint8",
    )
    return module
