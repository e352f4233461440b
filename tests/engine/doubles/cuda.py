# ruff: noqa: ANN401 - a double takes what comes
"""Doubles of the small part of `pycuda` and `cuda.bindings` that the runner uses.

They claim nothing of CUDA; they hold the runner to the rules that it is known to have. Nothing that is put on a stream
happens before someone waits for it, and then the streams move in the least helpful order: what the runner does not
order by events comes out wrong. Memory is counted; every call needs its context current to its thread.
"""

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray


class CudaError(Exception):
    """pycuda's base class."""


class CudaMemoryError(CudaError):
    """Out of memory."""


class CudaLogicError(CudaError):
    """What pycuda raises for most else."""


class Machine:
    """GPUs, their memory, and everything that was asked of them.

    Attributes:
        gpus: how many there are.
        capabilities: of some of them by number; else 8.6.
        memory_bytes: of each GPU, whose contexts share it.
        memory_of: the same of some GPUs by number.
        scratch_bytes_a_patch: that an engine needs.
        calls: names of calls in their order.
        fail: by the name of a call, what it does the next times: raise an error, `lose` the device, or answer a status;
            of TensorRT's calls a text is logged as an error, and the answer is then None or False, as it is for False.
        drift: by `launch` and `graph`, what is added to all outputs the next times.
        loggers: that TensorRT was given.
        unrecoverable: no new context can be made.
        driver_too_old: TensorRT makes no builder.
        datatype: that the inspector tells of the engine's layers.
        datatypes: the same by a word in the name of the graph.
        seconds: what a launch costs, by `launch` and `graph`, on `clock`.
        capture: whether a stream can be captured.
        built: batch sizes of the plans that were built, and the timing caches that came with them.
    """

    def __init__(self) -> None:
        self.gpus = 1
        self.capabilities: dict[int, tuple[int, int]] = {}
        self.memory_bytes = 2**40
        self.memory_of: dict[int, int] = {}
        self.scratch_bytes_a_patch = 1000
        self.calls: list[str] = []
        self.fail: dict[str, list[Any]] = {}
        self.drift: dict[str, list[float]] = {}
        self.loggers: list[Any] = []
        self.unrecoverable = False
        self.driver_too_old = False
        self.datatype = "Float"
        self.datatypes: dict[str, str] = {}
        self.seconds = {"launch": 0.0, "graph": 1.0}
        self.now_s = 0.0
        self.capture = True
        self.built: list[tuple[int, bytes]] = []
        self.contexts: list[Context] = []
        self._threads = threading.local()

    def clock(self) -> float:
        """Seconds that launches took."""
        return self.now_s

    @property
    def stack(self) -> "list[Context]":
        """Contexts of this thread, the current one last."""
        if not hasattr(self._threads, "stack"):
            self._threads.stack = []
        stack: list[Context] = self._threads.stack
        return stack

    @property
    def used_bytes(self) -> int:
        return sum(context.used_bytes for context in self.contexts)

    def drift_of(self, name: str) -> float:
        """What is added to all outputs this time."""
        waiting = self.drift.get(name)
        return waiting.pop(0) if waiting else 0.0

    def refuses(self, name: str) -> bool:
        """A call of TensorRT's, and whether it is to answer None or False."""
        (said,) = self.fail.get(name, [None])[:1] or [None]
        self.call(name)
        if isinstance(said, str) and said != "lose":
            self.loggers[-1].log("error", said)
            return True
        return said is False

    def call(self, name: str) -> "Context":
        """Note a call; it fails as it was told to, or because the context is spoiled."""
        self.calls.append(name)
        assert self.stack, f"{name} without a current context"
        context = self.stack[-1]
        assert not context.destroyed, f"{name} in a destroyed context"
        if self.fail.get(name):
            error = self.fail[name].pop(0)
            if error == "lose":
                context.spoiled = True
            elif isinstance(error, Exception):
                raise error
        if context.spoiled:
            raise CudaLogicError(f"{name} failed: an illegal memory access was encountered")
        return context


