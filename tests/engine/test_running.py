"""As what a bundle runs; on GPUs with doubles of TensorRT and CUDA."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from engine import Backend, Manifest, RunsAs, load_all, runs_as, would_run_as
from tests.engine.doubles.cuda import Machine


def closed(backends: Sequence[Backend]) -> RunsAs:
    found = runs_as(backends)
    for backend in backends:
        backend.close()
    return found


def test_a_cpu_is_told_without_its_name(bundle: Path) -> None:
    found = closed(load_all(bundle, "onnxruntime", batch_size=3))
    assert found == RunsAs(runtime="onnxruntime", precision="fp32", batch_size=3, gpu="", tensorrt="")
    assert str(found) == "onnxruntime fp32 in batches of 3"


def test_a_gpu_is_told_with_its_name_and_the_version_of_tensorrt(machine: Machine, half_bundle: Path) -> None:
    machine.datatype = "FP16"
    found = closed(load_all(half_bundle))
    assert str(found) == "tensorrt fp16 in batches of 5 on Double 0 sm86 by tensorrt 10.13.0"
    machine.gpus = 2
    assert closed(load_all(half_bundle)).gpu == "Double 0 sm86, Double 1 sm86"


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize(("precision", "batch_size"), [(None, None), ("fp32", 2)])
def test_as_what_a_bundle_would_run_is_known_before_it_is_loaded(
    machine: Machine, bundle: Path, half_bundle: Path, runtime: str, precision: str | None, batch_size: int | None
) -> None:
    machine.datatypes = {"fp16": "FP16"}
    beside = closed(load_all(bundle, runtime, batch_size=3))
    for other in (bundle, half_bundle):
        foreseen = would_run_as(Manifest.read(other), beside, precision=precision, batch_size=batch_size)
        assert closed(load_all(other, runtime, precision=precision, batch_size=batch_size)) == foreseen
