"""The TensorRT runner against doubles: what it does when memory or device fail, and what it gives back.

Nothing here says anything of TensorRT or CUDA themselves.
"""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import engine.__main__ as command
from engine import (
    Batch,
    DeviceLost,
    InferenceError,
    PlanError,
    RuntimeUnavailable,
    load,
    load_all,
    recover,
    stream,
)
from engine.errors import OutOfMemory
from engine.plans import PlanCache
from tests.bundles import tiny_bundle
from tests.engine.doubles.cuda import CudaLogicError, CudaMemoryError, Machine
from tests.engine.test_backend import BATCH, assert_same, patches
from tests.engine.test_tensorrt import backend_of, expected, joined

BUFFER_SETS, WARM_UP_RUNS = 2, 10  # of `engine.gpu`, which only the doubles let import
OUT_OF_MEMORY = CudaMemoryError("out of memory")


def test_memory_for_less_takes_the_next_smaller_divisor_and_says_so(machine: Machine, bundle: Path) -> None:
    patch_bytes = 64 * 64 + (4 * 2 + 4 + 4 * 64) * 4
    machine.memory_bytes = 4 * (2 * patch_bytes + machine.scratch_bytes_a_patch) + 100  # for four, not for six
    backend = backend_of(bundle, batch_size=12)
    assert backend.batch_size == 4
    assert [batch for batch, _ in machine.built] == [12, 6, 4]
    assert backend.notes[0] == "a batch of 12 does not fit into GPU 0's memory: it is 4"
    assert_same(backend.features(patches(4)), expected(bundle, patches(4)))
    backend.close()
    assert machine.used_bytes == 0


@pytest.mark.parametrize("spoil", ["memory", "deserialize"])
def test_what_must_be_prebuilt_is_refused_where_its_plan_cannot_be_loaded_as_it_is(
    machine: Machine, bundle: Path, spoil: str
) -> None:
    backend_of(bundle, batch_size=4).close()
    if spoil == "memory":
        machine.memory_bytes = 20000  # for less, of which there is no plan
        expected_error: type[Exception] = InferenceError
        message = "memory of GPU 0 does not hold a batch of 4 beside what runs there: "
    else:
        machine.fail["deserialize"] = ["the plan was made by another TensorRT"]
        expected_error, message = PlanError, "build it first: `python -m engine build BUNDLE --batch 4 "
    with pytest.raises(expected_error, match=message) as refused:
        backend_of(bundle, batch_size=4, prebuilt=True)
    assert ("set a smaller INSPECT_BATCH" in str(refused.value)) == (spoil == "memory")
    assert [batch for batch, _ in machine.built] == [4]
    assert machine.used_bytes == 0


# how TensorRT says that memory is short: by a message; the call itself answers None or False
FULL = "Error Code 2: OutOfMemory (Requested size was 123456 bytes.)"


@pytest.mark.parametrize("call", ["build", "deserialize", "create_execution_context", "launch"])
def test_memory_that_is_full_inside_tensorrt_takes_the_next_smaller_divisor_too(
    machine: Machine, bundle: Path, call: str
) -> None:
    machine.fail[call] = [FULL]
    backend = backend_of(bundle, batch_size=4)
    assert backend.batch_size == 2
    assert backend.notes[0] == "a batch of 4 does not fit into GPU 0's memory: it is 2"
    assert [batch for batch, _ in machine.built] == ([2] if call == "build" else [4, 2])
    assert_same(backend.features(patches(2)), expected(bundle, patches(2)))
    backend.close()
    assert machine.used_bytes == 0


@pytest.mark.parametrize("call", ["build", "deserialize", "create_execution_context", "launch"])
def test_another_failure_of_tensorrt_is_not_taken_for_full_memory(machine: Machine, bundle: Path, call: str) -> None:
    machine.fail[call] = ["Error Code 4: Internal Error (something else)"]
    with pytest.raises((PlanError, InferenceError), match="something else") as caught:
        backend_of(bundle, batch_size=4)
    assert not isinstance(caught.value, OutOfMemory)
    assert "no known precision" not in str(caught.value)
    assert all(context.destroyed for context in machine.contexts)


def test_memory_that_is_full_inside_tensorrt_later_fails_that_batch_alone(machine: Machine, bundle: Path) -> None:
    backend = backend_of(bundle)
    machine.fail["launch"] = [FULL]
    with pytest.raises(OutOfMemory, match=r"memory of GPU 0 is full: .*Requested size"):
        backend.features(patches(3))
    assert_same(backend.features(patches(3)), expected(bundle, patches(3)))


