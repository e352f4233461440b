"""A whole service on a real GPU that is lost for good, with the double of TensorRT whose engine launches kernels."""

import json
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.__main__ import DEVICE_GONE
from tests.deploy.processes import STOP_WITHIN_S, free_port, server
from tests.engine.test_cuda import WITHOUT, cuda
from tests.service import apps

pytestmark = pytest.mark.gpu

BREAKING = 77  # a frame of this grey alone lets its kernels read where nothing is, and all that come later
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
    kernels.broken = kernels.broken or bool((pixels == {BREAKING}).all())
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
    address, log = f"http://127.0.0.1:{(port := free_port())}", tmp_path / "log"
    environment = {
        "INSPECT_PORT": str(port),
        "INSPECT_BUNDLE": str(bundle),
        "INSPECT_STATE_DIR": str(tmp_path / "state"),
        "INSPECT_RUNTIME": "tensorrt",
        "INSPECT_PRECISION": "fp32",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-c", BREAKING_SERVICE]
    with (
        server(command, ready_url=f"{address}/readyz", log=log, environment=environment) as process,
        httpx.Client(base_url=address, trust_env=False) as client,
    ):
        assert apps.post(client, "one", apps.frame()).status_code == 200
        answer = apps.post(client, "two", np.full(apps.SIZE, BREAKING, np.uint8))
        assert apps.is_problem(answer, 500, "inference_failed")
        assert process.wait(STOP_WITHIN_S) == DEVICE_GONE
    events = [json.loads(line)["event"] for line in log.read_text().splitlines() if line.startswith("{")]
    assert "device lost for good" in events
    assert any(event.startswith("Finished server process") for event in events)
