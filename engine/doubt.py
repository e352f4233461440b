"""A module to the graph of a glance: its doubt, and beside it what stands for a window that it clears."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from engine.export import write_graph
from engine.glance import DOUBT
from engine.manifest import BFLOAT_LAYERS, FEATURES_FILES, GLANCE_FILE
from engine.quantise import of_part


def write_glance(
    bundle: Path, doubt: nn.Module, clean: Mapping[str, NDArray[np.float32]], *, side_px: int, part: str
) -> None:
    """Write `glance.onnx` beside the other files of a bundle; signing it is the caller's.

    Args:
        bundle: folder of the bundle.
        doubt: `pixels` (1, 1, S, S) uint8 to a doubt (1,) from 0 to 1.
        clean: what the features graph says of a clean window, by the names of its outputs, without rows; what that
            graph does not have is left out.
        side_px: S, of a patch and, beyond each edge, as many pixels of its mirror image.
        part: of the module, which may round to bfloat16 on CPUs that run the features graph so; with it rounds all that
            leads to its first convolution, which rounds what it is given in any case.

    Raises:
        ValueError: the part has no convolution.
    """
    path = bundle / GLANCE_FILE
    pixels = torch.zeros((1, 1, side_px, side_px), dtype=torch.uint8)
    write_graph(path, doubt.eval(), (pixels,), names=(["pixels"], [DOUBT]), dynamic=None)
    model = onnx.load(path)
    has = {output.name for output in onnx.load(bundle / FEATURES_FILES["fp32"]).graph.output}
    for name, value in clean.items():
        if name not in has:
            continue
        constant = onnx.numpy_helper.from_array(value[None].astype(np.float32), name)
        model.graph.node.append(onnx.helper.make_node("Constant", [], [name], value=constant))
        kind = onnx.TensorProto.FLOAT
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, list(constant.dims)))
    nodes = list(model.graph.node)
    rounding = nodes[: nodes.index(of_part(model, part, keep=0)[-1]) + 1]
    onnx.helper.set_model_props(model, {BFLOAT_LAYERS: "\n".join(node.name for node in rounding)})
    onnx.save(model, path)