def test_memory_for_nothing_is_refused(machine: Machine, bundle: Path) -> None:
    machine.memory_bytes = 1000
    with pytest.raises(InferenceError, match="not even hold a batch of one patch: cuMemAlloc failed"):
        backend_of(bundle)
    assert all(context.destroyed for context in machine.contexts)


def test_a_found_plan_that_tensorrt_refuses_is_built_once_more(machine: Machine, bundle: Path) -> None:
    backend_of(bundle).close()
    machine.fail["deserialize"] = ["the plan was made by another TensorRT"]
    backend = backend_of(bundle)
    assert backend.plan.built
    assert len(machine.built) == 2
    assert_same(backend.features(patches(3)), expected(bundle, patches(3)))
    machine.fail["deserialize"] = ["refused", None, "refused"]  # as found, by the build, and again
    with pytest.raises(PlanError, match="does not load the plan: refused"):
        backend_of(bundle)
    assert len(machine.built) == 3


def test_buffers_that_answer_differently_are_refused(machine: Machine, bundle: Path) -> None:
    machine.drift["launch"] = [0.0, 1e-6]
    with pytest.raises(InferenceError, match="from one set of buffers than from another"):
        backend_of(bundle)
    assert all(context.destroyed for context in machine.contexts)


@pytest.mark.parametrize("drift", [[1e-6], [0.0, 1e-6]])
def test_a_cuda_graph_that_answers_differently_is_not_kept(machine: Machine, bundle: Path, drift: list[float]) -> None:
    machine.seconds = {"launch": 2.0, "graph": 1.0}
    machine.drift["graph"] = drift
    backend = backend_of(bundle)
    machine.calls.clear()
    assert_same(
        joined(list(stream(backend, [Batch(patches(BATCH))] * 2))), expected(bundle, np.concatenate([patches(5)] * 2))
    )
    assert "launch" in machine.calls
    assert "graph" not in machine.calls


@pytest.mark.parametrize(
    ("call", "before"),
    [("event_synchronize", BUFFER_SETS), ("stream_synchronize", WARM_UP_RUNS)],  # calls of the plain launches
)
def test_a_cuda_graph_that_is_launched_and_fails_then_is_not_kept(
    machine: Machine, bundle: Path, call: str, before: int
) -> None:
    machine.seconds = {"launch": 2.0, "graph": 1.0}
    machine.fail[call] = [*[None] * before, CudaLogicError("cuEventSynchronize failed: invalid value")]
    backend = backend_of(bundle)
    assert machine.fail[call] == []
    machine.calls.clear()
    assert_same(backend.features(patches(3)), expected(bundle, patches(3)))
    assert "launch" in machine.calls
    assert "graph" not in machine.calls


def test_a_cuda_graph_that_spoils_the_context_refuses_the_load(machine: Machine, bundle: Path) -> None:
    machine.seconds = {"launch": 2.0, "graph": 1.0}
    machine.fail["event_synchronize"] = [*[None] * BUFFER_SETS, "lose"]
    with pytest.raises(InferenceError, match="illegal memory access"):
        backend_of(bundle)
    assert all(context.destroyed for context in machine.contexts)


@pytest.mark.parametrize(("status", "kind"), [(2, OutOfMemory), (719, InferenceError)])
def test_a_cuda_graph_that_cannot_be_launched_fails_that_batch_alone(
    machine: Machine, bundle: Path, status: int, kind: type[InferenceError]
) -> None:
    machine.seconds = {"launch": 2.0, "graph": 1.0}
    backend = backend_of(bundle)
    for _ in range(3):  # more often than there are sets of buffers
        machine.fail["graph"] = [status]
        with pytest.raises(InferenceError, match=f"{status}") as caught:
            backend.features(patches(3))
        assert type(caught.value) is kind
    assert_same(backend.features(patches(3)), expected(bundle, patches(3)))


def test_memory_that_tensorrt_does_not_take_is_no_answer(machine: Machine, bundle: Path) -> None:
    backend = backend_of(bundle)
    machine.fail["set_tensor_address"] = [False]
    with pytest.raises(InferenceError, match="does not take the memory for pixels"):
        backend.features(patches(3))
    assert_same(backend.features(patches(3)), expected(bundle, patches(3)))


