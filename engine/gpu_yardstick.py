"""What a GPU does at best, measured on itself: a matrix product by TensorRT, and a copy inside its memory."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pycuda.driver as cuda

from engine.compiler import MESSAGES, compile_product, deserialise, trt
from engine.errors import InferenceError, PlanError
from engine.gpu import new_event

SIDE = 4096
COPY_BYTES = 256 * 2**20  # larger than caches


class GpuYardstick:
    """A product and a copy, timed by the GPU's events. Made, used and freed with the context current.

    Args:
        half: multiply in float16, else in float32; sums are TensorRT's choice.

    Attributes:
        gflop: arithmetic of a product.
        gigabytes: that a copy reads and writes.

    Raises:
        PlanError: TensorRT builds no such product.
        OutOfMemory: the GPU's memory is full.
    """

    def __init__(self, *, half: bool) -> None:
        self.gflop, self.gigabytes = 2 * SIDE**3 / 1e9, 2 * COPY_BYTES / 1e9
        self._memory: list[Any] = []
        self._runtime, engine = deserialise(compile_product(SIDE, half=half))
        with MESSAGES.listen() as heard:
            self._execution = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.STATIC)
        if self._execution is None:
            raise heard.failure(PlanError, "TensorRT makes no execution context of a product")
        self._stream, self._events = cuda.Stream(), (new_event(), new_event())
        # numbers as a network has them: a GPU multiplies zeros with less power, and then faster
        noise = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
        noise = noise.astype(np.float16 if half else np.float32)
        try:
            for name in ("left", "right", "product"):
                self._memory.append(cuda.mem_alloc(noise.nbytes))
                cuda.memcpy_htod(self._memory[-1], noise)
                if not self._execution.set_tensor_address(name, int(self._memory[-1])):
                    raise InferenceError(f"TensorRT does not take the memory for {name}")
            self._copies = [cuda.mem_alloc(COPY_BYTES) for _ in range(2)]
            self._memory += self._copies
        except BaseException:
            self.free()
            raise

    def product(self) -> float:
        """Seconds of a product."""
        return self._timed(self._multiply)

    def copy(self) -> float:
        """Seconds of a copy."""
        return self._timed(lambda: cuda.memcpy_dtod_async(*self._copies, COPY_BYTES, self._stream))

    def free(self) -> None:
        """Give the memory back."""
        self._execution = None
        for memory in self._memory:
            with suppress(cuda.Error):
                memory.free()
        self._memory = []

    def _multiply(self) -> None:
        assert self._execution is not None
        with MESSAGES.listen() as heard:
            if not self._execution.execute_async_v3(self._stream.handle):
                raise heard.failure(InferenceError, "TensorRT could not multiply")

    def _timed(self, work: Callable[[], object]) -> float:
        begun, done = self._events
        begun.record(self._stream)
        work()
        done.record(self._stream)
        done.synchronize()
        return float(done.time_since(begun)) / 1000
