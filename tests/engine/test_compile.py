"""The build function against TensorRT-RTX, which compiles for any GPU without one: `pip install '.[compile-check]'`.

The layers of what it compiles are written to `build/layers-*.json`. Whether an engine computes what it must, only a
GPU can say: see `deploy/gpu-acceptance.md`.
"""

import ast
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from engine.errors import PlanError
from engine.half import write_half
from engine.layers import heavy_counts, real_precision
from engine.manifest import FEATURES_FILES
from engine.quantise import quantise
from tests.engine.precisions import BATCH, PATCHES, network, write_bundle
from training.architecture import NetworkConfig
from training.network import FeaturesGraph, TwoStageNetwork

rtx = pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install '.[compile-check]', 260 MB", exc_type=ImportError
)

from engine import compiler  # noqa: E402 - it imports TensorRT
from engine.compiler import check_precision, compile_graph, compile_product  # noqa: E402
from engine.plans import Compiled  # noqa: E402

CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120")
ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "build"
TYPINGS = ROOT / "typings" / "tensorrt" / "__init__.pyi"


def compile_file(path: Path, **options: Any) -> Compiled:  # noqa: ANN401
    return compile_graph(path.read_bytes(), name=path.name, **options)


@pytest.fixture(scope="module")
def half_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's network, untrained, as export writes it in half precision at 1024 x 1024."""
    folder = tmp_path_factory.mktemp("half")
    torch.manual_seed(0)
    features = FeaturesGraph(TwoStageNetwork(4, NetworkConfig(trunk="resnet50")))
    write_half(folder, features, part=FeaturesGraph.TRUNK, patch_px=1024)
    return folder / FEATURES_FILES["fp16"]


@pytest.mark.parametrize("batch_size", [10, 25])
def test_the_papers_network_compiles_in_half_precision_for_every_gpu(half_graph: Path, batch_size: int) -> None:
    together = compile_file(half_graph, precision="fp16", batch_size=batch_size, capabilities=CAPABILITIES)
    engines: dict[str, dict[str, Any]] = {}
    for capability in CAPABILITIES:
        alone = compile_file(half_graph, precision="fp16", batch_size=batch_size, capabilities=[capability])
        # 53 of the trunk and the pooling; the activation map is a convolution in float32
        assert heavy_counts(alone.layers) == {"fp16": 54, "fp32": 1}
        engines[capability] = {
            "plan_bytes": len(alone.plan),
            "kinds": Counter(layer.kind for layer in alone.layers),
            "layers": [asdict(layer) for layer in alone.layers],
        }
    assert len(together.plan) >= max(engine["plan_bytes"] for engine in engines.values())
    report = {
        "tensorrt": compiler.VERSION,
        "graph": "features of the two-stage network, resnet50, 1024 x 1024, untrained",
        "precision": "fp16",
        "batch_size": batch_size,
        "plan_bytes_for_all": len(together.plan),
        "engines": engines,
    }
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / f"layers-resnet50-fp16-n{batch_size}.json").write_text(json.dumps(report, indent=1) + "\n")


