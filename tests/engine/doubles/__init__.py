"""Doubles of TensorRT and CUDA; see each file for what it claims, which is little."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.engine.doubles.cuda import Machine, cuda_driver, pycuda_driver
from tests.engine.doubles.tensorrt import tensorrt

WITH_A_RUNTIME_INSIDE = ("engine.compiler", "engine.gpu", "engine.gpu_yardstick", "engine.tensorrt")


@contextmanager
def in_their_places(cache: Path) -> Iterator[Machine]:
    """The doubles in the places of TensorRT and CUDA until the block ends, and plans in a folder of the test's own."""
    machine = Machine()
    driver = pycuda_driver(machine)
    modules: dict[str, Any] = {
        "tensorrt": tensorrt(machine),
        "pycuda": SimpleNamespace(driver=driver),
        "pycuda.driver": driver,
        "cuda": ModuleType("cuda"),
        "cuda.bindings": SimpleNamespace(driver=cuda_driver(machine)),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        for name in WITH_A_RUNTIME_INSIDE:  # imported anew, with the doubles, and again without them afterwards
            patch.delitem(sys.modules, name, raising=False)
        patch.setenv("XDG_CACHE_HOME", str(cache))
        import engine.gpu

        patch.setattr(engine.gpu, "time", SimpleNamespace(perf_counter=machine.clock))
        yield machine
        assert machine.stack == []  # no call leaves its context current
        for name in WITH_A_RUNTIME_INSIDE:
            sys.modules.pop(name, None)