def test_a_plan_that_cannot_be_kept_serves_and_says_so(
    machine: Machine, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    backend = backend_of(bundle, cache=PlanCache(tmp_path / "file" / "plans"))
    assert_same(backend.features(patches(3)), expected(bundle, patches(3)))
    (note,) = (note for note in backend.notes if "could not be kept" in note)
    assert "Not a directory" in note
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    answer = CliRunner().invoke(command.app, ["build", str(bundle)])  # whose purpose it is to keep it
    assert answer.exit_code == 1
    assert "cannot be kept" in answer.stderr


def test_tensorrt_has_one_logger_and_each_call_its_own_errors(machine: Machine, bundle: Path) -> None:
    backends = [backend_of(bundle, batch_size=size) for size in (4, 2)]
    (logger,) = machine.loggers
    logger.log("error", FULL)  # of nobody's call
    machine.fail["launch"] = [False]
    with pytest.raises(InferenceError, match="could not run the batch: it does not say why"):
        backends[0].features(patches(1))
    with logger.listen() as mine, ThreadPoolExecutor(1) as pool:
        machine.fail["launch"] = [FULL]
        with pytest.raises(OutOfMemory):
            pool.submit(backends[1].features, patches(1)).result()
        assert mine.errors == []  # that was another thread's
        pool.submit(logger.log, "error", "by a thread of TensorRT's own").result()
        assert mine.errors == ["by a thread of TensorRT's own"]


@pytest.mark.parametrize("call", ["upload", "launch", "download"])
def test_memory_that_is_full_later_fails_that_batch_alone(machine: Machine, bundle: Path, call: str) -> None:
    backend = backend_of(bundle)
    for _ in range(3):  # more often than there are slots
        machine.fail[call] = [OUT_OF_MEMORY]
        with pytest.raises(InferenceError, match="memory of GPU 0 is full") as caught:
            backend.features(patches(3))
        assert not isinstance(caught.value, DeviceLost)
    assert backend.batch_size == BATCH
    assert_same(backend.features(patches(3)), expected(bundle, patches(3)))


def test_a_batch_that_tensorrt_does_not_run_fails_alone(machine: Machine, bundle: Path) -> None:
    backend = backend_of(bundle)
    machine.fail["launch"] = [None, False]  # the second batch of the screen
    answers = stream(backend, [Batch(patches(BATCH, seed=seed)) for seed in range(3)])
    with pytest.raises(InferenceError, match="could not run the batch"):
        list(answers)
    assert_same(backend.features(patches(3)), expected(bundle, patches(3)))


@pytest.mark.parametrize("call", ["upload", "launch", "event_synchronize"])
def test_a_lost_device_fails_at_everything_until_it_is_recovered(machine: Machine, bundle: Path, call: str) -> None:
    backend = backend_of(bundle)
    machine.fail[call] = ["lose"]
    for _ in range(3):
        with pytest.raises(DeviceLost, match=r"GPU 0 is lost: .*illegal memory access"):
            backend.features(patches(3))
    answer = expected(bundle, patches(3))
    probability = backend.reason(answer.label_features, answer.stage1)  # which needs no GPU
    assert probability.shape == (3, 4)
    shutil.rmtree(backend.plan.path.parent)
    recover(backend)
    assert_same(backend.features(patches(3)), answer)
    assert [context.destroyed for context in machine.contexts] == [True, False]
    assert len(machine.built) == 1  # the plan is the one that was loaded, not one built anew
    recover(backend)  # nothing to do
    assert len(machine.contexts) == 2
    backend.close()
    assert machine.used_bytes == 0
    assert backend.plan.data == b""  # nor are its megabytes kept here


def test_a_device_that_stays_lost_says_so_and_may_be_recovered_later(machine: Machine, bundle: Path) -> None:
    backend = backend_of(bundle)
    machine.fail["launch"] = ["lose"]
    machine.unrecoverable = True
    for act in (lambda: backend.features(patches(1)), backend.recover, backend.recover):
        with pytest.raises(DeviceLost):
            act()
    machine.unrecoverable = False
    backend.recover()
    assert_same(backend.features(patches(1)), expected(bundle, patches(1)))


def test_a_recovered_device_has_the_plan_of_the_bundle_that_it_was_loaded_with(
    machine: Machine, bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    backend = backend_of(copy)
    before = backend.features(patches(2))
    shutil.rmtree(copy)
    backend_of(tiny_bundle(copy, gain=1.0)).close()  # its plan lies in the same cache
    machine.fail["launch"] = ["lose"]
    with pytest.raises(DeviceLost):
        backend.features(patches(2))
    recover(backend)
    assert_same(backend.features(patches(2)), before)
    shutil.rmtree(tmp_path / "cache")
    machine.fail["launch"] = ["lose"]
    with pytest.raises(DeviceLost):
        backend.features(patches(2))
    recover(backend)  # neither the cache nor the graph is needed: the plan is held
    assert_same(backend.features(patches(2)), before)


def test_a_device_recovered_in_the_middle_of_a_screen_fails_that_screen(machine: Machine, bundle: Path) -> None:
    backend = backend_of(bundle)

    def batches() -> Iterator[NDArray[np.uint8]]:
        yield patches(BATCH)
        machine.fail["upload"] = ["lose"]
        with pytest.raises(DeviceLost):  # of the self-test that runs here
            backend.features(patches(1))
        backend.recover()
        yield patches(BATCH)

    with pytest.raises(InferenceError, match="recovered while the batch was under way"):
        list(stream(backend, map(Batch, batches())))
    for seed in range(3):
        assert_same(backend.features(patches(2, seed=seed)), expected(bundle, patches(2, seed=seed)))


def test_closed_by_another_thread_and_twice_everything_is_given_back(machine: Machine, bundle: Path) -> None:
    backend = backend_of(bundle)
    failures = []

    def use_and_close() -> None:
        try:
            backend.features(patches(2))
            backend.close()
            backend.close()
            assert machine.stack == []
        except BaseException as error:  # noqa: BLE001 - of a thread, for the test
            failures.append(error)

    thread = threading.Thread(target=use_and_close)
    thread.start()
    thread.join()
    assert failures == []
    (context,) = machine.contexts
    assert context.destroyed
    assert not context.memory  # freed piece by piece, not only by the end of its context
    answer = expected(bundle, patches(2))
    for act in (
        lambda: backend.features(patches(1)),
        lambda: list(backend.features_many([Batch(patches(1))])),
        lambda: backend.reason(answer.label_features, answer.stage1),
        backend.recover,
    ):
        with pytest.raises(InferenceError, match="closed"):
            act()


def test_a_gpu_that_cannot_be_loaded_leaves_none_loaded(machine: Machine, half_bundle: Path) -> None:
    machine.gpus, machine.datatype = 2, "FP16"
    machine.fail["deserialize"] = [None, None, CudaLogicError("broken"), CudaLogicError("broken")]
    with pytest.raises(InferenceError, match="GPU 1 fails at the first batch"):
        load_all(half_bundle, "tensorrt")
    assert all(context.destroyed for context in machine.contexts)


@pytest.mark.parametrize("short", [0, 1])
def test_gpus_settle_on_one_batch(machine: Machine, bundle: Path, short: int) -> None:
    """Whichever has the least memory; else the plan of the GPU that is free would choose a screen's scores."""
    patch_bytes = 64 * 64 + (4 * 2 + 4 + 4 * 64) * 4
    machine.gpus = 3
    machine.memory_of[short] = 2 * patch_bytes + machine.scratch_bytes_a_patch + 100  # for one patch, not for five
    backends = load_all(bundle, "tensorrt", precision="fp32")
    assert [backend.batch_size for backend in backends] == [1, 1, 1]
    assert [getattr(backend, "device", None) for backend in backends] == [0, 1, 2]
    for backend in backends:
        assert_same(backend.features(patches(1)), expected(bundle, patches(1)))
        backend.close()
    assert machine.used_bytes == 0


def test_an_old_gpu_is_passed_over(machine: Machine, bundle: Path) -> None:
    machine.gpus, machine.capabilities[0] = 3, (6, 1)
    with closing(load(bundle, precision="fp32")) as best:
        assert (best.runtime, getattr(best, "device", None)) == ("tensorrt", 1)
    backends = load_all(bundle, precision="fp32")
    assert [getattr(backend, "device", None) for backend in backends] == [1, 2]
    with pytest.raises(RuntimeUnavailable, match="no GPU 0"):
        backend_of(bundle, device=0)


def test_a_gpu_that_is_not_there_is_unavailable(machine: Machine, bundle: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="no GPU 1"):
        backend_of(bundle, device=1)
    machine.gpus = 0
    with pytest.raises(RuntimeUnavailable, match="no GPU of compute capability"):
        load_all(bundle, "tensorrt")
