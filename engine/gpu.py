"""One GPU: a CUDA context with a plan, its buffers, streams and warm-up. It and its yardstick import pycuda.

How a batch goes, each arrow an event that the next stream waits for, so that no stream waits for the processor:

    upload stream: pinned host -> device  =>  compute stream: the engine  =>  download stream: device -> pinned host

There are two sets of buffers, taken in turn: while the batch of one is computed, the next is copied to pinned memory
and uploaded, and the one before is downloaded. The engine itself runs on one stream with one scratch memory; two
batches computing at a time would only share the same cores.

**The context.** A CUDA context is current to a thread, and this object is built on the thread that loads the bundle,
used by the device's thread and closed by either. So no thread keeps it: every use pushes it, works and pops it, which
costs microseconds against milliseconds of a batch. It is a context of our own, not the device's primary one, so that
it can be given up with all that it holds. It is no wall: a call that is refused, or memory that is full, is its own
matter, but a fault of the GPU, such as an illegal memory access, may take every context of the process with it. On an
H100 (driver 580, CUDA 13) a new one failed after that too; what becomes of one that was there was not seen, so each
asks for itself (`spoiled`). pycuda frees what it made only while the context is current, so everything is freed inside.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backend import Features
from engine.batches import UNDER_WAY
from engine.compiler import MESSAGES, deserialise, trt
from engine.errors import InferenceError, OutOfMemory, PlanError, RuntimeUnavailable
from engine.manifest import Manifest
from engine.plans import Plan

try:
    import pycuda.driver as cuda
    from cuda.bindings import driver  # pycuda has no stream capture
except ImportError as error:
    raise RuntimeUnavailable(f"pycuda and cuda-bindings cannot be imported: {error}") from error

BUFFER_SETS = UNDER_WAY
OLDEST_GPU = (7, 5)
WARM_UP_RUNS = 10
OUTPUTS = ("label_features", "stage1", "activation")
# a thread that waits sleeps: what CUDA would choose may keep a core busy, and decoding needs the cores
SLEEP_WHILE_WAITING = cuda.ctx_flags.SCHED_BLOCKING_SYNC


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


def new_event() -> Any:  # noqa: ANN401 - pycuda has no types
    """An event with a time, on which a thread waits asleep."""
    return cuda.Event(cuda.event_flags.BLOCKING_SYNC)


@contextmanager
def cuda_errors() -> Iterator[None]:
    """CUDA's errors as ours.

    Raises:
        OutOfMemory: the GPU's memory is full.
        InferenceError: anything else.
    """
    try:
        yield
    except cuda.MemoryError as error:
        raise OutOfMemory(str(error)) from error
    except cuda.Error as error:
        raise InferenceError(f"CUDA failed: {error}") from error


class Buffers:
    """Buffers of one batch, pinned and on the device, and the events of its way through the streams.

    Attributes:
        rows: patches in it; the rest of the batch is filling.
        graph: the engine's work on these buffers as a CUDA graph, where that is faster.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.host: dict[str, Any] = {}  # arrays whose base frees them
        self.device: dict[str, Any] = {}
        self.uploaded, self.computed, self.done = (new_event() for _ in range(3))
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
        return Features(**rows, doubt=np.ones(self.rows, np.float32))

    def drop_graph(self) -> None:
        """Launch as it is from now on; the context is current."""
        if self.graph is not None:
            driver.cuGraphExecDestroy(self.graph)
            self.graph = None

    def free(self) -> None:
        """Give the memory back; the context is current."""
        self.drop_graph()
        for name in list(self.host):
            with suppress(cuda.Error):  # a lost device refuses; the context is destroyed next, with what it owns
                self.device.pop(name).free()
            with suppress(cuda.Error):
                self.host.pop(name).base.free()


