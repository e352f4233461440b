"""A glance: what it clears has a clean window's features, what it doubts has its own, and nothing else changes."""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import (
    NO_GLANCE,
    Backend,
    Batch,
    BundleError,
    Features,
    Glance,
    InferenceError,
    Manifest,
    infer,
    load,
    read_golden,
    seen_whole,
    self_test,
    stream,
)
from engine.golden import ARRAYS
from engine.graphs import FeaturesGraph
from engine.manifest import GLANCE_FILE
from engine.streams import Stream, Streams
from tests.bundles import BACKGROUND, LABELS, SURER, grey_of, tiny_bundle
from tests.engine.test_onnxruntime import PATCH_PX, edit, fix_rows, rename_input

BATCH = 5
RUNTIMES = [
    "onnxruntime",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed"),
    ),
]


@pytest.fixture(scope="module")
def glancing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("glance") / "bundle", glance=Glance(doubt_min=0.1))


@pytest.fixture(scope="module", params=RUNTIMES)
def both(request: pytest.FixtureRequest, glancing: Path, bundle: Path) -> Iterator[tuple[Backend, Backend]]:
    """With a glance, and the same bundle without one."""
    with closing(load(glancing, request.param)) as with_it, closing(load(bundle, request.param)) as without:
        yield with_it, without


def patch(*labels: int) -> NDArray[np.uint8]:
    pixels = np.full((1, PATCH_PX, PATCH_PX), BACKGROUND, np.uint8)
    for k in labels:
        pixels[0, 8 * k + 2, 5] = grey_of(k)
    return pixels


LABEL_SETS = st.lists(st.integers(0, len(LABELS) - 1), max_size=2, unique=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(shown=st.lists(LABEL_SETS, min_size=1, max_size=3 * BATCH))
def test_only_windows_in_which_nothing_is_doubted_are_cleared(
    both: tuple[Backend, Backend], shown: list[list[int]]
) -> None:
    with_it, without = both
    pixels = np.stack([patch(*labels) for labels in shown])
    batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    found = Features.joined(list(stream(with_it, map(Batch, batches))))
    whole = Features.joined([without.features(batch) for batch in batches])
    cleared = with_it.manifest.glance.clears(found.doubt)
    assert cleared.tolist() == [not labels for labels in shown]
    # what stands for a window that nothing is seen in is a little surer of it
    surer = np.where(cleared, np.float32(SURER), np.float32(1))
    np.testing.assert_allclose(found.stage1, whole.stage1 * surer[:, None], rtol=1e-6)
    np.testing.assert_allclose(found.label_features, whole.label_features * surer[:, None, None], rtol=1e-6)
    np.testing.assert_array_equal(found.activation, whole.activation)
    assert whole.doubt.tolist() == [1.0] * len(pixels)


def test_what_is_looked_at_again_is_for_the_whole_network_alone(both: tuple[Backend, Backend]) -> None:
    with_it, without = both
    pixels = np.stack([patch(), patch(1), patch()])
    whole = without.features(pixels)
    [streamed] = stream(with_it, [Batch(pixels, glance=False)])
    for found in (with_it.features(pixels, glance=False), streamed, infer(with_it, pixels, glance=False)[0]):
        for field in fields(Features):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(whole, field.name))


