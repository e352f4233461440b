import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engine.manifest import Manifest, file_sha256
from tests.bundles import tiny_bundle
from tests.engine.doubles.cuda import Machine, cuda_driver, pycuda_driver
from tests.engine.doubles.tensorrt import tensorrt
from tests.engine.precisions import bundle_of_every_precision

WITH_A_RUNTIME_INSIDE = ("engine.compiler", "engine.gpu", "engine.gpu_yardstick", "engine.tensorrt")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle of five-patch batches and four labels; tests do not write into it."""
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def half_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A bundle with a graph that is called half-precision; the doubles do not look inside."""
    copy = shutil.copytree(bundle, tmp_path / "half")
    shutil.copy(copy / "features.onnx", copy / "features.fp16.onnx")
    manifest = Manifest.read(copy)
    files = {**manifest.files, "features.fp16.onnx": file_sha256(copy / "features.fp16.onnx")}
    replace(manifest, files=files, parity_tolerance={**manifest.parity_tolerance, "fp16": 0.01}).write(copy)
    return copy


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """The doubles in the places of TensorRT and CUDA, and plans in a folder of the test's own."""
    machine = Machine()
    driver = pycuda_driver(machine)
    modules: dict[str, Any] = {
        "tensorrt": tensorrt(machine),
        "pycuda": SimpleNamespace(driver=driver),
        "pycuda.driver": driver,
        "cuda": ModuleType("cuda"),
        "cuda.bindings": SimpleNamespace(driver=cuda_driver(machine)),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in WITH_A_RUNTIME_INSIDE:  # imported anew, with the doubles, and again without them afterwards
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import engine.gpu

    monkeypatch.setattr(engine.gpu, "time", SimpleNamespace(perf_counter=machine.clock))
    yield machine
    assert machine.stack == []  # no call leaves its context current
    for name in WITH_A_RUNTIME_INSIDE:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def precise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in every precision; tests do not write into it."""
    return bundle_of_every_precision(tmp_path_factory.mktemp("bundles") / "precise")
