"""The features graph in half precision, made at export: TensorRT takes the precision that the graph has.

One part of the network, its trunk, computes in float16: nearly all of the work. Its normalisations are folded into its
convolutions while they are float32 still. What comes before and after stays float32, but for the factors of its matrix
products: the scale of the pixels, the mean over the map (1,024 cells of it pass 65,504), the softmax, the norms of the
cosines.

A CPU does not show what float16 costs: ONNX Runtime runs the graph in float32, with no number between its layers
rounded, so that neither loss nor overflow is seen. `rounded_copy` writes the roundings out; that is what is compared.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from engine.copies import changed_copy
from engine.export import write_features
from engine.manifest import FEATURES_FILES, Manifest

PRODUCTS = ("MatMul", "Gemm")


class InHalf(nn.Module):
    """A module that computes in float16 between float32 neighbours."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = fuse(module.eval()).half()

    def forward(self, x: Tensor) -> Tensor:
        """The module's answer, in float32."""
        answer: Tensor = self.module(x.half()).float()
        return answer


def in_half(features: nn.Module, part: str) -> nn.Module:
    """A copy of a module in which one part, such as `network.trunk`, computes in float16.

    Raises:
        AttributeError: there is no such part.
    """
    half = copy.deepcopy(features).eval()
    half.set_submodule(part, InHalf(half.get_submodule(part)))
    return half


def write_half(bundle: Path, features: nn.Module, *, part: str, patch_px: int) -> None:
    """Write `features.fp16.onnx` beside the other files of a bundle; signing them is the caller's."""
    path = bundle / FEATURES_FILES["fp16"]
    write_features(path, in_half(features, part), patch_px=patch_px)
    model = onnx.load(path)
    halve_products(model.graph)
    onnx.save(model, path)


@contextmanager
def rounded_copy(bundle: Path) -> Iterator[Path]:
    """A copy of a bundle whose fp16 graph gives on a CPU what it gives on a GPU, for as long as the context lasts.

    Raises:
        BundleError: the bundle is not whole, or has no fp16 graph.
    """
    with changed_copy(bundle) as rounding:
        manifest = Manifest.read(rounding)
        graph = rounding / manifest.features_file("fp16")
        onnx.save(rounded(onnx.load(graph)), graph)
        manifest.sign(rounding)
        yield rounding


def halve_products(graph: onnx.GraphProto) -> None:
    """Let a graph's matrix products multiply float16 and hand on float32: TensorRT-RTX has no others for Turing.

    They are of means, or of weights that add up to 1, so that nothing grows in them.
    """
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            nodes.append(node)
            continue
        (product,) = node.output
        halves = [f"{node.name}.factor{index}" for index in range(len(node.input))]
        for name, half in zip(node.input, halves, strict=True):
            nodes.append(helper.make_node("Cast", [name], [half], name=half, to=TensorProto.FLOAT16))
        node.input[:] = halves
        node.output[:] = [f"{node.name}.product"]
        widened = helper.make_node("Cast", node.output, [product], name=f"{node.name}.float", to=TensorProto.FLOAT)
        nodes += [node, widened]
    del graph.node[:]
    graph.node.extend(nodes)


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A half-precision graph as one that computes in float32 and rounds every result to float16 and back.

    That is how the units of a GPU work that multiply in float16: they sum up in float32 and store float16.
    """
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = model.graph
    half = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for constant in graph.initializer:
        if constant.data_type == TensorProto.FLOAT16:
            widened = numpy_helper.to_array(constant).astype(np.float32)
            constant.CopyFrom(numpy_helper.from_array(widened, constant.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        rounding = [name for name in node.output if name in half]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
        node.output[:] = [f"{name}_unrounded" if name in half else name for name in node.output]
        nodes.append(node)
        for name in rounding:
            nodes += [
                helper.make_node("Cast", [f"{name}_unrounded"], [f"{name}_half"], to=TensorProto.FLOAT16),
                helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT),
            ]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model
