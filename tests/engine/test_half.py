"""Half precision where it is safe, and a CPU that shows what it costs."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from engine import RELEASE_FILE, BundleError, ParityError, check_finite, load
from engine.half import in_half, rounded_copy
from engine.manifest import Manifest
from tests.engine.precisions import PATCHES, network, with_half
from training.network import FeaturesGraph

NETWORKS = [("light", "attention", "root"), ("resnet18", "average", "linear")]
FLOAT_ALWAYS = {"ReduceMean", "Softmax", "ReduceL2", "ReduceSum", "Sqrt", "Sub"}


def types_of_inputs(graph: Path) -> list[tuple[str, int]]:
    """Operators with the element type of their first input."""
    model = onnx.shape_inference.infer_shapes(onnx.load(graph), strict_mode=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.value_info)}
    kinds |= {value.name: value.data_type for value in model.graph.initializer}
    kinds |= {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    return [(node.op_type, kinds[node.input[0]]) for node in model.graph.node if node.input]


@pytest.mark.parametrize(("trunk", "pooling", "light"), NETWORKS)
def test_the_trunk_is_half_and_what_would_suffer_is_not(
    precise: Path, tmp_path: Path, trunk: str, pooling: str, light: str
) -> None:
    made = network(trunk, pooling, light)
    bundle = with_half(precise, tmp_path / "bundle", made)
    operators = types_of_inputs(bundle / "features.fp16.onnx")
    convolutions = [kind for name, kind in operators if name == "Conv"]
    # the label map, or the activation of average pooling, reads the trunk's map in float32
    assert convolutions == [TensorProto.FLOAT16] * (len(convolutions) - 1) + [TensorProto.FLOAT]
    assert len(convolutions) > 10
    assert {kind for name, kind in operators if name in FLOAT_ALWAYS} == {TensorProto.FLOAT}
    # TensorRT has no float32 products for Turing
    assert {kind for name, kind in operators if name in ("MatMul", "Gemm")} == {TensorProto.FLOAT16}
    assert not {name for name, _ in operators} & {"BatchNormalization"}
    assert operators[0] == ("Cast", TensorProto.UINT8)
    with torch.inference_mode():
        reference = FeaturesGraph(made)(torch.from_numpy(PATCHES[:3]))[0].numpy()
    with rounded_copy(bundle) as rounding:
        backend = load(rounding, "onnxruntime", precision="fp16", threads=1)
    check_finite(backend)
    difference = np.abs(backend.features(PATCHES[:3]).label_features - reference).max()
    assert 0 < difference < 0.01 * np.abs(reference).max()


def test_the_rounded_copy_computes_what_the_module_computes_in_half(precise: Path) -> None:
    made = network()
    with torch.inference_mode():
        float32 = FeaturesGraph(made)(torch.from_numpy(PATCHES[:3]))[2].numpy()
        half = in_half(FeaturesGraph(made), "network.trunk")(torch.from_numpy(PATCHES[:3]))[2].numpy()
    with rounded_copy(precise) as rounding:
        copy = load(rounding, "onnxruntime", precision="fp16", threads=1).features(PATCHES[:3]).activation
    assert np.abs(copy - half).max() < 0.3 * np.abs(half - float32).max()


def test_an_overflow_is_seen_on_a_cpu(precise: Path, tmp_path: Path) -> None:
    made = network()
    with torch.no_grad():  # every weight fits float16; what two layers of them make does not
        for norm in (made.trunk.layers[1], made.trunk.layers[3].norm1):  # type: ignore[index,union-attr]
            norm.weight.mul_(3000.0)  # type: ignore[union-attr]
    bundle = with_half(precise, tmp_path / "bundle", made)
    check_finite(load(bundle, "onnxruntime", precision="fp16", threads=1))  # by itself ONNX Runtime sees nothing of it
    with rounded_copy(bundle) as rounding, pytest.raises(ParityError, match="not finite"):
        check_finite(load(rounding, "onnxruntime", precision="fp16", threads=1))


def test_the_mean_of_a_large_map_does_not_overflow(precise: Path, tmp_path: Path) -> None:
    made = network("light", "average")
    with torch.no_grad():
        made.trunk.layers[-1].norm2.bias.fill_(1000.0)  # type: ignore[index,union-attr]
    bundle = with_half(precise, tmp_path / "bundle", made, patch_px=1024)
    pixels = np.full((1, 1, 1024, 1024), 77, np.uint8)
    with rounded_copy(bundle) as rounding:
        half = load(rounding, "onnxruntime", precision="fp16", threads=1).features(pixels).label_features
    with torch.inference_mode():
        float32 = FeaturesGraph(made)(torch.from_numpy(pixels))[0].numpy()
    # 32 x 32 cells of 1,000 add up to 1,024,000; float16 ends at 65,504
    np.testing.assert_allclose(half, float32, rtol=1e-2, atol=np.abs(float32).max() * 1e-3)


def test_a_part_that_is_not_there_is_refused() -> None:
    with pytest.raises(AttributeError):
        in_half(FeaturesGraph(network()), "network.stem")


def test_a_bundle_without_half_precision_has_no_rounded_copy(bundle: Path) -> None:
    with pytest.raises(BundleError, match="was not exported as fp16"), rounded_copy(bundle):
        pass


def test_a_released_bundle_has_a_rounded_copy(precise: Path, tmp_path: Path) -> None:
    released = shutil.copytree(precise, tmp_path / "bundle")
    (released / RELEASE_FILE).write_text("{}")
    with rounded_copy(released) as rounding:
        check_finite(load(rounding, "onnxruntime", precision="fp16", threads=1))


def test_the_copy_goes_and_the_bundle_stays(precise: Path) -> None:
    before = (precise / "manifest.json").read_bytes()
    with rounded_copy(precise) as rounding:
        assert Manifest.read(rounding).precisions == ("fp32", "fp16", "int8", "int8-trt")
    assert not rounding.exists()
    assert (precise / "manifest.json").read_bytes() == before
