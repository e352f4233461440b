"""Static 8-bit graphs, in the form that each runtime takes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from engine import Manifest, infer, load
from engine.quantise import convolutions, quantise
from tests.engine.precisions import PATCHES, network, sign, write_bundle

PART = "network.trunk"


def graph(bundle: Path, name: str) -> onnx.GraphProto:
    return onnx.load(bundle / name).graph


def quantised_convolutions(found: onnx.GraphProto) -> list[bool]:
    """Of each convolution, whether its weights come dequantised."""
    dequantised = {node.output[0] for node in found.node if node.op_type == "DequantizeLinear"}
    return [node.input[1] in dequantised for node in found.node if node.op_type == "Conv"]


@pytest.mark.parametrize(("name", "kept"), [("features.int8.onnx", 4), ("features.int8-trt.onnx", 3)])
def test_the_first_convolutions_and_the_label_map_stay_in_float32(precise: Path, name: str, kept: int) -> None:
    count = convolutions(precise, PART)
    assert count == 19
    assert quantised_convolutions(graph(precise, name)) == [False] * kept + [True] * (count - kept) + [False]


@pytest.mark.parametrize("name", ["features.int8.onnx", "features.int8-trt.onnx"])
def test_ranges_are_in_the_graph_and_the_pixels_are_cast(precise: Path, name: str) -> None:
    found = graph(precise, name)
    assert not [node.op_type for node in found.node if "Dynamic" in node.op_type]
    constants = {constant.name for constant in found.initializer}
    quantisers = [node for node in found.node if node.op_type == "QuantizeLinear"]
    assert quantisers
    assert all(set(node.input[1:]) <= constants for node in quantisers)  # no scale is computed from a batch
    assert [node.op_type for node in found.node if "pixels" in node.input] == ["Cast"]


def test_tensorrt_finds_no_zero_point_but_0_and_no_integer_bias(precise: Path) -> None:
    found = graph(precise, "features.int8-trt.onnx")
    constants = {constant.name: constant for constant in found.initializer}
    for node in found.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero = constants[node.input[2]]
            assert zero.data_type == TensorProto.INT8
            assert not numpy_helper.to_array(zero).any()
        if node.op_type == "Conv" and len(node.input) > 2:
            assert constants[node.input[2]].data_type == TensorProto.FLOAT


def test_a_cpu_gets_a_scale_for_each_channel_and_unsigned_activations(precise: Path) -> None:
    found = graph(precise, "features.int8.onnx")
    constants = {constant.name: constant for constant in found.initializer}
    zeros = {constants[node.input[2]].data_type for node in found.node if node.op_type == "QuantizeLinear"}
    assert zeros == {TensorProto.UINT8}
    scales = [
        constants[node.input[1]].dims
        for node in found.node
        if node.op_type == "DequantizeLinear" and constants.get(node.input[0], TensorProto()).data_type == 3
    ]
    assert scales
    assert all(len(dims) == 1 and dims[0] > 1 for dims in scales)


@pytest.mark.parametrize("precision", ["int8", "int8-trt"])
def test_it_is_about_what_float32_gives(precise: Path, precision: str) -> None:
    _, expected = infer(load(precise, "onnxruntime", threads=1), PATCHES)
    _, found = infer(load(precise, "onnxruntime", precision=precision, threads=1), PATCHES)
    assert 0 < np.abs(found - expected).max() < 0.1


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose trunk is a ResNet as the paper's, but smaller, all of it quantised in both forms."""
    folder = tmp_path_factory.mktemp("residual")
    bundle = write_bundle(folder / "bundle", network("resnet18", pooling="average"))
    for precision in ("int8", "int8-trt"):
        quantise(bundle, precision, pixels=PATCHES, part=PART, keep=0, ranges=folder / "ranges")
    sign(bundle, Manifest.read(bundle))
    return bundle


@pytest.mark.parametrize("precision", ["int8", "int8-trt"])
def test_of_a_resnet_the_sums_and_the_pooling_are_quantised_too(residual: Path, precision: str) -> None:
    found = graph(residual, f"features.{precision}.onnx")
    assert quantised_convolutions(found) == [True] * convolutions(residual, PART) + [False]
    dequantised = {node.output[0] for node in found.node if node.op_type == "DequantizeLinear"}
    inside = [node for node in found.node if node.op_type in ("Add", "MaxPool")]
    assert [node.op_type for node in inside] == ["MaxPool"] + ["Add"] * 8
    assert {name for node in inside for name in node.input} <= dequantised


@pytest.mark.parametrize("precision", ["int8", "int8-trt"])
def test_a_resnet_gives_about_what_float32_gives(residual: Path, precision: str) -> None:
    _, expected = infer(load(residual, "onnxruntime", threads=1), PATCHES)
    _, found = infer(load(residual, "onnxruntime", precision=precision, threads=1), PATCHES)
    assert 0 < np.abs(found - expected).max() < 0.1


@pytest.mark.parametrize("keep", [-1, 19, 50])
def test_something_must_be_left_to_quantise(precise: Path, tmp_path: Path, keep: int) -> None:
    with pytest.raises(ValueError, match="has 19 convolutions"):
        quantise(precise, "int8", pixels=PATCHES, part=PART, keep=keep, ranges=tmp_path / "ranges")


def test_a_part_without_convolutions_has_none(precise: Path) -> None:
    assert convolutions(precise, "network.reasoning") == 0
