"""The TensorRT runner against doubles: what it does when memory or device fail, and what it gives back.

Nothing here says anything of TensorRT or CUDA themselves.
"""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import (
    DeviceLost,
    InferenceError,
    RuntimeUnavailable,
    load_all,
    recover,
    stream,
)
from tests.bundles import tiny_bundle
from tests.engine.doubles.cuda import CudaLogicError, CudaMemoryError, Machine
from tests.engine.test_backend import BATCH, assert_same, patches
from tests.engine.test_tensorrt import backend_of, expected

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


def test_memory_for_nothing_is_refused(machine: Machine, bundle: Path) -> None:
    machine.memory_bytes = 1000
    with pytest.raises(InferenceError, match="not even hold a batch of one"):
        backend_of(bundle)
    assert all(context.destroyed for context in machine.contexts)


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
    answers = stream(backend, [patches(BATCH, seed=seed) for seed in range(3)])
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
    recover(backend)
    assert_same(backend.features(patches(3)), answer)
    assert [context.destroyed for context in machine.contexts] == [True, False]
    assert len(machine.built) == 1  # the plan was found
    recover(backend)  # nothing to do
    assert len(machine.contexts) == 2
    backend.close()
    assert machine.used_bytes == 0


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
    with pytest.raises(DeviceLost, match="altered"):  # no plan, and its graph is gone
        recover(backend)


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
        list(stream(backend, batches()))
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
        lambda: list(backend.features_many([patches(1)])),
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


def test_a_gpu_that_is_not_there_is_unavailable(machine: Machine, bundle: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="no GPU 1"):
        backend_of(bundle, device=1)
    machine.gpus = 0
    with pytest.raises(RuntimeUnavailable, match="no GPU of compute capability"):
        load_all(bundle, "tensorrt")
