"""One contract, every backend that is installed: the same test body over each of them."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import (
    Backend,
    Batch,
    BundleError,
    FakeBackend,
    Features,
    InferenceError,
    Manifest,
    RuntimeUnavailable,
    infer,
    load,
    read_golden,
    self_test,
    stream,
)
from engine.backend import BEST_FIRST
from tests.bundles import BACKGROUND, GAIN, LABELS, REACH, add_called, grey_of
from tests.engine.doubles.cuda import Machine

PATCH_PX, BATCH = 64, 5
RUNTIMES = ("fake", "onnxruntime", "openvino", "tensorrt")


def fake_scores(bundle: Path) -> Backend:
    """The tiny bundle's scores without its graphs; `load` with "fake" gives all patches but a few the same ones."""

    def scores(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        greys = np.array([grey_of(index) for index in range(len(LABELS))])[:, None, None]
        distance = np.abs(pixels.astype(np.float64) - greys)
        activation = np.maximum(0.0, 1 - distance / REACH).max((2, 3))
        return np.asarray(1 / (1 + np.exp(-GAIN * (activation - 0.5))))

    return FakeBackend(Manifest.read(bundle), scores)


def load_or_skip(bundle: Path, runtime: str) -> Backend:
    if runtime == "fake":
        return fake_scores(bundle)
    try:
        return load(bundle, runtime, threads=None if runtime == "tensorrt" else 1)
    except RuntimeUnavailable as error:
        assert runtime != "onnxruntime"  # which is always there
        pytest.skip(str(error))


@pytest.fixture(params=RUNTIMES)
def backend(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Backend]:
    backend = load_or_skip(bundle, request.param)
    assert backend.runtime == request.param
    yield backend
    backend.close()


def patches(count: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """(count, 1, P, P) patches whose scores differ: each has a spot of about a label's grey."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(BACKGROUND - 20, BACKGROUND + 21, (count, 1, PATCH_PX, PATCH_PX))
    for index, patch in enumerate(pixels):
        top, left = rng.integers(0, PATCH_PX - 4, 2)
        patch[0, top : top + 4, left : left + 4] = grey_of(index % len(LABELS)) - rng.integers(0, REACH)
    return pixels.astype(np.uint8)


def assert_same(left: Features, right: Features) -> None:
    """Bit for bit."""
    for field in fields(Features):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name))


def test_a_stream_gives_what_each_batch_gives_alone_in_their_order(backend: Backend) -> None:
    size = backend.batch_size
    batches = [patches(count, seed=seed) for seed, count in enumerate((size, 1, size, size - 1, size))]
    alone = [backend.features(batch) for batch in batches]

    def with_a_test_between() -> Iterator[NDArray[np.uint8]]:
        for batch, expected in zip(batches, alone, strict=True):
            assert_same(backend.features(batch), expected)  # as a self-test, while two are under way
            yield batch

    answers = list(stream(backend, map(Batch, with_a_test_between())))
    for answer, expected in zip(answers, alone, strict=True):
        assert_same(answer, expected)


def test_a_stream_that_is_left_leaves_nothing_under_way(backend: Backend) -> None:
    size = backend.batch_size
    with closing(stream(backend, (Batch(patches(size, seed=seed)) for seed in range(9)))) as answers:
        next(answers)
    assert_same(backend.features(patches(size)), backend.features(patches(size)))


@pytest.mark.parametrize("count", range(1, BATCH + 1))
def test_any_number_up_to_the_batch_size_comes_back_whole(backend: Backend, count: int) -> None:
    features = backend.features(patches(count))
    assert features.label_features.shape[:2] == (count, len(LABELS))
    assert features.label_features.ndim == 3
    assert features.stage1.shape == (count, len(LABELS))
    assert features.activation.shape[:2] == (count, len(LABELS))
    assert features.activation.ndim == 4
    for field in fields(Features):
        assert getattr(features, field.name).dtype == np.float32
    assert features.doubt.tolist() == [1.0] * count  # nothing glances here


@pytest.mark.parametrize("count", range(1, BATCH))
def test_a_score_does_not_depend_on_how_full_the_batch_is(backend: Backend, count: int) -> None:
    full = backend.features(patches(BATCH))
    part = backend.features(patches(BATCH)[:count])
    assert_same(part, Features(**{f.name: getattr(full, f.name)[:count] for f in fields(Features)}))


def test_a_score_does_not_depend_on_the_neighbours_in_the_batch(backend: Backend) -> None:
    mine = patches(1, seed=1)
    alone = backend.features(mine)
    crowded = backend.features(np.concatenate([patches(BATCH - 1, seed=2), mine]))
    assert_same(alone, Features(**{f.name: getattr(crowded, f.name)[-1:] for f in fields(Features)}))


def test_rows_keep_the_order_of_the_patches(backend: Backend) -> None:
    forward = backend.features(patches(BATCH)).stage1
    assert len({row.tobytes() for row in forward}) == BATCH
    np.testing.assert_array_equal(backend.features(patches(BATCH)[::-1]).stage1, forward[::-1])


def test_the_same_patches_give_the_same_bits_again(backend: Backend) -> None:
    first, second = (infer(backend, patches(12)) for _ in range(2))
    assert_same(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize("count", [0, BATCH + 1])
def test_no_patch_and_too_many_are_refused(backend: Backend, count: int) -> None:
    with pytest.raises(ValueError, match=f"1 to {BATCH} patches, got {count}"):
        backend.features(patches(count))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 1, PATCH_PX, PATCH_PX - 1), np.uint8),
        np.zeros((1, 3, PATCH_PX, PATCH_PX), np.uint8),
        np.zeros((1, PATCH_PX, PATCH_PX), np.uint8),
        np.zeros((1, 1, PATCH_PX, PATCH_PX), np.float32),
    ],
)
def test_pixels_of_another_form_are_refused(backend: Backend, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="patches are"):
        backend.features(pixels)


def test_reasoning_gives_a_probability_for_every_patch_and_label(backend: Backend) -> None:
    features = backend.features(patches(BATCH))
    for count in range(1, BATCH + 1):
        probability = backend.reason(features.label_features[:count], features.stage1[:count])
        assert probability.shape == (count, len(LABELS))
        assert probability.dtype == np.float32
        assert ((probability >= 0) & (probability <= 1)).all()


@pytest.mark.parametrize(
    ("label_features", "stage1"),
    [
        ((0, 4, 2), (0, 4)),  # no patch
        ((3, 4, 2), (2, 4)),  # rows of two screens
        ((3, 3, 2), (3, 3)),  # another number of labels
        ((3, 4), (3, 4)),  # no features
    ],
)
def test_reasoning_refuses_what_does_not_fit(
    backend: Backend, label_features: tuple[int, ...], stage1: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"fit scores|K >= 1"):
        backend.reason(np.zeros(label_features, np.float32), np.zeros(stage1, np.float32))


def test_reasoning_refuses_another_type_of_numbers(backend: Backend) -> None:
    with pytest.raises(ValueError, match="float32"):
        backend.reason(np.zeros((3, 4, 2)), np.zeros((3, 4)))  # type: ignore[arg-type]


def test_threads_that_reason_at_the_same_time_get_their_own_answers(backend: Backend) -> None:
    screens = [infer(backend, patches(7, seed=seed)) for seed in range(8)]

    def reason(index: int) -> NDArray[np.float32]:
        features = screens[index % 8][0]
        return backend.reason(features.label_features, features.stage1)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(reason, range(80)))
    for index, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, screens[index % 8][1])


def test_closed_twice_is_harmless_and_closed_is_closed(backend: Backend) -> None:
    features = backend.features(patches(1))
    backend.close()
    backend.close()
    with pytest.raises(InferenceError, match="closed"):
        backend.features(patches(1))
    with pytest.raises(InferenceError, match="closed"):
        backend.reason(features.label_features, features.stage1)


@pytest.mark.parametrize("count", [1, BATCH, BATCH + 1, 13])
def test_infer_runs_a_screen_in_batches_and_reasons_once(backend: Backend, count: int) -> None:
    pixels = patches(count)
    features, probability = infer(backend, pixels)
    alone = [backend.features(patch[None]) for patch in pixels]
    joined = {f.name: np.concatenate([getattr(one, f.name) for one in alone]) for f in fields(Features)}
    assert_same(features, Features(**joined))
    np.testing.assert_array_equal(probability, backend.reason(features.label_features, features.stage1))


def test_infer_refuses_a_screen_without_patches(backend: Backend) -> None:
    with pytest.raises(ValueError, match="at least one patch"):
        infer(backend, patches(0))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "tensorrt"])
def test_the_runtimes_agree(bundle: Path, runtime: str) -> None:
    golden = read_golden(bundle)
    with (
        closing(load_or_skip(bundle, runtime)) as backend,
        closing(load(bundle, "onnxruntime", threads=1)) as reference,
    ):
        assert self_test(backend, golden) <= golden.tolerance
        _, expected = infer(reference, patches(12))
        _, probability = infer(backend, patches(12))
        assert np.abs(probability - expected).max() <= golden.tolerance


def test_auto_takes_the_best_that_is_usable(bundle: Path) -> None:
    with closing(load(bundle, threads=1)) as best:
        usable = []
        for runtime in BEST_FIRST:
            with suppress(RuntimeUnavailable), closing(load(bundle, runtime, threads=1)) as backend:
                usable.append(backend.runtime)
        assert best.runtime == usable[0]
        assert usable[-1] == "onnxruntime"


def test_auto_goes_on_where_a_gpu_cannot_be_used_or_the_bundle_has_its_precision_for_cpus_alone(
    machine: Machine, bundle: Path, tmp_path: Path
) -> None:
    with closing(load(bundle, threads=1)) as best:
        assert best.runtime == "tensorrt"
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    add_called(copy, "int8")
    with closing(load(copy, precision="int8", threads=1)) as best:
        assert best.runtime != "tensorrt"
    with pytest.raises(RuntimeUnavailable, match=r"tensorrt: files: was not exported as fp16; .*onnxruntime: files"):
        load(bundle, precision="fp16")
    machine.driver_too_old = True
    with closing(load(bundle, threads=1, batch_size=2)) as best:
        assert best.runtime != "tensorrt"


@pytest.mark.parametrize("runtime", ["tensorflow", ""])
def test_a_runtime_that_is_not_known_is_unavailable(bundle: Path, runtime: str) -> None:
    with pytest.raises(RuntimeUnavailable, match="there are auto, tensorrt, openvino, onnxruntime, fake"):
        load(bundle, runtime)


def test_an_option_that_does_not_exist_is_none(bundle: Path) -> None:
    for runtime in ("auto", "onnxruntime", "fake"):
        with pytest.raises(TypeError, match="no option presicion"):
            load(bundle, runtime, presicion="fp32")  # type: ignore[call-arg]


def test_a_precision_that_the_bundle_lacks_is_refused(bundle: Path) -> None:
    for runtime in ("onnxruntime", "openvino"):
        if runtime == "openvino":
            pytest.importorskip("engine.openvino")
        for precision in ("fp16", "int8", "int8-trt", "../reasoning"):
            with pytest.raises(BundleError, match=f"was not exported as {precision}"):
                load(bundle, runtime, precision=precision)


@pytest.mark.parametrize("missing", ["onnxruntime", "openvino"])
def test_a_runtime_that_is_not_installed_is_unavailable(bundle: Path, missing: str) -> None:
    program = f"""
import sys
from pathlib import Path
import engine
sys.modules[{missing!r}] = None  # what Python finds where a package is not installed
for runtime in ({missing!r}, "auto"):
    try:
        print(engine.load(Path({str(bundle)!r}), runtime, threads=1).runtime)
    except engine.RuntimeUnavailable as error:
        print(error)
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    by_name, best = answer.stdout.splitlines()
    assert f"{missing} cannot be imported" in by_name
    # all reason by ONNX Runtime; without OpenVINO there is still ONNX Runtime
    assert "onnxruntime cannot be imported" in best if missing == "onnxruntime" else best == "onnxruntime"


def test_a_batch_of_another_size_is_taken(bundle: Path) -> None:
    for runtime in ("onnxruntime", "fake"):
        with closing(load(bundle, runtime, threads=1, batch_size=3)) as backend:
            assert backend.batch_size == 3
            assert len(backend.features(patches(3)).stage1) == 3
            with pytest.raises(ValueError, match="1 to 3 patches"):
                backend.features(patches(4))


@pytest.mark.parametrize("batch_size", [0, -1])
@pytest.mark.parametrize("runtime", ["auto", "fake", "onnxruntime", "openvino"])
def test_a_batch_of_no_patch_is_refused(bundle: Path, runtime: str, batch_size: int) -> None:
    if runtime == "openvino":
        pytest.importorskip("engine.openvino")
    with pytest.raises(ValueError, match=f"a batch has at least 1 patch, got {batch_size}"):
        load(bundle, runtime, threads=1, batch_size=batch_size)


class Closing:
    """What a thread finds that looks at it just before another one closes, and again after that."""

    def __init__(self, kept: object) -> None:
        self._looks = [kept]

    def __get__(self, instance: object, kind: type) -> object:
        return self._looks.pop() if self._looks else None

    def __set__(self, instance: object, value: object) -> None:
        raise AssertionError("nothing is set in this test")


def test_a_call_that_a_close_overtakes_ends_with_its_answer(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(load(bundle, "onnxruntime", threads=1)) as backend:
        expected = infer(backend, patches(2))
        reasoning = vars(backend)["_reasoning"]
        with monkeypatch.context() as patched:
            patched.setattr(type(backend), "_features", Closing(vars(backend)["_features"]), raising=False)
            patched.setattr(type(reasoning), "_session", Closing(vars(reasoning)["_session"]), raising=False)
            found = infer(backend, patches(2))
            with pytest.raises(InferenceError, match="closed"):
                infer(backend, patches(2))
            with pytest.raises(InferenceError, match="closed"):
                backend.reason(expected[0].label_features, expected[0].stage1)
        assert_same(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