class Gpu:
    """A context on a GPU with everything in it, warmed up.

    Args:
        device: its number.
        obtain: finds or builds the plan, called with the context current, for the builder builds for that GPU.
        manifest: the bundle's.
        batch_size: patches in a batch.

    Raises:
        OutOfMemory: the GPU's memory does not hold it.
        InferenceError: CUDA fails, or the engine does not answer alike in all the ways that it is run.
        PlanError: the plan cannot be had; `RefusedPlan` where TensorRT does not take it.
    """

    def __init__(self, device: int, obtain: Callable[[], Plan], manifest: Manifest, batch_size: int) -> None:
        self._manifest = manifest
        self._sets: list[Buffers] = []
        self._free: deque[Buffers] = deque()
        self._scratch: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._execution: Any = None
        with cuda_errors():
            self._context = cuda.Device(device).make_context(SLEEP_WHILE_WAITING)  # current from here on
        try:
            with cuda_errors():
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
        """The context, current to this thread inside; CUDA's errors become ours."""
        with cuda_errors():
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()

    def submit(self, pixels: NDArray[np.uint8], *, begun: Any = None) -> Buffers:  # noqa: ANN401 - pycuda's event
        """Send a batch on its way.

        Args:
            pixels: (n, 1, P, P), n up to the batch size.
            begun: an event to record when the first byte goes up.
        """
        assert self._free, f"more than {BUFFER_SETS} batches at a time"
        buffers = self._free.popleft()  # in turn, so that whatever is measured or tested sees them all
        try:
            buffers.fill(pixels)
            if begun is not None:
                begun.record(self._upload)
            self._send(buffers)
        except BaseException:
            self._free.append(buffers)
            raise
        return buffers

    def collect(self, buffers: Buffers) -> Features:
        """Wait for a batch, and free its buffers for another."""
        if buffers not in self._sets:
            raise InferenceError("the device was lost and recovered while the batch was under way")
        try:
            buffers.done.synchronize()
            return buffers.answer(self._manifest)
        finally:
            self._free.append(buffers)

    def timed(self, pixels: NDArray[np.uint8]) -> tuple[Features, float]:
        """One batch with nothing beside it, and its seconds on the device from the first byte up to the last down."""
        begun = new_event()
        buffers = self.submit(pixels, begun=begun)
        features = self.collect(buffers)
        return features, float(buffers.done.time_since(begun)) / 1000

    def spoiled(self) -> str:
        """Why this context can do nothing any more; empty while it can.

        An error that spoils a context comes back from every later call, which tells it from others. What was under way
        has ended when this returns.
        """
        try:
            with self.current():
                cuda.Context.synchronize()
        except InferenceError as error:
            return str(error)
        return ""

    def release(self) -> None:
        """Give everything back, also on a lost device."""
        with suppress(cuda.Error):
            self._context.push()
        self._destroy()

    def _send(self, buffers: Buffers) -> None:
        cuda.memcpy_htod_async(buffers.device["pixels"], buffers.host["pixels"], self._upload)
        buffers.uploaded.record(self._upload)
        self._compute.wait_for_event(buffers.uploaded)
        self._launch(buffers)
        buffers.computed.record(self._compute)
        self._download.wait_for_event(buffers.computed)
        for name in buffers.host:
            if name != "pixels":
                cuda.memcpy_dtoh_async(buffers.host[name], buffers.device[name], self._download)
        buffers.done.record(self._download)

    def _open(self, batch_size: int) -> None:
        self._runtime, self._engine = deserialise(self.plan.data)
        # the scratch memory is ours: held once, and a lack of it is an error of CUDA's that names itself
        with MESSAGES.listen() as heard:
            self._execution = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._execution is None:
            raise heard.failure(PlanError, "TensorRT makes no execution context")
        size = self._engine.device_memory_size_v2
        self._scratch = cuda.mem_alloc(max(1, size))
        self._execution.set_device_memory(int(self._scratch), size)
        shapes = self._shapes(batch_size)
        for _ in range(BUFFER_SETS):
            self._sets.append(Buffers(shapes))
        self._free = deque(self._sets)

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

    def _launch(self, buffers: Buffers) -> None:
        if buffers.graph is not None:
            _checked(driver.cuGraphLaunch(buffers.graph, self._compute.handle))
            return
        with MESSAGES.listen() as heard:
            for name, memory in buffers.device.items():
                if not self._execution.set_tensor_address(name, int(memory)):
                    raise heard.failure(InferenceError, f"TensorRT does not take the memory for {name}")
            if not self._execution.execute_async_v3(self._compute.handle):
                raise heard.failure(InferenceError, "TensorRT could not run the batch")

    def _warm_up(self) -> None:
        """Run, first as it is and then as a CUDA graph, and keep what is faster.

        A score must not depend on the buffers that a batch happens to get, nor on the way in which it is launched.
        """
        plain = [self._answer_to_noise(buffers) for buffers in self._sets]
        if any(answer != plain[0] for answer in plain):
            raise InferenceError(
                "the engine gives the same patches other bits from one set of buffers than from another"
            )
        plain_s = self._time()
        try:
            with cuda_errors():
                for buffers in self._sets:
                    buffers.graph = self._capture(buffers)
                same = [self._answer_to_noise(buffers) for buffers in self._sets] == plain
                keep = same and self._time() < plain_s
        except InferenceError:  # the driver makes no CUDA graph of this engine, or does not run it to its end
            keep = False
        if not keep:
            for buffers in self._sets:
                buffers.drop_graph()
            self._compute.synchronize()  # fails where the trial has spoiled the context

    def _answer_to_noise(self, buffers: Buffers) -> list[bytes]:
        """All outputs for one batch of noise, always the same."""
        buffers.fill(np.random.default_rng(0).integers(0, 256, buffers.host["pixels"].shape, np.uint8))
        self._send(buffers)
        buffers.done.synchronize()
        return [array.tobytes() for name, array in buffers.host.items() if name != "pixels"]

    def _time(self) -> float:
        """Median seconds of a batch from its launch to its end."""
        times = []
        for run in range(WARM_UP_RUNS):
            start = time.perf_counter()
            self._launch(self._sets[run % BUFFER_SETS])
            self._compute.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times[BUFFER_SETS:])  # the first run of each set pays for what is made at first use

    def _capture(self, buffers: Buffers) -> Any:  # noqa: ANN401 - the driver's
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(driver.cuStreamBeginCapture(self._compute.handle, mode))
        try:
            self._launch(buffers)
        except InferenceError:
            driver.cuStreamEndCapture(self._compute.handle)
            raise
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
        for buffers in self._sets:
            buffers.free()
        self._sets, self._free = [], deque()
        if self._scratch is not None:
            with suppress(cuda.Error):
                self._scratch.free()
        self._scratch = self._execution = self._engine = self._runtime = None
        self._upload = self._compute = self._download = None
        with suppress(cuda.Error):
            self._context.detach()


def _checked(result: tuple[Any, ...]) -> Any:  # noqa: ANN401 - the driver's
    """The value of a call of the driver, which pycuda does not make; its failures as `cuda_errors` has pycuda's.

    Raises:
        OutOfMemory: the GPU's memory is full.
        InferenceError: the call failed otherwise.
    """
    status, *values = result
    if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise OutOfMemory(str(status))
    if status != driver.CUresult.CUDA_SUCCESS:
        raise InferenceError(f"CUDA failed: {status}")
    return values[0] if values else None
