"""The features graph for bfloat16, made at export: what CPUs with AMX or AVX-512 BF16 multiply at twice the rate.

bfloat16 reaches as far as float32, but has 8 bits of mantissa: a grey level is 1 of 256 of a bright ground, and what is
carried forward of it must not be rounded to that. So the first convolutions of the trunk are kept in float32, counted
from the pixels, as for int8. The weights stay as they are; the graph's metadata names the layers that may round.
"""

from pathlib import Path

import onnx

from engine.manifest import BFLOAT_LAYERS, FEATURES_FILES
from engine.quantise import of_part


def write_bfloat(bundle: Path, *, part: str, keep: int) -> None:
    """Write `features.bf16.onnx` beside the other files of a bundle; signing it is the caller's.

    Args:
        bundle: folder of the bundle.
        part: what may round, such as `network.trunk`.
        keep: how many convolutions of the part stay in float32, counted from the pixels.

    Raises:
        ValueError: the part has no convolution left.
    """
    model = onnx.load(bundle / FEATURES_FILES["fp32"])
    rounding = of_part(model, part, keep=keep)
    onnx.helper.set_model_props(model, {BFLOAT_LAYERS: "\n".join(node.name for node in rounding)})
    onnx.save(model, bundle / FEATURES_FILES["bf16"])
