"""One GPU: a CUDA context with a plan, its buffers, streams and warm-up. The one file that imports pycuda.

How a batch goes, each arrow an event that the next stream waits for, so that no stream waits for the processor:

    upload stream: pinned host -> device  =>  compute stream: the engine  =>  download stream: device -> pinned host

There are two sets of buffers (slots): while the batch of one is computed, the next is copied to pinned memory and
uploaded, and the one before is downloaded. The engine itself runs on one stream with one scratch memory; two batches
computing at a time would only share the same cores.

**The context.** A CUDA context is current to a thread, and this object is built on the thread that loads the bundle,
used by the device's thread and closed by either. So no thread keeps it: every use pushes it, works and pops it, which
costs microseconds against milliseconds of a batch. It is a context of our own, not the device's primary one, because
only then a lost device can be given up, and a bundle that fails while it is loaded beside the one that serves cannot
take that one down. pycuda frees what it made only while the context is current, so everything is freed inside.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backend import Features
from engine.compiler import Messages, trt
from engine.errors import InferenceError, PlanError, RuntimeUnavailable
from engine.manifest import Manifest
from engine.plans import Plan

try:
    import pycuda.driver as cuda
    from cuda.bindings import driver  # pycuda has no stream capture
except ImportError as error:
    raise RuntimeUnavailable(f"pycuda and cuda-bindings cannot be imported: {error}") from error

SLOTS = 2
OLDEST_GPU = (7, 5)
WARM_UP_RUNS = 10
OUTPUTS = ("label_features", "stage1", "activation")

CudaError: type[Exception] = cuda.Error
OutOfMemory: type[Exception] = cuda.MemoryError  # a CudaError


def devices() -> list[int]:
    """Numbers of the GPUs that TensorRT can use.

    Raises:
        RuntimeUnavailable: there is no driver, or no such GPU.
    """
    try:
        cuda.init()
        found = [n for n in range(cuda.Device.count()) if cuda.Device(n).compute_capability() >= OLDEST_GPU]
    except cuda.Error as error:
        raise RuntimeUnavailable(f"CUDA cannot be used here: {error}") from error
    if not found:
        raise RuntimeUnavailable(f"no GPU of compute capability {OLDEST_GPU[0]}.{OLDEST_GPU[1]} or later")
    return found


def name_of(device: int) -> str:
    """Name and compute capability of a GPU, as a plan is good for it."""
    gpu = cuda.Device(device)
    return "{} sm{}{}".format(gpu.name(), *gpu.compute_capability())


class Slot:
    """Buffers of one batch, pinned and on the device, and the events of its way through the streams.

    Attributes:
        rows: patches in it; the rest of the batch is filling.
        graph: the engine's work on these buffers as a CUDA graph, where that is faster.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.host: dict[str, Any] = {}  # arrays whose base frees them
        self.device: dict[str, Any] = {}
        self.uploaded, self.computed, self.done = cuda.Event(), cuda.Event(), cuda.Event()
        self.rows = 0
        self.graph: Any = None
        for name, shape in shapes.items():
            self.host[name] = cuda.pagelocked_empty(shape, np.uint8 if name == "pixels" else np.float32)
            self.device[name] = cuda.mem_alloc(self.host[name].nbytes)

    def fill(self, pixels: NDArray[np.uint8]) -> None:
        """Copy the patches to pinned memory, black ones behind them."""
        self.rows = len(pixels)
        self.host["pixels"][: self.rows] = pixels
        self.host["pixels"][self.rows :] = 0

    def answer(self, manifest: Manifest) -> Features:
        """The rows of the patches, copied out of memory that the next batch overwrites."""
        rows = {name: self.host[name][: self.rows].copy() for name in OUTPUTS if name in self.host}
        rows.setdefault("activation", np.zeros((self.rows, len(manifest.labels), 1, 1), np.float32))
        return Features(**rows)

    def free(self) -> None:
        """Give the memory back; the context is current."""
        if self.graph is not None:
            driver.cuGraphExecDestroy(self.graph)
            self.graph = None
        for name in list(self.host):
            with suppress(cuda.Error):  # a lost device refuses; the context is destroyed next, with what it owns
                self.device.pop(name).free()
            with suppress(cuda.Error):
                self.host.pop(name).base.free()