def doubting(patches: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """A glance whose doubt is a tenth of the first grey level."""
    return [patches[0, 0, 0, :1].astype(np.float32) / np.float32(10), np.zeros(1, np.float32)]


def test_the_whole_network_sees_no_window_that_is_cleared() -> None:
    seen: list[int] = []

    def whole(patches: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        seen.append(int(patches[0, 0, 0, 0]))
        return [np.ones(1, np.float32)]

    one = Stream(whole=whole, glance=doubting)
    answers = [one.run(np.full((1, 1, 1, 1), grey, np.uint8), Glance(doubt_min=0.4)) for grey in range(8)]
    assert [doubt for doubt, _ in answers] == pytest.approx([grey / 10 for grey in range(8)])
    assert seen == [4, 5, 6, 7]
    assert [float(outputs[0][0]) for _, outputs in answers] == [0.0] * 4 + [1.0] * 4


@pytest.mark.parametrize("doubt", [math.nan, math.inf, -math.inf, -0.1, 1.5])
def test_what_is_no_doubt_clears_nothing(doubt: float) -> None:
    one = Stream(whole=lambda _: [np.ones(1, np.float32)], glance=lambda _: [np.full(1, doubt, np.float32)])
    _, outputs = one.run(np.zeros((1, 1, 1, 1), np.uint8), Glance(doubt_min=0.5))
    assert outputs == [1.0]


@pytest.mark.parametrize("shape", [(0,), (2,), (1, 1), ()])
def test_a_doubt_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    one = Stream(whole=lambda _: [], glance=lambda _: [np.zeros(shape, np.float32)])
    with pytest.raises(InferenceError, match="doubt came back"):
        one.run(np.zeros((1, 1, 1, 1), np.uint8), Glance(doubt_min=0.5))


def test_of_a_batch_that_failed_nothing_is_under_way_any_more(bundle: Path) -> None:
    ended: list[int] = []

    def run(patches: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        grey = int(patches[0, 0, 0, 0])
        if grey == 0:
            raise InferenceError("failed")
        time.sleep(0.05)
        ended.append(grey)
        return []

    graph = FeaturesGraph.read(bundle, Manifest.read(bundle), precision="fp32", batch_size=BATCH)
    streams = Streams(graph, [Stream(whole=run, glance=None)] * 2, asked=NO_GLANCE)
    answer = streams.begin(Batch(np.arange(BATCH, dtype=np.uint8)[:, None, None, None]))
    with pytest.raises(InferenceError, match="failed"):
        answer()
    assert sorted(ended) == [1, 2, 3, 4]


def test_the_golden_patches_have_their_answers(both: tuple[Backend, Backend], glancing: Path) -> None:
    with_it, _ = both
    golden = read_golden(glancing)
    doubt = with_it.features(golden.pixels[:BATCH]).doubt
    assert with_it.manifest.glance.clears(doubt).tolist() == [False] * 4 + [True]
    assert self_test(with_it, golden) <= golden.tolerance


def test_the_map_of_a_cleared_golden_patch_is_not_held_against_the_whole_networks(tmp_path: Path) -> None:
    """It lies below every threshold, and is never drawn; those that the whole network saw are."""
    copy = tiny_bundle(tmp_path / "bundle", glance=Glance(doubt_min=0.1))
    golden = read_golden(copy)
    with closing(load(copy, "onnxruntime")) as backend:
        cleared = backend.manifest.glance.clears(backend.features(golden.pixels).doubt)
        assert cleared.tolist() == [False] * 4 + [True]
        moved = golden.activation.copy()
        moved[cleared] += 10.0
        assert self_test(backend, replace(golden, activation=moved)) <= golden.tolerance
        with pytest.raises(InferenceError, match="maps of the golden patches differ"):
            self_test(backend, replace(golden, activation=moved[::-1]))


def test_a_glance_that_clears_all_golden_patches_or_one_that_shows_something_fails(tmp_path: Path) -> None:
    """However coarse the tolerance is: the whole network has not run then, or a drawn map is lost."""
    copy = tiny_bundle(tmp_path / "bundle", glance=Glance(doubt_min=0.1))
    golden = read_golden(copy)
    with closing(load(copy, "onnxruntime")) as backend:
        with pytest.raises(InferenceError, match="clears golden patches"):
            self_test(backend, replace(golden, **{name: getattr(golden, name)[4:] for name in ARRAYS}))
        shown = golden.probability.copy()
        shown[4, 0] = backend.manifest.labels[LABELS[0]].review[0]
        with pytest.raises(InferenceError, match="clears golden patches"):
            self_test(backend, replace(golden, probability=shown, tolerance=0.5))


def test_a_bundle_seen_whole_has_no_glance_and_the_same_answers(glancing: Path, bundle: Path) -> None:
    with seen_whole(glancing) as whole:
        assert Manifest.read(whole) == Manifest.read(bundle)
    with seen_whole(bundle) as same:
        assert same == bundle
    assert not whole.exists()


@pytest.mark.parametrize("where", [".", "folder"])
def test_a_bundle_is_seen_whole_by_whatever_name_and_from_a_folder_that_may_only_be_read(
    glancing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    copy = Path(shutil.copytree(glancing, tmp_path / "folder"))
    (copy / ".DS_Store").write_bytes(b"a file that a bundle may have beside its own")
    for path in (*copy.iterdir(), copy):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.chdir(copy if where == "." else tmp_path)
    with seen_whole(Path(where)) as whole, closing(load(whole, "onnxruntime")) as backend:
        assert backend.manifest.glance == NO_GLANCE
    copy.chmod(0o755)
    (copy / "features.onnx").chmod(0o644)
    (copy / "features.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="was altered"), seen_whole(copy):
        pass


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_constant_of_another_shape_than_the_networks_is_an_error_of_inference(tmp_path: Path, runtime: str) -> None:
    copy = tiny_bundle(tmp_path / "bundle", glance=Glance(doubt_min=0.1))

    def widen(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.output[0] == "activation":
                wide = np.zeros((1, len(LABELS), 3, 3), np.float32)
                node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(wide))
        for output in model.graph.output:
            if output.name == "activation":
                for dim, size in zip(output.type.tensor_type.shape.dim[2:], (3, 3), strict=True):
                    dim.dim_value = size

    edit(copy, GLANCE_FILE, widen)
    with closing(load(copy, runtime, threads=1)) as backend, pytest.raises(InferenceError, match="of one patch is"):
        self_test(backend, read_golden(copy))


def test_a_constant_that_stands_for_nothing_fails_the_self_test(tmp_path: Path) -> None:
    copy = tiny_bundle(tmp_path / "bundle", glance=Glance(doubt_min=0.1))

    def spoil(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.output[0] == "label_features":
                wrong = np.full((1, len(LABELS), 2), 1.0, np.float32)
                node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(wrong))

    edit(copy, GLANCE_FILE, spoil)
    with closing(load(copy, "onnxruntime")) as backend, pytest.raises(InferenceError, match="golden patches differ"):
        self_test(backend, read_golden(copy))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("change", [rename_input, lambda model: model.graph.output.pop()], ids=["input", "output"])
def test_a_graph_of_another_form_is_refused(
    tmp_path: Path, runtime: str, change: Callable[[onnx.ModelProto], object]
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", glance=Glance(doubt_min=0.1))
    edit(bundle, GLANCE_FILE, change)
    with pytest.raises(BundleError, match=r"has .*, expected") as caught:
        load(bundle, runtime)
    assert caught.value.key == GLANCE_FILE


def seeing(high: int | str, wide: int | str) -> Callable[[onnx.ModelProto], object]:
    """An edit: the glance sees so many pixels, and its doubt is their mean."""

    def change(model: onnx.ModelProto) -> None:
        for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], (high, wide), strict=True):
            dim.Clear()
            setattr(dim, "dim_value" if isinstance(size, int) else "dim_param", size)
        constants = [node for node in model.graph.node if node.op_type == "Constant"]
        del model.graph.node[:]
        model.graph.node.extend(
            [
                onnx.helper.make_node("Cast", ["pixels"], ["level"], to=onnx.TensorProto.FLOAT),
                onnx.helper.make_node("Div", ["level", "white"], ["light"]),
                onnx.helper.make_node("ReduceMean", ["light"], ["doubt"], axes=[1, 2, 3], keepdims=0),
                *constants,
            ]
        )
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(255, np.float32), "white"))

    return change


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("beyond", [0, 1, 8, PATCH_PX - 1])
def test_what_it_sees_beyond_a_patch_is_the_mirror_image(tmp_path: Path, runtime: str, beyond: int) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", glance=Glance(doubt_min=0.1))
    edit(bundle, GLANCE_FILE, seeing(PATCH_PX + 2 * beyond, PATCH_PX + 2 * beyond))
    pixels = np.random.default_rng(4).integers(0, 256, (3, 1, PATCH_PX, PATCH_PX), np.uint8)
    pixels[..., :9] //= 2  # an edge whose image would be missed
    around = [(0, 0), (0, 0), (beyond, beyond), (beyond, beyond)]
    expected = np.pad(pixels, around, mode="reflect").mean((1, 2, 3)) / 255
    with closing(load(bundle, runtime)) as backend:
        np.testing.assert_allclose(backend.features(pixels).doubt, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("high", "wide"),
    [
        (PATCH_PX + 1, PATCH_PX + 1),
        (PATCH_PX - 2, PATCH_PX - 2),
        (3 * PATCH_PX, 3 * PATCH_PX),
        (PATCH_PX, PATCH_PX + 2),
        (PATCH_PX + 2, "wide"),
    ],
)
def test_one_that_sees_more_than_a_patch_and_its_image_is_refused(
    tmp_path: Path, high: int | str, wide: int | str
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", glance=Glance(doubt_min=0.1))
    edit(bundle, GLANCE_FILE, seeing(high, wide))
    with pytest.raises(BundleError, match="and as many beyond each edge") as caught:
        load(bundle, "onnxruntime")
    assert caught.value.key == GLANCE_FILE


def test_it_needs_a_features_graph_that_takes_patches_one_by_one(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", glance=Glance(doubt_min=0.1))
    edit(bundle, "features.onnx", lambda model: fix_rows(model, BATCH))
    with pytest.raises(BundleError, match="glance") as caught:
        load(bundle, "onnxruntime")
    assert caught.value.key == "features.onnx"


def test_one_that_is_taken_back_leaves_no_graph(glancing: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", glance=Glance(doubt_min=0.1))
    manifest = replace(Manifest.read(bundle), glance=NO_GLANCE)
    with pytest.raises(BundleError, match="not asked for"):
        manifest.sign(bundle)
    (bundle / GLANCE_FILE).unlink()
    assert manifest.sign(bundle) == Manifest.read(bundle)
