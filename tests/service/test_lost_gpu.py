"""A whole service on a real GPU that is lost for good, with the double of TensorRT whose engine launches kernels."""

from pathlib import Path

import pytest

from tests.engine.test_cuda import WITHOUT, cuda
from tests.service.losing import LOSING, ends_by_itself

pytestmark = pytest.mark.gpu

# the frame lets its kernels read where nothing is, and all that come later
BREAKING_SERVICE = f"""
import sys
import service.selftest
from engine import InferenceError
from service.__main__ import run
from tests.engine.test_cuda import Kernels, compiled, double_of

kernels = Kernels(compiled())
sys.modules["tensorrt"] = double_of(kernels)

import engine.gpu
import engine.tensorrt


def no_graph(gpu, buffers):
    raise InferenceError("a graph would go on with the right addresses")


def breaking(backend, pixels, *, submit=engine.tensorrt.TensorRTBackend._submit):
    kernels.broken = kernels.broken or bool((pixels == {LOSING}).all())
    return submit(backend, pixels)


def any_answer(backend, golden):
    backend.features(golden.pixels)  # the kernels do not know the golden patches' probabilities
    return 0.0


engine.gpu.Gpu._capture = no_graph
engine.tensorrt.TensorRTBackend._submit = breaking
service.selftest.self_test = any_answer
run()
"""


def test_a_process_whose_gpu_is_gone_ends_with_its_status_and_not_by_the_driver(bundle: Path, tmp_path: Path) -> None:
    try:
        cuda.init()
    except cuda.Error as error:
        pytest.skip(f"{WITHOUT}: {error}")
    ends_by_itself(BREAKING_SERVICE, bundle, tmp_path, INSPECT_RUNTIME="tensorrt", INSPECT_PRECISION="fp32")