class Gpu:
    """A context on a GPU with everything in it, warmed up. What it raises are pycuda's errors and ours.

    Args:
        device: its number.
        obtain: finds or builds the plan, called with the context current, for the builder builds for that GPU.
        manifest: the bundle's.
        batch_size: patches in a batch.
    """

    def __init__(self, device: int, obtain: Callable[[], Plan], manifest: Manifest, batch_size: int) -> None:
        self._manifest = manifest
        self._slots: list[Slot] = []
        self._free: list[Slot] = []
        self._scratch: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._execution: Any = None
        self._context = cuda.Device(device).make_context()  # current from here on
        try:
            self.plan = obtain()
            self._upload, self._compute, self._download = (cuda.Stream() for _ in range(3))
            self._open(batch_size)
            self._warm_up()
        except BaseException:
            self._destroy()
            raise
        self._context.pop()

    @contextmanager
    def current(self) -> Iterator[None]:
        """The context, current to this thread inside."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def submit(self, pixels: NDArray[np.uint8]) -> Slot:
        """Send a batch on its way; pixels are (n, 1, P, P), n up to the batch size."""
        assert self._free, f"more than {SLOTS} batches at a time"
        slot = self._free.pop()
        try:
            self._send(slot, pixels)
        except BaseException:
            self._free.append(slot)
            raise
        return slot

    def collect(self, slot: Slot) -> Features:
        """Wait for a batch, and free its slot for the next."""
        if slot not in self._slots:
            raise InferenceError("the device was lost and recovered while the batch was under way")
        try:
            slot.done.synchronize()
            return slot.answer(self._manifest)
        finally:
            self._free.append(slot)

    def timed(self, pixels: NDArray[np.uint8]) -> tuple[Features, float]:
        """One batch with nothing beside it, and its seconds on the device from the first byte up to the last down."""
        begun = cuda.Event()
        begun.record(self._upload)
        slot = self.submit(pixels)
        features = self.collect(slot)
        return features, float(slot.done.time_since(begun)) / 1000

    def spoiled(self) -> str:
        """Why this context can do nothing any more; empty while it can.

        An error that spoils a context comes back from every later call, which tells it from others. What was under way
        has ended when this returns.
        """
        try:
            with self.current():
                cuda.Context.synchronize()
        except cuda.Error as error:
            return str(error)
        return ""

    def release(self) -> None:
        """Give everything back, also on a lost device."""
        with suppress(cuda.Error):
            self._context.push()
        self._destroy()

    def _send(self, slot: Slot, pixels: NDArray[np.uint8]) -> None:
        slot.fill(pixels)
        cuda.memcpy_htod_async(slot.device["pixels"], slot.host["pixels"], self._upload)
        slot.uploaded.record(self._upload)
        self._compute.wait_for_event(slot.uploaded)
        self._launch(slot)
        slot.computed.record(self._compute)
        self._download.wait_for_event(slot.computed)
        for name in slot.host:
            if name != "pixels":
                cuda.memcpy_dtoh_async(slot.host[name], slot.device[name], self._download)
        slot.done.record(self._download)

    def _open(self, batch_size: int) -> None:
        messages = Messages()
        self._runtime = trt.Runtime(messages)  # the engine needs it to the end
        self._engine = self._runtime.deserialize_cuda_engine(self.plan.data)
        if self._engine is None:
            raise PlanError(f"TensorRT does not load its own plan: {messages.last_error}")
        # the scratch memory is ours: held once, and a lack of it is an error of CUDA's that names itself
        self._execution = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._execution is None:
            raise PlanError(f"TensorRT makes no execution context: {messages.last_error}")
        size = self._engine.device_memory_size_v2
        self._scratch = cuda.mem_alloc(max(1, size))
        self._execution.set_device_memory(int(self._scratch), size)
        shapes = self._shapes(batch_size)
        for _ in range(SLOTS):
            self._slots.append(Slot(shapes))
        self._free = list(self._slots)

    def _shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Shapes by name, the pixels first; the engine must have the form of a features graph."""
        side, labels = self._manifest.patch_px, len(self._manifest.labels)
        names = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        if not {"pixels", *OUTPUTS[:2]} <= names <= {"pixels", *OUTPUTS}:
            raise PlanError(f"the engine has {sorted(names)}, not those of a features graph")
        shapes: dict[str, tuple[int, ...]] = {"pixels": (batch_size, 1, side, side)}
        if not self._execution.set_input_shape("pixels", shapes["pixels"]):
            raise PlanError(f"the engine does not take pixels of {shapes['pixels']}")
        for name in (name for name in OUTPUTS if name in names):
            shapes[name] = tuple(self._execution.get_tensor_shape(name))
            kind = self._engine.get_tensor_dtype(name)
            if shapes[name][:2] != (batch_size, labels) or kind != trt.float32:
                raise PlanError(f"the engine gives {name} as {shapes[name]} {kind}, not ({batch_size}, {labels}, ...)")
        return shapes

    def _launch(self, slot: Slot) -> None:
        if slot.graph is not None:
            _checked(driver.cuGraphLaunch(slot.graph, self._compute.handle))
            return
        for name, memory in slot.device.items():
            self._execution.set_tensor_address(name, int(memory))
        if not self._execution.execute_async_v3(self._compute.handle):
            raise InferenceError("TensorRT could not run the batch")

    def _warm_up(self) -> None:
        """Run, first as it is and then as a CUDA graph, and keep what is faster."""
        for slot in self._slots:
            slot.fill(np.zeros((0, *slot.host["pixels"].shape[1:]), np.uint8))
            cuda.memcpy_htod_async(slot.device["pixels"], slot.host["pixels"], self._compute)
        plain_s = self._time()
        try:
            for slot in self._slots:
                slot.graph = self._capture(slot)
            graph_s = self._time()
        except _NoGraph:
            graph_s = float("inf")
        if graph_s >= plain_s:
            for slot in self._slots:
                if slot.graph is not None:
                    _checked(driver.cuGraphExecDestroy(slot.graph))
                    slot.graph = None

    def _time(self) -> float:
        """Median seconds of a batch from its launch to its end."""
        times = []
        for run in range(WARM_UP_RUNS):
            start = time.perf_counter()
            self._launch(self._slots[run % SLOTS])
            self._compute.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times[SLOTS:])  # the first run of each slot pays for what is made at first use

    def _capture(self, slot: Slot) -> Any:  # noqa: ANN401 - the driver's
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(driver.cuStreamBeginCapture(self._compute.handle, mode))
        try:
            self._launch(slot)
        except InferenceError as error:
            driver.cuStreamEndCapture(self._compute.handle)
            raise _NoGraph(str(error)) from error
        graph = _checked(driver.cuStreamEndCapture(self._compute.handle))
        try:
            return _checked(driver.cuGraphInstantiate(graph, 0))
        finally:
            driver.cuGraphDestroy(graph)

    def _destroy(self) -> None:
        """Free what the context holds, then the context, which is current; nothing is current afterwards.

        A lost device refuses each of these calls; what it held is gone with its context all the same.
        """
        with suppress(cuda.Error):
            cuda.Context.synchronize()
        for slot in self._slots:
            slot.free()
        self._slots, self._free = [], []
        if self._scratch is not None:
            with suppress(cuda.Error):
                self._scratch.free()
        self._scratch = self._execution = self._engine = self._runtime = None
        self._upload = self._compute = self._download = None
        with suppress(cuda.Error):
            self._context.detach()


class _NoGraph(InferenceError):
    """The driver makes no CUDA graph of the engine's work."""


def _checked(result: tuple[Any, ...]) -> Any:  # noqa: ANN401 - the driver's
    """The value of a call of the driver.

    Raises:
        _NoGraph: the call failed.
    """
    status, *values = result
    if status != driver.CUresult.CUDA_SUCCESS:
        raise _NoGraph(str(status))
    return values[0] if values else None
