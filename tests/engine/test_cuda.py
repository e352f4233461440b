"""The TensorRT runner on a real GPU, with a double of TensorRT alone whose engine launches kernels of its own.

What the doubles of CUDA can only assume is held here: contexts, streams, events, pinned memory, stream capture, lack of
memory, a lost device. Needs an NVIDIA GPU, pycuda and cuda-bindings; nothing of TensorRT is tested.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import DEFAULT_BUNDLE, Batch, DeviceLost, Features, stream
from tests.engine.doubles import WITH_A_RUNTIME_INSIDE
from tests.engine.doubles.cuda import Machine
from tests.engine.doubles.tensorrt import tensorrt
from tests.engine.test_backend import BATCH, assert_same, patches

pytestmark = pytest.mark.gpu

WITHOUT = "needs an NVIDIA GPU with pycuda and cuda-bindings"
compiler = pytest.importorskip("pycuda.compiler", reason=WITHOUT, exc_type=ImportError)
cuda = pytest.importorskip("pycuda.driver", reason=WITHOUT, exc_type=ImportError)
driver = pytest.importorskip("cuda.bindings.driver", reason=WITHOUT, exc_type=ImportError)

# each output is the pixels, `stride` apart; `cycles` make it last
KERNEL = """
extern "C" __global__ void pick(const unsigned char *pixels, float *output, int patch, int width, int count,
                                int stride, long long cycles) {
    long long begun = clock64();
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) {
        long long row = index / width, column = index % width;
        output[index] = pixels[row * patch + (column * stride) % patch];
    }
    while (clock64() - begun < cycles) {}
}
"""
STRIDES = {"label_features": 7, "stage1": 31, "activation": 3}


def compiled() -> bytes:
    """The kernel, compiled for the first GPU."""
    cuda.init()
    architecture = "sm_{}{}".format(*cuda.Device(0).compute_capability())
    cubin: bytes = compiler.compile(KERNEL, no_extern_c=True, arch=architecture)
    return cubin


@pytest.fixture(scope="module")
def cubin() -> bytes:
    try:
        cuda.init()
        context = cuda.Device(0).make_context()
    except cuda.Error as error:
        pytest.skip(f"{WITHOUT}: {error}")
    context.detach()
    return compiled()


class Kernels:
    """What the engines of this test do.

    Attributes:
        scratch_bytes_a_patch: that an engine asks for.
        cycles: that each kernel lasts at least.
        broken: the next launch reads where nothing is.
    """

    def __init__(self, cubin: bytes) -> None:
        self.cubin = cubin
        self.scratch_bytes_a_patch = 1000
        self.cycles = 0
        self.broken = False


class Engine:
    """The double's engine, computed by kernels on the stream that it is given."""

    def __init__(self, plain: Any, kernels: Kernels) -> None:  # noqa: ANN401 - a double
        self.plain, self.kernels = plain, kernels
        self.device_memory_size_v2 = kernels.scratch_bytes_a_patch * plain.batch
        module = checked(driver.cuModuleLoadData(kernels.cubin))
        self.kernel = checked(driver.cuModuleGetFunction(module, b"pick"))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.plain, name)

    def create_execution_context(self, strategy: str) -> "Execution":
        return Execution(self, self.plain.create_execution_context(strategy))