def tiny_graph(path: Path, *, half: bool, operator: str = "Relu") -> Path:
    """A convolution and a matrix product, in half precision or in float32."""
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=kind),
        helper.make_node("Conv", ["x", "kernel"], ["seen"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["seen"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["product"]),
        helper.make_node("Cast", ["product"], ["stage1"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 1, 64, 64])],
        [helper.make_tensor_value_info("stage1", TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(rng.normal(size=(16, 1, 3, 3)).astype(dtype), "kernel"),
            numpy_helper.from_array(rng.normal(size=(16, 4)).astype(dtype), "matrix"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(("half", "precision"), [(True, "fp16"), (False, "fp32")])
def test_the_graph_decides_the_precision_and_it_is_read_back(tmp_path: Path, half: bool, precision: str) -> None:
    graph = tiny_graph(tmp_path / "graph.onnx", half=half)
    compiled = compile_file(graph, precision=precision, batch_size=3, capabilities=["SM86"])
    assert heavy_counts(compiled.layers) == {precision: 2}


@pytest.mark.parametrize(("half", "asked"), [(False, "fp16"), (True, "fp32"), (True, "int8")])
def test_an_engine_of_another_precision_than_asked_for_is_refused(tmp_path: Path, half: bool, asked: str) -> None:
    graph = tiny_graph(tmp_path / "graph.onnx", half=half)
    with pytest.raises(PlanError, match=f"the engine is {'fp16' if half else 'fp32'}, not {asked}: .* 2 in"):
        compile_file(graph, precision=asked, batch_size=3, capabilities=["SM86"])


@pytest.fixture(scope="module", params=[3, 12, 18])
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The light network as export quantises it for TensorRT, and how many of its 19 convolutions it keeps in float."""
    folder = write_bundle(tmp_path_factory.mktemp("int8") / "bundle", network())
    keep: int = request.param
    ranges = folder.parent / "ranges"
    quantise(folder, "int8-trt", pixels=PATCHES, part=FeaturesGraph.TRUNK, keep=keep, ranges=ranges)
    return folder / FEATURES_FILES["int8-trt"], keep


@pytest.mark.parametrize("capability", ["SM80", "SM86", "SM89", "SM120"])
def test_a_quantised_graph_is_computed_in_int8_as_far_as_it_is_quantised(
    quantised: tuple[Path, int], capability: str
) -> None:
    """Also where most of it stays in float, which export allows where a faint defect needs it."""
    graph, keep = quantised
    compiled = compile_file(graph, precision="int8", batch_size=BATCH, capabilities=[capability])
    # the label map is a convolution in float32; of two products in float16 the engine makes one
    assert heavy_counts(compiled.layers) == {"int8": 19 - keep, "fp32": keep + 1, "fp16": 1}
    assert real_precision(heavy_counts(compiled.layers)) == "int8"


def test_rtx_computes_int8_in_float_on_sm75_and_that_is_found_out(quantised: tuple[Path, int]) -> None:
    with pytest.raises(PlanError, match=r"the engine is fp16, not int8: .* 20 in fp32"):
        compile_file(quantised[0], precision="int8", batch_size=BATCH, capabilities=["SM75"])


@pytest.mark.parametrize("half", [False, True])
def test_the_product_that_a_gpu_is_measured_by_compiles(half: bool) -> None:
    assert compile_product(256, half=half, capabilities=["SM86"])


def test_an_operator_that_is_not_supported_is_named(tmp_path: Path) -> None:
    graph = tiny_graph(tmp_path / "graph.onnx", half=True, operator="NoSuchThing")
    with pytest.raises(PlanError, match=r"graph\.onnx: TensorRT refuses the graph: .*NoSuchThing"):
        compile_file(graph, precision="fp16", batch_size=3, capabilities=["SM86"])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no graph", "refuses the graph"), (b"", "cannot build it: .*Network must have at least one output")],
)
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "graph.onnx").write_bytes(content)
    with pytest.raises(PlanError, match=message):
        compile_file(tmp_path / "graph.onnx", precision="fp16", batch_size=3, capabilities=["SM86"])


def test_weights_outside_the_graph_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tiny_graph(tmp_path / "graph.onnx", half=True)
    onnx.save(onnx.load(graph), graph, save_as_external_data=True, location="weights.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    network = rtx.Builder(compiler.MESSAGES).create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert rtx.OnnxParser(network, compiler.MESSAGES).parse(graph.read_bytes())  # which TensorRT by itself takes
    with pytest.raises(PlanError, match=r"graph\.onnx: TensorRT refuses the graph: .*kernel"):
        compile_file(graph, precision="fp16", batch_size=3, capabilities=["SM86"])


def test_progress_is_told_and_ends(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    graph = tiny_graph(tmp_path / "graph.onnx", half=True)
    compile_file(
        graph,
        precision="fp16",
        batch_size=3,
        capabilities=["SM86"],
        progress=lambda phase, done, steps: told.append((phase, done, steps)),
    )
    assert all(0 <= done <= steps for _, done, steps in told)
    assert {phase for phase, done, _ in told if done == 0} <= {phase for phase, done, steps in told if done == steps}
    assert "Building engine" in {phase for phase, _, _ in told}


def test_what_the_progress_raises_ends_the_build(tmp_path: Path) -> None:
    def interrupted(phase: str, done: int, steps: int) -> None:
        raise KeyboardInterrupt

    graph = tiny_graph(tmp_path / "graph.onnx", half=True)
    with pytest.raises(KeyboardInterrupt):
        compile_file(graph, precision="fp16", batch_size=3, capabilities=["SM86"], progress=interrupted)


GRAPHS = {"fp32": {"fp32": 22}, "fp16": {"fp16": 54, "fp32": 1}, "int8": {"int8": 7, "fp16": 2, "fp32": 13}}


@pytest.mark.parametrize(
    ("asked", "engine"),
    [
        ("fp32", {"fp32": 21}),  # of two products one may be made
        ("fp16", {"fp16": 55}),
        ("int8", {"int8": 7, "fp16": 1, "fp32": 13}),  # most of the graph is in float32
        ("int8", {"int8": 7, "fp16": 15}),
    ],
)
def test_an_engine_may_be_as_wide_as_its_graph(asked: str, engine: dict[str, int]) -> None:
    check_precision(engine, asked, graph=GRAPHS[asked])


@pytest.mark.parametrize(
    ("asked", "engine", "message"),
    [
        ("fp32", {}, "of no known precision, not fp32"),
        ("fp32", {"fp32": 21, "fp16": 1}, "is fp16, not fp32"),
        ("fp16", {"fp32": 55}, "is fp32, not fp16"),
        ("fp16", {"fp16": 53, "fp32": 2}, "2 convolutions and products wider than fp16, the graph only 1"),
        ("int8", {"fp16": 2, "fp32": 20}, "is fp16, not int8"),
        ("int8", {"int8": 6, "fp16": 2, "fp32": 14}, "16 .* wider than int8, the graph only 15"),
        ("int8", {"int8": 7, "fp32": 15}, "15 .* wider than fp16, the graph only 13"),
    ],
)
def test_an_engine_wider_than_its_graph_is_refused(asked: str, engine: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_precision(engine, asked, graph=GRAPHS[asked])


def names_of(body: Iterable[ast.stmt]) -> set[str]:
    """What is defined in a module or a class of a stub file."""
    found = set()
    for node in body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                found.add(name)
    return found


def test_every_name_of_the_typings_is_in_the_real_package() -> None:
    module = ast.parse(TYPINGS.read_text()).body
    classes = {node.name: names_of(node.body) for node in module if isinstance(node, ast.ClassDef)}
    assert len(classes) > 20
    assert [name for name in names_of(module) if not hasattr(rtx, name)] == []
    absent = {
        f"{kind}.{name}" for kind, names in classes.items() for name in names if not hasattr(vars(rtx)[kind], name)
    }
    assert absent <= {"Severity.name"}