class Context:
    """A CUDA context; its streams move when someone waits."""

    def __init__(self, machine: Machine, device: int) -> None:
        self.machine, self.device = machine, device
        self.used_bytes = 0
        self.spoiled = self.destroyed = False
        self.streams: list[Stream] = []
        self.memory: dict[int, Allocation] = {}
        machine.contexts.append(self)
        machine.stack.append(self)

    def push(self) -> None:
        assert not self.destroyed
        self.machine.stack.append(self)

    def pop(self) -> None:
        assert self.machine.stack.pop() is self

    def detach(self) -> None:
        assert self.machine.stack.pop() is self, "destroyed while it was not current"
        self.destroyed, self.used_bytes = True, 0

    def run_until(self, done: Callable[[], bool]) -> None:
        """Move the streams, the last one first, one step at a time."""
        while not done():
            assert any(stream.step() for stream in reversed(self.streams)), "everybody waits for somebody"

    def take(self, size: int) -> None:
        used_bytes = sum(context.used_bytes for context in self.machine.contexts if context.device == self.device)
        if used_bytes + size > self.machine.memory_of.get(self.device, self.machine.memory_bytes):
            raise CudaMemoryError("cuMemAlloc failed: out of memory")
        self.used_bytes += size


class Stream:
    def __init__(self, machine: Machine) -> None:
        self.context = machine.call("stream")
        self.queue: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()
        self.captured: list[Callable[[float], None]] | None = None
        self.handle = self
        self.context.streams.append(self)

    def put(self, work: Callable[[], None], ready: Callable[[], bool] = lambda: True) -> None:
        self.queue.append((ready, work))

    def step(self) -> bool:
        """One piece of work, if there is one that may begin."""
        if not self.queue or not self.queue[0][0]():
            return False
        self.queue.popleft()[1]()
        return True

    def wait_for_event(self, event: "Event") -> None:
        self.context.machine.call("wait_for_event")
        wanted = event.recorded
        self.put(lambda: None, lambda: event.reached >= wanted)

    def synchronize(self) -> None:
        self.context.machine.call("stream_synchronize")
        self.context.run_until(lambda: not self.queue)


class Event:
    def __init__(self, machine: Machine, flags: str) -> None:
        assert flags == "asleep"
        self.context = machine.call("event")
        self.recorded = self.reached = 0

    def record(self, stream: Stream) -> None:
        self.context.machine.call("record")
        self.recorded += 1
        now = self.recorded

        def reach() -> None:
            self.reached = now

        stream.put(reach)

    def synchronize(self) -> None:
        assert self.context.machine.call("event_synchronize") is self.context
        self.context.run_until(lambda: self.reached >= self.recorded)

    def time_since(self, earlier: "Event") -> float:
        """Milliseconds, of which the double knows nothing; both must have been reached."""
        assert self.context.machine.call("time_since") is self.context
        assert earlier.reached == earlier.recorded > 0
        assert self.reached == self.recorded > 0
        return 12.5


class Allocation:
    """Memory of a device, or pinned memory of the host."""

    def __init__(self, machine: Machine, name: str, size: int) -> None:
        self.context = machine.call(name)
        self.context.take(size if name == "alloc" else 0)
        self.size = size if name == "alloc" else 0
        self.bytes = np.full(size, 0xAB, np.uint8)  # what was there before
        self.context.memory[id(self)] = self

    def __int__(self) -> int:
        return id(self)

    def free(self) -> None:
        assert self.context.machine.call("free") is self.context
        del self.context.memory[id(self)]
        self.context.used_bytes -= self.size


class Pinned(np.ndarray):
    """A host array that knows its memory as pycuda's do."""

    memory: Allocation

    @property
    def base(self) -> Any:
        return self.memory


