import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state

from engine import Backend, Batch, BundleError, Features, InferenceError, Manifest, infer, load, read_golden
from engine.batches import Batches
from engine.cpu import CpuBackend
from engine.graphs import FOREIGN_ERRORS, FeaturesGraph, Reasoning
from engine.manifest import file_sha256, parse
from engine.tuning import Share
from tests.bundles import CELL_PX, LABELS, features_graph, golden_pixels, grey_of, probability_of, tiny_bundle
from tests.engine.precisions import PATCHES

PATCH_PX = 64


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


def sign(bundle: Path) -> None:
    """Write the hashes of the files as they are now, as whoever made the bundle would."""
    manifest = parse((bundle / "manifest.json").read_bytes())
    files = {name: file_sha256(bundle / name) for name in manifest.files}
    replace(manifest, files=files).write(bundle)


def replace_by_another(bundle: Path) -> None:
    """As an export does, at any time."""
    shutil.rmtree(bundle)
    tiny_bundle(bundle, labels=("oil", "stain"))


def edit(bundle: Path, name: str, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change a graph and sign the bundle again."""
    model = onnx.load(bundle / name)
    change(model)
    onnx.save(model, bundle / name)
    sign(bundle)


def test_probabilities_are_those_of_the_same_sums_in_numpy(bundle: Path) -> None:
    pixels = golden_pixels(len(LABELS), patch_px=PATCH_PX)
    backend = load(bundle, "onnxruntime", threads=2)
    _, probability = infer(backend, pixels)
    np.testing.assert_allclose(probability, probability_of(pixels, len(LABELS)), atol=1e-6)
    assert (probability.argmax(1)[:4] == [0, 1, 2, 3]).all()
    assert probability[4].max() < 0.01


def test_all_patches_of_a_screen_are_reasoned_over_together(bundle: Path) -> None:
    backend = load(bundle, "onnxruntime", threads=1)
    features, together = infer(backend, golden_pixels(len(LABELS), patch_px=PATCH_PX))
    alone = backend.reason(features.label_features[:1], features.stage1[:1])
    assert (alone[0] != together[0]).all()


def test_activation_is_high_where_the_label_is(bundle: Path) -> None:
    pixels = np.full((1, 1, PATCH_PX, PATCH_PX), 128, np.uint8)
    pixels[0, 0, 40, 17] = grey_of(2)
    activation = load(bundle, "onnxruntime", threads=1).features(pixels).activation
    assert activation.shape == (1, len(LABELS), PATCH_PX // CELL_PX, PATCH_PX // CELL_PX)
    assert [tuple(index) for index in np.argwhere(activation > 0)] == [(0, 2, 40 // CELL_PX, 17 // CELL_PX)]


def test_a_network_without_activation_gives_flat_maps(tmp_path: Path) -> None:
    backend = load(
        tiny_bundle(tmp_path / "bundle", labels=("oil", "stain"), activation=False), "onnxruntime", threads=1
    )
    features = backend.features(np.zeros((3, 1, PATCH_PX, PATCH_PX), np.uint8))
    assert features.activation.shape == (3, 2, 1, 1)
    assert not features.activation.any()


@pytest.mark.parametrize("threads", [0, -1])
def test_a_number_of_threads_below_one_is_refused(bundle: Path, threads: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        load(bundle, "onnxruntime", threads=threads)


def os_threads() -> set[str]:
    return {task.name for task in Path("/proc/self/task").iterdir()}


def builder_of(backend: Backend, bundle: Path) -> Callable[[Share], Batches]:
    graph = FeaturesGraph.read(bundle, backend.manifest, precision="fp32", batch_size=backend.batch_size)
    build: Callable[[Share], Batches] = vars(CpuBackend)["_builder"](backend, graph, None)
    return build


@pytest.mark.parametrize(
    "share", [Share(streams=2, threads=1), Share(streams=1, threads=2), Share(streams=3, threads=2)]
)
def test_as_many_threads_work_as_the_share_says(bundle: Path, share: Share) -> None:
    with closing(load(bundle, "onnxruntime", threads=1)) as backend:
        before = os_threads()
        batches = builder_of(backend, bundle)(share)
        batches.run(Batch(np.zeros((5, 1, PATCH_PX, PATCH_PX), np.uint8)))
        # each stream has its other threads to itself from the start; its own one is begun with the first work for it
        others = share.streams * (share.threads - 1)
        assert others < len(os_threads() - before) <= share.total  # those of other tests may end meanwhile


@pytest.mark.parametrize(
    "share", [Share(streams=1, threads=1), Share(streams=1, threads=3), Share(streams=3, threads=2)]
)
def test_every_share_gives_each_patch_its_own_answer(precise: Path, share: Share) -> None:
    batch = Batch(np.repeat(PATCHES, 3, axis=0))
    with closing(load(precise, "onnxruntime", threads=1)) as backend:
        build = builder_of(backend, precise)
        expected = build(Share(streams=1, threads=share.threads)).run(batch)
        batches = build(share)
        for _ in range(5):
            found = batches.run(batch)
            for field in fields(Features):
                np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))


def test_an_altered_bundle_is_not_loaded(copy: Path) -> None:
    (copy / "MODEL_CARD.md").write_text("another")
    with pytest.raises(BundleError) as caught:
        load(copy, "onnxruntime")
    assert caught.value.key == "files.MODEL_CARD.md"


@pytest.mark.parametrize(
    "use",
    [
        lambda copy, manifest: FeaturesGraph.read(copy, manifest, precision="fp32", batch_size=5),
        Reasoning,
    ],
)
def test_a_graph_is_the_one_that_its_manifest_was_signed_with(
    copy: Path, use: Callable[[Path, Manifest], object]
) -> None:
    manifest = Manifest.read(copy)
    replace_by_another(copy)
    with pytest.raises(BundleError, match="was altered"):
        use(copy, manifest)


@pytest.mark.parametrize("use", [lambda copy: load(copy, "onnxruntime", threads=1), read_golden])
def test_a_bundle_that_is_replaced_after_it_was_verified_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], object]
) -> None:
    read = Manifest.read

    def then_replace(bundle: Path) -> Manifest:
        manifest = read(bundle)
        replace_by_another(bundle)
        return manifest

    monkeypatch.setattr(Manifest, "read", then_replace)
    with pytest.raises(BundleError, match="was altered"):
        use(copy)


@pytest.mark.parametrize("name", ["features.onnx", "reasoning.onnx"])
@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x08"])
def test_a_file_that_is_no_graph_is_refused(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    sign(copy)
    with pytest.raises(BundleError, match=r"refuses the graph|expected") as caught:
        load(copy, "onnxruntime")
    assert caught.value.key == name


def test_weights_outside_the_graph_are_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = features_graph(len(LABELS), patch_px=PATCH_PX)
    onnx.save(
        model,
        copy / "features.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    sign(copy)
    monkeypatch.chdir(copy)  # where ONNX Runtime would look by itself
    with pytest.raises(BundleError, match="refuses the graph") as caught:
        load(copy, "onnxruntime")
    assert caught.value.key == "features.onnx"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: replace(manifest, patch_px=32), "pixels is"),
        (
            lambda manifest: replace(manifest, labels={"bubble": manifest.labels["bubble"]}),
            "label_features is",
        ),
    ],
)
def test_graphs_that_do_not_fit_the_manifest_are_refused(
    copy: Path, change: Callable[[Manifest], Manifest], message: str
) -> None:
    change(Manifest.read(copy)).write(copy)
    with pytest.raises(BundleError, match=message) as caught:
        load(copy, "onnxruntime")
    assert caught.value.key == "features.onnx"


def fix_rows(model: onnx.ModelProto, rows: int) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = rows


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "image"
    model.graph.node[0].input[0] = "image"


def take_float_pixels(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def drop_stage1(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def spare_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, None))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("features.onnx", rename_input, "has .'image'., expected .'pixels'."),
        ("features.onnx", take_float_pixels, r"pixels is tensor\(float\)"),
        ("features.onnx", drop_stage1, "expected .'activation', 'label_features', 'stage1'."),
        ("features.onnx", spare_output, "has .'activation', 'label_features', 'seen'"),
        # a batch size that is not the manifest's
        ("features.onnx", lambda model: fix_rows(model, 4), "pixels is"),
        # a reasoning that takes screens of one size only
        ("reasoning.onnx", lambda model: fix_rows(model, 50), "label_features is"),
        ("reasoning.onnx", rename_input, "has .'image', 'stage1'."),
    ],
)
def test_a_graph_of_another_form_is_refused(
    copy: Path, name: str, change: Callable[[onnx.ModelProto], object], message: str
) -> None:
    edit(copy, name, change)
    with pytest.raises(BundleError, match=message) as caught:
        load(copy, "onnxruntime")
    assert caught.value.key == name


def test_a_graph_with_the_batch_size_fixed_is_taken(copy: Path) -> None:
    edit(copy, "features.onnx", lambda model: fix_rows(model, 5))
    features = load(copy, "onnxruntime", threads=1).features(np.zeros((2, 1, PATCH_PX, PATCH_PX), np.uint8))
    assert features.stage1.shape == (2, len(LABELS))


def open_shapes(model: onnx.ModelProto) -> None:
    """Take every declared size away from the outputs, so that only the answer itself can be checked."""
    for value in model.graph.output:
        for dimension in value.type.tensor_type.shape.dim:
            dimension.ClearField("value")
            dimension.dim_param = "unknown"


def lose_a_row(model: onnx.ModelProto) -> None:
    """Make `stage1` of every row but the last."""
    open_shapes(model)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["whole" if name == "stage1" else name for name in names]
    cut_off = {"starts": 0, "ends": -1, "axes": 0}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array([value], np.int64), name) for name, value in cut_off.items()
    )
    model.graph.node.append(helper.make_node("Slice", ["whole", *cut_off], ["stage1"]))


def test_an_answer_that_lost_a_row_is_an_error(copy: Path) -> None:
    edit(copy, "features.onnx", lose_a_row)
    backend = load(copy, "onnxruntime", threads=1)
    with pytest.raises(InferenceError, match=r"stage1 came back as \(0, 4\)"):
        backend.features(np.zeros((5, 1, PATCH_PX, PATCH_PX), np.uint8))


def test_a_failure_of_the_runtime_is_an_inference_error(bundle: Path) -> None:
    backend = load(bundle, "onnxruntime", threads=1)
    # three features a label where the graph has two: only ONNX Runtime can know
    with pytest.raises(InferenceError, match="onnxruntime failed") as caught:
        backend.reason(np.zeros((3, 4, 3), np.float32), np.zeros((3, 4), np.float32))
    assert isinstance(caught.value.__cause__, FOREIGN_ERRORS)
    # and the next screen is served
    backend.reason(np.zeros((3, 4, 2), np.float32), np.zeros((3, 4), np.float32))


def test_every_exception_of_onnxruntime_is_known() -> None:
    exposed = [
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    assert len(exposed) > 5
    assert all(issubclass(kind, FOREIGN_ERRORS) for kind in exposed)
