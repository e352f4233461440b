"""As what a bundle runs; on GPUs with doubles of TensorRT and CUDA."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from engine import Backend, FakeBackend, Manifest, RunsAs, fake_manifest, load_all, runs_as, would_run_as
from engine.plans import Plan, PlanKey, PlanRecord, default_folder
from tests.engine.doubles.cuda import Machine

ONNXRUNTIME = f"onnxruntime {onnxruntime.__version__}"


def closed(backends: Sequence[Backend]) -> RunsAs:
    found = runs_as(backends)
    for backend in backends:
        backend.close()
    return found


def test_a_cpu_is_told_without_its_name_but_with_the_version_of_what_computes(bundle: Path) -> None:
    found = closed(load_all(bundle, "onnxruntime", batch_size=3))
    assert found == RunsAs(runtime="onnxruntime", precision="fp32", batch_size=3, versions=ONNXRUNTIME, gpu="", plan="")
    assert str(found) == f"onnxruntime fp32 in batches of 3 by {ONNXRUNTIME}"
    assert str(closed(load_all(bundle, "fake", batch_size=3))) == "fake fp32 in batches of 3"  # by nothing


def test_the_reasonings_version_is_told_whatever_runs_the_features(bundle: Path) -> None:
    openvino = pytest.importorskip("engine.openvino").openvino
    found = closed(load_all(bundle, "openvino", batch_size=3))
    assert found.versions == f"openvino {openvino.__version__}, {ONNXRUNTIME}"


def test_a_gpu_is_told_with_its_name_the_version_of_tensorrt_and_the_plan(machine: Machine, half_bundle: Path) -> None:
    machine.datatype = "FP16"
    found = closed(load_all(half_bundle))
    assert found.plan is not None
    assert str(found) == (
        f"tensorrt fp16 in batches of 5 by tensorrt 10.13.0, {ONNXRUNTIME} on Double 0 sm86 "
        f"with the plan {found.plan[:12]}"
    )
    machine.gpus = 2
    assert closed(load_all(half_bundle)).gpu == "Double 0 sm86, Double 1 sm86"


def test_a_plan_that_was_built_anew_is_another(machine: Machine, half_bundle: Path) -> None:
    machine.datatype = "FP16"
    first = closed(load_all(half_bundle))
    assert closed(load_all(half_bundle)) == first
    shutil.rmtree(default_folder())
    machine.datatype = "Half"  # TensorRT's other word for it, so that the plan has other bytes
    anew = closed(load_all(half_bundle))
    assert anew != first
    assert replace(anew, plan=first.plan) == first


def test_the_precision_of_a_plan_is_that_of_its_layers(tmp_path: Path) -> None:
    key = PlanKey(
        gpu="A sm86",
        tensorrt="tensorrt 10.13.0",
        configuration=1,
        precision="fp16",
        batch_size=5,
        graph_sha256="a" * 64,
    )
    record = PlanRecord(key=key, plan_sha256="b" * 64, real_precision="int8")

    class Planned(FakeBackend):
        precision = "fp16"
        plan = Plan(data=b"", record=record, path=tmp_path, built=False)

    found = runs_as([Planned(fake_manifest(), lambda pixels: np.zeros((len(pixels), 4)))])
    assert (found.precision, found.plan) == ("int8", "b" * 64)


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize(("precision", "batch_size"), [(None, None), ("fp32", 2)])
def test_as_what_a_bundle_would_run_is_known_before_it_is_loaded(
    machine: Machine, bundle: Path, half_bundle: Path, runtime: str, precision: str | None, batch_size: int | None
) -> None:
    machine.datatypes = {"fp16": "FP16"}
    beside = closed(load_all(bundle, runtime, batch_size=3))
    for other in (bundle, half_bundle):
        foreseen = would_run_as(Manifest.read(other), beside, precision=precision, batch_size=batch_size)
        found = closed(load_all(other, runtime, precision=precision, batch_size=batch_size))
        # but for the plan, which only loading tells
        assert foreseen == replace(found, plan=None if runtime == "tensorrt" else "")
