"""The features graph in 8-bit integers, made at export: static, with the ranges that calibration patches gave.

Static, so that no patch of a batch sets the scale of another. Two forms, as no runtime takes the other's well: ONNX
Runtime's on CPUs (uint8 activations, integer bias) and TensorRT's (symmetric int8, zero points of 0, float bias). Both
begin behind the first cast, so the pixels are never dequantised.

The first convolutions of the trunk may be kept in float32, counted from the pixels: a faint defect is a few grey levels
on a bright ground, less there than one step of 8 bits; deeper down it has become a feature. The label map, the pooling
and the cosines are float32 always.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from engine.half import halve_products
from engine.manifest import FEATURES_FILES

QUANTISED = ("Conv", "Relu", "Add", "MaxPool")
PATCHES_AT_A_TIME = 4
FOR_TENSORRT: dict[str, Any] = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # published without types
    """Hands calibration patches (K, 1, P, P) to the library, a few at a time."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._batches: Iterator[NDArray[np.uint8]] = iter(
            [pixels[start : start + PATCHES_AT_A_TIME] for start in range(0, len(pixels), PATCHES_AT_A_TIME)]
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch, or None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}


def convolutions(bundle: Path, part: str) -> int:
    """How many convolutions one part of the features graph has, such as `network.trunk`."""
    model = onnx.load(bundle / FEATURES_FILES["fp32"])
    return sum(node.op_type == "Conv" for node in _of_part(model, part))


def quantise(bundle: Path, precision: str, *, pixels: NDArray[np.uint8], part: str, keep: int, ranges: Path) -> None:
    """Write a quantised copy of a bundle's float32 features graph beside it; signing it is the caller's.

    Args:
        bundle: folder of the bundle.
        precision: int8, ONNX Runtime's form, or int8-trt, TensorRT's.
        pixels: (K, 1, P, P) calibration patches.
        part: what is quantised, such as `network.trunk`.
        keep: how many convolutions of the part stay in float32, counted from the pixels.
        ranges: file of the measured ranges; read where it is there, so that a second call need not calibrate.

    Raises:
        ValueError: the part has no convolution left to quantise.
    """
    model = onnx.load(bundle / FEATURES_FILES["fp32"])
    tensorrt = precision == "int8-trt"
    chosen = {node.name for node in of_part(model, part, keep=keep)}
    add_pre_process_metadata(model)  # the exporter has folded and inferred what the library would
    quantize_static(
        model,
        bundle / FEATURES_FILES[precision],
        Calibration(pixels),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTISED),
        nodes_to_exclude=[node.name for node in model.graph.node if node.name not in chosen],
        per_channel=True,
        activation_type=QuantType.QInt8 if tensorrt else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        calibration_cache_path=ranges,
        extra_options=FOR_TENSORRT if tensorrt else {},
    )
    if tensorrt:
        quantised = onnx.load(bundle / FEATURES_FILES[precision])
        halve_products(quantised.graph)
        onnx.save(quantised, bundle / FEATURES_FILES[precision])


def of_part(model: onnx.ModelProto, part: str, *, keep: int) -> list[onnx.NodeProto]:
    """Nodes of a part behind its first `keep` convolutions, to its end, in the order of the graph, that of computing.

    Raises:
        ValueError: it has no convolution behind them.
    """
    inside = _of_part(model, part)
    starts = [index for index, node in enumerate(inside) if node.op_type == "Conv"]
    if not 0 <= keep < len(starts):
        raise ValueError(f"{part} has {len(starts)} convolutions, so {keep} of them cannot be kept in float32")
    return inside[starts[keep] :]


def _of_part(model: onnx.ModelProto, part: str) -> list[onnx.NodeProto]:
    """Nodes from the part's first convolution to its end."""
    nodes = list(model.graph.node)
    own = [index for index, node in enumerate(nodes) if node.op_type == "Conv" and node.input[1].startswith(f"{part}.")]
    if not own:
        return []
    end = own[-1] + 1
    while end < len(nodes) and nodes[end].op_type in ("Relu", "Add"):
        end += 1
    return nodes[own[0] : end]
