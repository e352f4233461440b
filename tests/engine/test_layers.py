import json

import pytest

from engine.layers import Layer, from_inspector, from_log, heavy_counts, real_precision

# two of the lines that TensorRT-RTX 1.7.1 prints, shortened in their middle
LOG = """Layers:
Name: __myl_CastConc_myl0_0, LayerType: kgen, Inputs: [ { Name: pixels, Dimensions: [10,1,64,64], \
StrideOrder: [3,2,1,0], Datatype: UInt8, Format: (Linear) Row major linear format }], Constants: [ { Name: __mye317, \
Dimensions: [10,1,64,64], Datatype: Half, Format: (NHWC) Channel major format }], Outputs: [ { Name: r1, \
Dimensions: [10,2,64,64], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: __myl_CastConc_0x39, \
StreamId: 0, Metadata: [ONNX Layer: node_of_x]
Name: node_of_c1_myl0_1, LayerType: correlation, Inputs: [ { Name: r1, Dimensions: [10,2,64,64], Datatype: Half, \
Format: (NHWC) Channel major format }], Constants: [ { Name: __mye391, Dimensions: [1], Datatype: Float, Format: \
(Linear) Row major linear format }], Outputs: [ { Name: r2, Datatype: Float, Format: (NHWC) Channel major format }], \
TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_of_c1]
Name: __mye4457_myl0_55, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0

I/O Tensors:
 Name: pixels, IOMode: Input, DataType: UInt8, Dimensions: [10,1,64,64], Location: Device
"""


def test_the_builders_lines_are_read() -> None:
    assert from_log(LOG) == [
        Layer("__myl_CastConc_myl0_0", "kgen", ""),  # bytes in: no precision that is compared
        Layer("node_of_c1_myl0_1", "correlation", "fp16"),
        Layer("__mye4457_myl0_55", "signal", ""),
    ]


@pytest.mark.parametrize(
    ("port", "precision"),
    [
        # TensorRT 10, by its documentation
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "int8"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "fp16"),
        ({"Format/Datatype": "Row major linear FP32"}, "fp32"),
        ({"Format/Datatype": "Row major linear BF16 format"}, "bf16"),
        # 11 and RTX
        ({"Datatype": "Half", "Format": "(NHWC) Channel major format"}, "fp16"),
        ({"Datatype": "Float", "Format": "(Linear) Row major linear format"}, "fp32"),
        ({"Datatype": "Int8", "Format": "(NHWC) Channel major format"}, "int8"),
        ({"Datatype": "UInt8", "Format": "(Linear) Row major linear format"}, ""),
        ({}, ""),
    ],
)
def test_the_inspectors_json_is_read_in_both_its_forms(port: dict[str, str], precision: str) -> None:
    bias = {"Datatype": "Float", "Format/Datatype": "Row major linear FP32"}
    text = json.dumps({"Layers": [{"Name": "a", "LayerType": "CaskConvolution", "Inputs": [port, bias]}]})
    assert from_inspector(text) == [Layer("a", "CaskConvolution", precision)]


@pytest.mark.parametrize("text", ["{}", '{"Layers": ["names", "alone"]}', '{"Layers": [{"Name": "a"}]}', "no JSON"])
def test_an_engine_without_details_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"detailed layers|Expecting value"):
        from_inspector(text)


@pytest.mark.parametrize(
    ("name", "heavy"),
    [
        ("__myl_FcRelu_myl0_26", True),  # as RTX fuses a 1 x 1 convolution for SM80 and later
        ("__myl_FcAdd_myl0_61", True),
        ("__myl_CastAddMoveMulCastConc_myl0_0", False),
        ("__myl_SqrtMaxMinReshReplDivMulSum_myl0_63", False),
        ("__myl_ReshCastReshMulSum_myl0_62", False),
    ],
)
def test_a_product_that_is_fused_is_known_by_its_name(name: str, heavy: bool) -> None:
    assert Layer(name, "runtime_fusion", "fp16").heavy is heavy


@pytest.mark.parametrize(
    ("kind", "heavy"),
    [
        ("CaskConvolution", True),
        ("CaskGemmConvolution", True),
        ("correlation", True),
        ("gemm", True),
        ("MatrixMultiply", True),
        ("kgen", False),
        ("Reformat", False),
        ("maxpool", False),
        ("PointWiseV2", False),
    ],
)
def test_convolutions_and_products_hold_the_work(kind: str, heavy: bool) -> None:
    assert Layer("a", kind, "fp16").heavy is heavy


def test_most_of_the_work_decides() -> None:
    layers = [Layer("a", "gemm", "fp32"), *[Layer("b", "correlation", "fp16")] * 2, *[Layer("c", "kgen", "int8")] * 9]
    counts = heavy_counts(layers)
    assert counts == {"fp32": 1, "fp16": 2}
    assert real_precision(counts) == "fp16"
    assert real_precision({}) == ""
