"""The TensorRT runner against doubles of TensorRT and CUDA (`tests.engine.doubles`): the order of its calls, what it
does when memory or device fail, what it gives back. Nothing here says anything of TensorRT itself.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import engine.__main__ as command
from engine import (
    Batch,
    BundleError,
    Features,
    Manifest,
    PlanError,
    RuntimeUnavailable,
    infer,
    load,
    load_all,
    stream,
)
from engine.layers import Layer
from engine.plans import PlanCache
from engine.slots import Spread
from tests.bundles import tiny_bundle
from tests.engine.doubles import WITH_A_RUNTIME_INSIDE
from tests.engine.doubles.cuda import Machine
from tests.engine.test_backend import BATCH, assert_same, patches
from tests.engine.test_onnxruntime import sign
from tests.engine.test_plans import built


def backend_of(bundle: Path, **arguments: Any) -> Any:  # noqa: ANN401
    from engine.tensorrt import TensorRTBackend

    return TensorRTBackend(bundle, **{"precision": "fp32", **arguments})


def expected(bundle: Path, pixels: NDArray[np.uint8]) -> Features:
    return infer(load(bundle, "onnxruntime", threads=1), pixels)[0]


def joined(answers: list[Features]) -> Features:
    names = ("label_features", "stage1", "activation", "doubt")
    return Features(**{name: np.concatenate([getattr(answer, name) for answer in answers]) for name in names})


def test_a_timed_batch_is_measured_by_the_devices_events_from_before_it_goes_up(
    machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_of(bundle)
    machine.calls.clear()
    pixels, filled, noted = patches(2), [], machine.call

    def watched(name: str) -> Any:  # noqa: ANN401
        if name == "record":
            pinned = [memory.bytes for memory in machine.contexts[0].memory.values() if not memory.size]
            uploaded = "upload" in machine.calls
            filled.append(
                not uploaded and any(memory[: pixels.size].tobytes() == pixels.tobytes() for memory in pinned)
            )
        return noted(name)

    monkeypatch.setattr(machine, "call", watched)
    features, seconds = backend.timed_features(pixels)
    assert seconds == 0.0125
    assert machine.calls[:3] == ["event", "record", "upload"]
    assert machine.calls[-1] == "time_since"
    assert filled == [True, False, False, False]  # it does not count the copying to pinned memory
    assert np.allclose(features.stage1, expected(bundle, pixels).stage1)


def test_a_batch_goes_up_is_computed_and_comes_down_in_this_order(machine: Machine, bundle: Path) -> None:
    backend = backend_of(bundle)
    machine.calls.clear()
    backend.features(patches(2))
    assert machine.calls == [
        "upload",
        "record",
        "wait_for_event",
        *["set_tensor_address"] * 4,
        "launch",
        "record",
        "wait_for_event",
        *["download"] * 3,
        "record",
        "event_synchronize",
    ]


@pytest.mark.parametrize("count", range(1, BATCH + 1))
def test_events_alone_order_the_streams_and_a_part_of_a_batch_is_filled_up(
    machine: Machine, bundle: Path, count: int
) -> None:
    backend = backend_of(bundle)
    list(backend.features_many([Batch(patches(BATCH, seed=seed)) for seed in (1, 2)]))  # leaves pixels in both slots
    assert_same(backend.features(patches(count)), expected(bundle, patches(count)))
    (context,) = machine.contexts
    inputs = [a.bytes.reshape(BATCH, 64 * 64) for a in context.memory.values() if a.size == BATCH * 64 * 64]
    black = [not rows[count:].any() for rows in inputs]
    assert sorted(black) == ([True, True] if count == BATCH else [False, True])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_screen_comes_back_whole_and_in_order(machine: Machine, bundle: Path, count: int) -> None:
    batches = [patches(BATCH if index < count - 1 else 2, seed=index) for index in range(count)]
    answers = list(stream(backend_of(bundle), map(Batch, batches)))
    assert len(answers) == count
    assert_same(joined(answers), expected(bundle, np.concatenate(batches)))


def test_the_next_batch_is_under_way_before_anybody_waits_for_the_one_before(machine: Machine, bundle: Path) -> None:
    backend = backend_of(bundle)
    machine.calls.clear()
    list(backend.features_many([Batch(patches(BATCH, seed=seed)) for seed in range(3)]))
    steps = [call for call in machine.calls if call in ("upload", "event_synchronize")]
    assert steps == ["upload", "upload", "event_synchronize", "upload", "event_synchronize", "event_synchronize"]


def test_a_self_test_between_two_batches_disturbs_neither(machine: Machine, bundle: Path) -> None:
    backend = backend_of(bundle)
    tested = []

    def batches() -> Iterator[NDArray[np.uint8]]:
        for seed in range(4):
            tested.append(backend.features(patches(3, seed=9)))
            yield patches(BATCH, seed=seed)

    answers = list(stream(backend, map(Batch, batches())))
    assert_same(joined(answers), expected(bundle, np.concatenate([patches(BATCH, seed=seed) for seed in range(4)])))
    for answer in tested:
        assert_same(answer, expected(bundle, patches(3, seed=9)))


def test_a_screen_given_up_leaves_nothing_under_way(machine: Machine, bundle: Path) -> None:
    backend = backend_of(bundle)

    def batches() -> Iterator[NDArray[np.uint8]]:
        yield patches(BATCH)
        raise TimeoutError

    for _ in range(3):  # more often than there are slots
        with pytest.raises(TimeoutError):
            list(stream(backend, map(Batch, batches())))
        given_up = stream(backend, [Batch(patches(BATCH))] * 3)
        next(given_up)
        given_up.close()
    assert not any(queue.queue for queue in machine.contexts[0].streams)
    assert_same(backend.features(patches(3)), expected(bundle, patches(3)))


@pytest.mark.parametrize(
    ("seconds", "capture", "launched"),
    [
        ({"launch": 2.0, "graph": 1.0}, True, "graph"),
        ({"launch": 1.0, "graph": 2.0}, True, "launch"),
        ({"launch": 2.0, "graph": 1.0}, False, "launch"),
    ],
)
def test_a_cuda_graph_is_kept_where_it_measures_better(
    machine: Machine, bundle: Path, seconds: dict[str, float], capture: bool, launched: str
) -> None:
    machine.seconds, machine.capture = seconds, capture
    backend = backend_of(bundle)
    machine.calls.clear()
    batches = [patches(BATCH, seed=seed) for seed in range(3)]
    assert_same(joined(list(stream(backend, map(Batch, batches)))), expected(bundle, np.concatenate(batches)))
    assert {call for call in machine.calls if call in ("launch", "graph")} == {launched}
    backend.close()


def test_each_gpu_has_a_backend_of_its_own(machine: Machine, half_bundle: Path) -> None:
    machine.gpus, machine.datatype = 2, "FP16"
    backends = load_all(half_bundle, "tensorrt")
    assert [context.device for context in machine.contexts] == [0, 1]
    assert [backend.precision for backend in backends] == ["fp16", "fp16"]
    assert len(machine.built) == 2  # a plan is good for one GPU
    backends[0].close()
    assert_same(backends[1].features(patches(2)), expected(half_bundle, patches(2)))
    backends[1].close()
    assert machine.used_bytes == 0


def test_what_is_no_precision_of_tensorrt_is_said_before_anything_is_built(machine: Machine, bundle: Path) -> None:
    """Such as bfloat16, whose graph is a float32 one with a word for another runtime: `auto` goes on to that one."""
    with pytest.raises(RuntimeUnavailable, match="TensorRT runs fp32, fp16 and int8 here, not bf16"):
        backend_of(bundle, precision="bf16")
    assert machine.built == []


def test_an_engine_of_another_precision_is_refused_and_not_kept(machine: Machine, half_bundle: Path) -> None:
    machine.datatype = "FP32"  # as TensorRT 11 makes it for tools that ask by a flag
    with pytest.raises(PlanError, match="the engine is fp32, not fp16"):
        backend_of(half_bundle, precision="fp16")
    assert not list((half_bundle.parent / "cache").rglob("*.plan"))
    assert all(context.destroyed for context in machine.contexts)


def test_a_precision_that_was_not_exported_is_refused(machine: Machine, bundle: Path) -> None:
    for precision, file in (("int8", "int8-trt"), ("int8-trt", "int8-trt"), ("fp8", "fp8")):  # as for a CPU
        with pytest.raises(BundleError, match=f"was not exported as {file}; there are fp32") as caught:
            backend_of(bundle, precision=precision)
        assert caught.value.key == "files"


def test_half_precision_is_the_default_where_the_bundle_has_it(
    machine: Machine, bundle: Path, half_bundle: Path
) -> None:
    without = backend_of(bundle, precision=None)
    assert without.precision == "fp32"
    assert "the bundle has no graph in fp16, so it runs in fp32: export it again" in without.notes
    machine.datatype = "FP16"
    assert backend_of(half_bundle, precision=None).precision == "fp16"


def test_a_build_is_told_before_and_after(
    machine: Machine, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = PlanCache(tmp_path / "plans")
    with caplog.at_level("INFO", logger="engine.tensorrt"):
        backend_of(bundle, cache=cache)
        backend_of(bundle, cache=cache)  # which finds it
    before, after = caplog.messages
    what = f"a plan of {bundle / 'features.onnx'} in fp32 for batches of 5 on Double 0 sm86"
    assert before == f"building {what}, which takes minutes"
    assert re.fullmatch(rf"built {re.escape(what)} in \d+\.\d s", after)


def test_a_plan_is_found_again_and_its_timing_cache_is_reused(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "plans")
    first = backend_of(bundle, cache=cache)
    assert first.plan.built
    again = backend_of(bundle, cache=cache)
    assert not again.plan.built
    assert again.plan.data == first.plan.data
    backend_of(bundle, cache=cache, batch_size=2)
    assert machine.built == [(5, b""), (2, b"timed ")]


def test_what_must_be_prebuilt_is_built_by_the_command_that_the_refusal_names_and_by_nothing_else(
    machine: Machine, half_bundle: Path
) -> None:
    machine.gpus, machine.datatype = 2, "FP16"
    for device in range(machine.gpus):  # which differ here
        with pytest.raises(PlanError) as refused:
            load_all(half_bundle, batch_size=2, prebuilt=True)
        assert len(machine.built) == device
        assert machine.used_bytes == 0
        (words,) = re.findall("`python -m engine (.*)`", str(refused.value))
        assert words == f"build BUNDLE --batch 2 --precision fp16 --device {device}"
        answer = CliRunner().invoke(command.app, words.replace("BUNDLE", str(half_bundle)).split())
        assert answer.exit_code == 0, answer.output
    backends = load_all(half_bundle, batch_size=2, prebuilt=True)
    assert [backend.batch_size for backend in backends] == [2, 2]
    assert [batch for batch, _ in machine.built] == [2, 2]
    for backend in backends:
        backend.close()


def test_a_timing_cache_of_another_gpu_is_left_aside(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "plans")
    backend_of(bundle, cache=cache)
    (timing,) = cache.folder.glob("timing-*.cache")
    timing.write_bytes(b"of another GPU")
    backend_of(bundle, cache=cache, batch_size=2)
    assert machine.built[-1] == (2, b"")


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_patch_is_refused(machine: Machine, bundle: Path, batch_size: int) -> None:
    with pytest.raises(ValueError, match="a batch has at least 1 patch"):
        backend_of(bundle, batch_size=batch_size)


def test_a_plan_is_of_the_graph_that_was_verified_whatever_bundle_takes_its_place(
    machine: Machine, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import engine.tensorrt
    from engine.compiler import compile_graph

    copy = shutil.copytree(bundle, tmp_path / "bundle")

    def replaced_before(onnx: bytes, **options: Any) -> Any:  # noqa: ANN401
        shutil.rmtree(copy)
        tiny_bundle(copy, gain=1.0)
        return compile_graph(onnx, **options)

    monkeypatch.setattr(engine.tensorrt, "compile_graph", replaced_before)
    backend = backend_of(copy)
    assert_same(backend.features(patches(3)), expected(bundle, patches(3)))


@pytest.mark.parametrize("planned", [False, True])  # by a build that took the weights
def test_weights_outside_the_graph_are_refused(
    machine: Machine, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: bool
) -> None:
    copy, cache = shutil.copytree(bundle, tmp_path / "bundle"), PlanCache(tmp_path / "plans")
    model = onnx.load(copy / "features.onnx")
    onnx.save(model, copy / "features.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    sign(copy)
    if planned:
        plan = backend_of(bundle, cache=cache).plan
        key = replace(plan.record.key, graph_sha256=Manifest.read(copy).files["features.onnx"])
        cache.obtain(key, lambda _: built(plan.data, [Layer("a", "CaskConvolution", "fp32")], b""))
    monkeypatch.chdir(copy)  # where TensorRT would look by itself
    before = list(machine.built)
    with pytest.raises(BundleError, match="refuses the graph") as caught:
        backend_of(copy, cache=cache)
    assert caught.value.key == "features.onnx"
    assert machine.built == before


def test_a_graph_that_does_not_fit_its_manifest_is_refused_as_on_a_cpu(
    machine: Machine, bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    replace(Manifest.read(copy), patch_px=32).write(copy)
    with pytest.raises(BundleError, match="pixels is") as caught:
        backend_of(copy)
    assert caught.value.key == "features.onnx"
    assert machine.built == []


def test_the_guard_band_is_the_plans(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "plans")
    backend = backend_of(bundle, cache=cache)
    assert set(backend.guard) == set(backend.manifest.label_names)  # measured by the first that loads it
    found = cache.find(backend.plan.record.key)
    assert found is not None
    assert found.record.guard_of(backend.manifest) == backend.guard
    cache.set_guard(backend.plan, backend.manifest, {"bubble": 0.002})  # and from then on it is the record's
    again = backend_of(bundle, cache=cache)
    assert again.guard == {"bubble": 0.002}
    assert again.notes == []


def test_a_plan_whose_spread_is_no_number_is_refused(
    machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guard band that is no number would turn every comparison of a verdict into a no."""
    import engine.tensorrt

    spread = Spread(probability={"bubble": 0.0}, guard={"bubble": float("nan")}, same_bits=False)
    monkeypatch.setattr(engine.tensorrt, "measure_slots", lambda *_: spread)
    with pytest.raises(PlanError, match="no numbers"):
        backend_of(bundle)
    assert machine.used_bytes == 0


def test_without_pycuda_the_runtime_is_unavailable(
    machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in WITH_A_RUNTIME_INSIDE:  # not by monkeypatch, which would put those with the doubles back in the end
        sys.modules.pop(name, None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(RuntimeUnavailable, match="pycuda and cuda-bindings cannot be imported"):
        load(bundle, "tensorrt")


def test_an_old_tensorrt_is_unavailable(machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "10.11.0")
    with pytest.raises(RuntimeUnavailable, match=r"10\.12 or later"):
        backend_of(bundle)