class Execution:
    def __init__(self, engine: Engine, plain: Any) -> None:  # noqa: ANN401
        self.engine, self.plain = engine, plain
        self.addresses: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.plain, name)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory
        assert size == self.engine.device_memory_size_v2

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream: int) -> bool:
        kernels, block = self.engine.kernels, 128
        for name, stride in STRIDES.items():
            shape = self.plain.get_tensor_shape(name)
            count = int(np.prod(shape))
            pixels = 8 if kernels.broken else self.addresses["pixels"]
            patch = int(np.prod(self.engine.plain.session.get_inputs()[0].shape[1:]))
            values = (pixels, self.addresses[name], patch, count // shape[0], count, stride, kernels.cycles)
            kinds = (ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int] * 4, ctypes.c_longlong)
            blocks = -(-count // block)
            checked(driver.cuLaunchKernel(self.engine.kernel, blocks, 1, 1, block, 1, 1, 0, stream, (values, kinds), 0))
        return True


def checked(result: tuple[Any, ...]) -> Any:  # noqa: ANN401
    status, *values = result
    assert status == driver.CUresult.CUDA_SUCCESS, status
    return values[0] if values else None


def double_of(kernels: Kernels) -> ModuleType:
    """TensorRT's double with engines of kernels, over the real CUDA."""
    machine = Machine()
    machine.refuses = lambda name: False  # type: ignore[method-assign] # it would ask for a context of the doubles
    module = tensorrt(machine)
    plain = module.Runtime

    class Runtime(plain):  # type: ignore[misc,valid-type]
        def deserialize_cuda_engine(self, plan: bytes) -> Any:  # noqa: ANN401
            return Engine(super().deserialize_cuda_engine(plan), kernels)

    module.__dict__["Runtime"] = Runtime
    return module


@pytest.fixture
def kernels(cubin: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kernels]:
    """What the engines do of a double that is in TensorRT's place."""
    kernels = Kernels(cubin)
    monkeypatch.setitem(sys.modules, "tensorrt", double_of(kernels))
    for name in WITH_A_RUNTIME_INSIDE:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield kernels
    with pytest.raises(cuda.Error):  # no call leaves its context current
        cuda.Context.synchronize()
    for name in WITH_A_RUNTIME_INSIDE:
        sys.modules.pop(name, None)


def backend_of(bundle: Path, **arguments: Any) -> Any:  # noqa: ANN401
    from engine.tensorrt import TensorRTBackend

    return TensorRTBackend(bundle, precision="fp32", **arguments)


def picked(pixels: NDArray[np.uint8], like: Features) -> Features:
    """What the kernels give for these pixels, by numpy."""
    flat = pixels.reshape(len(pixels), -1)

    def output(name: str) -> NDArray[np.float32]:
        shape = getattr(like, name).shape[1:]
        columns = np.arange(int(np.prod(shape))) * STRIDES[name] % flat.shape[1]
        return flat[:, columns].astype(np.float32).reshape(len(flat), *shape)

    return Features(**{name: output(name) for name in STRIDES}, doubt=np.ones(len(pixels), np.float32))


def assert_picked(features: Features, pixels: NDArray[np.uint8]) -> None:
    assert_same(features, picked(pixels, features))


@pytest.mark.parametrize("count", range(1, BATCH + 1))
def test_a_batch_or_a_part_of_one_comes_back_in_order(kernels: Kernels, bundle: Path, count: int) -> None:
    with closing(backend_of(bundle)) as backend:
        for seed in range(5):  # both sets of buffers
            pixels = patches(count, seed=seed)
            assert_picked(backend.features(pixels), pixels)


def test_a_long_screen_comes_back_whole_and_in_order(kernels: Kernels, bundle: Path) -> None:
    kernels.cycles = 200_000  # so that two batches are under way at a time
    batches = [patches(BATCH if index < 19 else 2, seed=index) for index in range(20)]
    with closing(backend_of(bundle)) as backend:
        for pixels, features in zip(batches, stream(backend, map(Batch, batches)), strict=True):
            assert_picked(features, pixels)


@pytest.mark.parametrize("graph", [False, True])
def test_both_ways_to_launch_give_the_same_bits(kernels: Kernels, bundle: Path, graph: bool) -> None:
    pixels = patches(BATCH)
    with closing(backend_of(bundle)) as backend:
        gpu = backend._gpu
        with gpu.current():
            for buffers in gpu._sets:
                buffers.drop_graph()
                if graph:
                    buffers.graph = gpu._capture(buffers)
        for _ in range(4):
            assert_picked(backend.features(pixels), pixels)
        features, seconds = backend.timed_features(pixels)
        assert_picked(features, pixels)
        assert 0 < seconds < 10


def test_threads_may_load_use_and_close_it_in_turn(kernels: Kernels, bundle: Path) -> None:
    pixels = patches(BATCH)
    kept: dict[str, Any] = {}

    def elsewhere(work: Callable[[], object]) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()

    elsewhere(lambda: kept.update(backend=backend_of(bundle)))
    elsewhere(lambda: kept.update(features=kept["backend"].features(pixels)))
    assert_picked(kept["features"], pixels)
    assert_picked(kept["backend"].features(pixels), pixels)
    elsewhere(lambda: kept["backend"].close())
    kept["backend"].close()


def free_bytes() -> int:
    context = cuda.Device(0).make_context()
    try:
        return int(cuda.mem_get_info()[0])
    finally:
        context.detach()


def test_loaded_and_closed_again_and_again_it_keeps_no_memory(kernels: Kernels, bundle: Path) -> None:
    kernels.scratch_bytes_a_patch = 64 * 2**20
    backend_of(bundle).close()
    before = free_bytes()
    for _ in range(10):
        with closing(backend_of(bundle)) as backend:
            backend.features(patches(BATCH))
    assert free_bytes() >= before - 16 * 2**20


def test_one_beside_another_changes_nothing_of_it(kernels: Kernels, bundle: Path) -> None:
    pixels = patches(BATCH)
    with closing(backend_of(bundle)) as first:
        for _ in range(3):
            with closing(backend_of(bundle)) as second:
                assert_picked(second.features(pixels), pixels)
                assert_picked(first.features(pixels), pixels)
            assert_picked(first.features(pixels), pixels)


def test_where_memory_is_short_the_batch_is_smaller_and_a_note_says_so(kernels: Kernels, bundle: Path) -> None:
    total = cuda.Device(0).total_memory()
    kernels.scratch_bytes_a_patch = total // 4  # five do not fit, one does
    with closing(backend_of(bundle)) as backend:
        assert backend.batch_size == 1
        assert any("does not fit" in note for note in backend.notes)
        pixels = patches(1)
        assert_picked(backend.features(pixels), pixels)


def test_copying_and_uploading_go_on_beside_the_kernels(kernels: Kernels) -> None:
    """Patches as they are served: the time of a batch is that of its slowest part, not that of all parts."""
    kernels.cycles = 600_000  # of each of three kernels: about a millisecond a batch, as much as its copying
    with closing(backend_of(DEFAULT_BUNDLE)) as backend:
        side = backend.manifest.patch_px
        batches = [np.full((backend.batch_size, 1, side, side), index, np.uint8) for index in range(40)]
        one_by_one, together = [], []
        for _ in range(3):
            begun = perf_counter()
            for pixels in batches:
                backend.features(pixels)
            one_by_one.append(perf_counter() - begun)
            begun = perf_counter()
            for _ in stream(backend, map(Batch, batches)):
                pass
            together.append(perf_counter() - begun)
    assert min(together) < 0.85 * min(one_by_one)


def assert_right_or_lost(backend: Any) -> None:  # noqa: ANN401
    for seed in range(4):  # both sets of buffers
        pixels = patches(BATCH, seed=seed)
        try:
            features = backend.features(pixels)
        except DeviceLost:
            continue
        assert_picked(features, pixels)


# the last one, and one test for both: CUDA promises nothing to a process whose device was lost, not even a backend
def test_a_lost_device_says_so_until_it_is_recovered_and_one_beside_it_never_answers_wrongly(
    kernels: Kernels, bundle: Path
) -> None:
    pixels = patches(BATCH)
    with closing(backend_of(bundle)) as beside, closing(backend_of(bundle)) as backend:
        assert_picked(beside.features(pixels), pixels)
        with backend._gpu.current():
            for buffers in backend._gpu._sets:
                buffers.drop_graph()
        kernels.broken = True
        with pytest.raises(DeviceLost, match="illegal"):
            backend.features(pixels)
        kernels.broken = False
        with pytest.raises(DeviceLost):
            backend.features(pixels)
        assert_right_or_lost(beside)
        try:
            backend.recover()
        except DeviceLost:
            pass  # that is what it must say where it stays lost
        else:
            assert_picked(backend.features(pixels), pixels)
        assert_right_or_lost(beside)