def pycuda_driver(machine: Machine) -> ModuleType:
    """`pycuda.driver`."""

    class Device:
        def __init__(self, number: int) -> None:
            self.number = number

        @staticmethod
        def count() -> int:
            return machine.gpus

        def name(self) -> str:
            return f"Double {self.number}"

        def compute_capability(self) -> tuple[int, int]:
            return machine.capabilities.get(self.number, (8, 6))

        def make_context(self, flags: str) -> Context:
            assert flags == "asleep"
            if machine.unrecoverable:
                raise CudaLogicError("cuCtxCreate failed: unspecified launch failure")
            return Context(machine, self.number)

    def synchronize() -> None:
        context = machine.call("synchronize")
        context.run_until(lambda: not any(stream.queue for stream in context.streams))

    def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> Pinned:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        allocation = Allocation(machine, "pin", size)
        array: Pinned = allocation.bytes.view(dtype).reshape(shape).view(Pinned)
        array.memory = allocation
        return array

    def upload(device: Allocation, host: NDArray[Any], stream: Stream) -> None:
        machine.call("upload")
        stream.put(lambda: np.copyto(device.bytes, np.asarray(host).reshape(-1).view(np.uint8)))

    def download(host: NDArray[Any], device: Allocation, stream: Stream) -> None:
        machine.call("download")
        stream.put(lambda: np.copyto(np.asarray(host).reshape(-1).view(np.uint8), device.bytes))

    def copy(target: Allocation, source: Allocation, size: int, stream: Stream) -> None:
        machine.call("copy")
        assert target.size == source.size == size
        stream.put(lambda: np.copyto(target.bytes, source.bytes))

    module = ModuleType("pycuda.driver")
    module.__dict__.update(
        Error=CudaError,
        MemoryError=CudaMemoryError,
        init=lambda: None,
        Device=Device,
        Context=SimpleNamespace(synchronize=synchronize),
        Stream=lambda: Stream(machine),
        Event=lambda flags: Event(machine, flags),
        ctx_flags=SimpleNamespace(SCHED_BLOCKING_SYNC="asleep"),
        event_flags=SimpleNamespace(BLOCKING_SYNC="asleep"),
        mem_alloc=lambda size: Allocation(machine, "alloc", size),
        pagelocked_empty=pagelocked_empty,
        memcpy_htod_async=upload,
        memcpy_dtoh_async=download,
        memcpy_dtod_async=copy,
        memcpy_htod=lambda device, host: np.copyto(device.bytes, host.reshape(-1).view(np.uint8)),
    )
    return module


def cuda_driver(machine: Machine) -> SimpleNamespace:
    """`cuda.bindings.driver`: the calls that make CUDA graphs, which raise nothing and answer a status."""

    def status_of(name: str) -> int:
        try:
            machine.call(name)
        except CudaLogicError:
            return 719
        return 0

    def begin(stream: Stream, mode: str) -> tuple[int]:
        stream.captured = []
        return (status_of("begin_capture"),)

    def end(stream: Stream) -> tuple[int, Any]:
        status = status_of("end_capture")
        captured, stream.captured = stream.captured, None
        return (status, captured) if machine.capture else (1, None)

    def launch(graph: list[Callable[[float], None]], stream: Stream) -> tuple[int]:
        told = (machine.fail.get("graph") or [0])[0]
        status = status_of("graph") or (told if isinstance(told, int) else 0)
        machine.now_s += machine.seconds["graph"]
        if status:
            return (status,)
        drift = machine.drift_of("graph")
        for work in graph:
            stream.put(partial(work, drift))
        return (0,)

    def destroy(name: str) -> Callable[[Any], tuple[int]]:
        def call(graph: Any) -> tuple[int]:
            return (status_of(name),)

        return call

    return SimpleNamespace(
        CUresult=SimpleNamespace(CUDA_SUCCESS=0, CUDA_ERROR_OUT_OF_MEMORY=2),
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread"),
        cuStreamBeginCapture=begin,
        cuStreamEndCapture=end,
        cuGraphInstantiate=lambda graph, flags: (0, graph),
        cuGraphDestroy=destroy("graph_destroy"),
        cuGraphLaunch=launch,
        cuGraphExecDestroy=destroy("graph_exec_destroy"),
    )
