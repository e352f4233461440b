"""A real bundle of two hand-made ONNX graphs, small enough for every test: no training, no torch.

Each label looks for one grey level: `grey_of(0)` is label 0's, and so on. A pixel at that level gives the
label full activation, one `REACH` levels away or further gives none, linearly between; the strongest pixel
of a patch decides. A pixel `REACH / 2` away scores 0.5. `BACKGROUND` is no label's level.

The reasoning is the sigmoid of the patch's logit, moved a little by the mean over all patches, so that a
screen reasoned over with another screen's patches is found out.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engine.looks import NO_GLANCE, NO_SECOND_LOOK, Glance, SecondLook
from engine.manifest import FEATURES_FILES, GLANCE_FILE, FrameLimits, LabelLimits, Manifest, file_sha256

GREYS = (240, 16, 64, 208, 32, 224)
BACKGROUND = 128
REACH = 8
GAIN = 20.0  # an activation from 0 to 1 is a logit from -10 to 10
NEIGHBOUR_GAIN = 0.05
SURER = 1.00001
CELL_PX = 8  # pixels under one entry of the activation map
LABELS = ("bubble", "pinhole", "scratch", "tin_ash")
OPSET, IR_VERSION = 17, 8

Ports = dict[str, tuple[int, Sequence[int | str]]]  # element type and shape by name
Constants = dict[str, "NDArray[np.generic] | np.generic"]


def grey_of(label_index: int) -> int:
    """Grey level that the label of this index looks for."""
    return GREYS[label_index]


def tiny_bundle(
    path: Path,
    *,
    labels: Sequence[str] = LABELS,
    patch_px: int = 64,
    overlap_px: int = 0,
    glance: Glance = NO_GLANCE,
    second_look: SecondLook = NO_SECOND_LOOK,
    batch_size: int = 5,
    activation: bool = True,
    review: tuple[float, float] = (0.3, 0.7),
    threshold: float = 0.5,
    version: str = "1.0.0",
    gain: float = GAIN,
) -> Path:
    """Write a bundle that `engine.load` takes, and return its folder.

    Args:
        path: folder to make.
        labels: up to six.
        patch_px: side of a patch, a multiple of 8.
        overlap_px: of the windows.
        glance: which windows the whole network sees; what stands for the others is `glance_graph`'s.
        second_look: where windows are added.
        batch_size: of the features graph.
        activation: whether the features graph has activation maps; a one-stage rival has none.
        review: low and high of every label.
        threshold: of every label.
        version: of the model.
        gain: steepness of the scores, by which two bundles differ on every patch.
    """
    path.mkdir(parents=True, exist_ok=True)
    onnx.save(features_graph(len(labels), patch_px=patch_px, activation=activation, gain=gain), path / "features.onnx")
    onnx.save(reasoning_graph(len(labels)), path / "reasoning.onnx")
    if glance != NO_GLANCE:
        graph = glance_graph(len(labels), patch_px=patch_px, activation=activation, gain=gain)
        onnx.save(graph, path / GLANCE_FILE)
    pixels = golden_pixels(len(labels), patch_px=patch_px)
    probability = probability_of(pixels, len(labels), gain=gain)
    maps = activation_of(pixels, len(labels)) if activation else np.zeros((*probability.shape, 1, 1), np.float32)
    np.savez_compressed(path / "golden.npz", pixels=pixels, probability=probability, activation=maps)
    (path / "MODEL_CARD.md").write_text("# tiny\n\nHand-made for tests.\n")
    manifest = Manifest(
        name="tiny",
        version=version,
        labels={label: LabelLimits(threshold=threshold, review=review) for label in labels},
        patch_px=patch_px,
        overlap_px=overlap_px,
        glance=glance,
        second_look=second_look,
        batch_size=batch_size,
        frame=FrameLimits(saturated_ratio_max=0.05, contrast_min=4.0),
        files={file.name: file_sha256(file) for file in sorted(path.iterdir())},
        parity_tolerance={"fp32": 1e-5},
        data_id="hand-made",
        training={"macro_f": 1.0, "seed": 0},
    )
    manifest.write(path)
    return path


def add_called(bundle: Path, precision: str) -> None:
    """Add the features graph once more under the name of another precision, which it does not have."""
    model = onnx.load(bundle / "features.onnx")
    model.graph.name = precision
    onnx.save(model, bundle / FEATURES_FILES[precision])
    manifest = Manifest.read(bundle)
    replace(manifest, parity_tolerance={**manifest.parity_tolerance, precision: 0.01}).sign(bundle)


def golden_pixels(labels: int, *, patch_px: int) -> NDArray[np.uint8]:
    """One patch a label with a spot of its grey level, and an empty one; (labels + 1, 1, P, P)."""
    rng = np.random.default_rng(7)
    pixels = rng.integers(BACKGROUND - 20, BACKGROUND + 21, (labels + 1, 1, patch_px, patch_px))
    for index in range(labels):
        pixels[index, 0, 10 : 14 + index, 20:24] = grey_of(index)
    return pixels.astype(np.uint8)


def probability_of(pixels: NDArray[np.uint8], labels: int, *, gain: float = GAIN) -> NDArray[np.float32]:
    """What the two graphs compute for (K, 1, P, P) patches reasoned together, in NumPy; (K, labels)."""
    distance = np.abs(pixels.astype(np.float64) - np.array(GREYS[:labels])[:, None, None])
    activation = np.maximum(0.0, 1 - distance / REACH)
    logits = gain * (activation.max((2, 3)) - 0.5)
    reasoned = logits + NEIGHBOUR_GAIN * logits.mean(0)
    return np.asarray(1 / (1 + np.exp(-reasoned)), np.float32)


def activation_of(pixels: NDArray[np.uint8], labels: int) -> NDArray[np.float32]:
    """The maps of the features graph for (K, 1, P, P) patches, in NumPy; (K, labels, P / CELL_PX, P / CELL_PX)."""
    distance = np.abs(pixels.astype(np.float64) - np.array(GREYS[:labels])[:, None, None])
    seen = np.maximum(0.0, 1 - distance / REACH)
    cells = pixels.shape[2] // CELL_PX
    return np.asarray(seen.reshape(len(pixels), labels, cells, CELL_PX, cells, CELL_PX).max((3, 5)), np.float32)


def features_graph(labels: int, *, patch_px: int, activation: bool = True, gain: float = GAIN) -> onnx.ModelProto:
    """`pixels` (N, 1, P, P) to `label_features` (N, C, 2), twice half the logit, `stage1`, `activation`."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "levels"], ["apart"]),
        helper.make_node("Abs", ["apart"], ["distance"]),
        helper.make_node("Mul", ["distance", "slope"], ["falling"]),
        helper.make_node("Add", ["falling", "one"], ["seen_or_less"]),
        helper.make_node("Relu", ["seen_or_less"], ["seen"]),
        helper.make_node(
            "MaxPool", ["seen"], ["activation"], kernel_shape=[CELL_PX, CELL_PX], strides=[CELL_PX, CELL_PX]
        ),
        helper.make_node("ReduceMax", ["activation"], ["strongest"], axes=[2, 3], keepdims=0),
        helper.make_node("Sub", ["strongest", "half"], ["centred"]),
        helper.make_node("Mul", ["centred", "gain"], ["stage1"]),
        helper.make_node("Unsqueeze", ["stage1", "last"], ["column"]),
        helper.make_node("Mul", ["column", "halves"], ["label_features"]),
    ]
    constants: Constants = {
        "levels": np.array(GREYS[:labels], np.float32)[None, :, None, None],
        "slope": np.float32(-1 / REACH),
        "one": np.float32(1),
        "half": np.float32(0.5),
        "gain": np.float32(gain),
        "last": np.array([2], np.int64),
        "halves": np.array([[[0.5, 0.5]]], np.float32),
    }
    inputs: Ports = {"pixels": (TensorProto.UINT8, ["n", 1, patch_px, patch_px])}
    cells = patch_px // CELL_PX
    outputs: Ports = {
        "label_features": (TensorProto.FLOAT, ["n", labels, 2]),
        "stage1": (TensorProto.FLOAT, ["n", labels]),
        "activation": (TensorProto.FLOAT, ["n", labels, cells, cells]),
    }
    if not activation:
        del outputs["activation"]
    return _model(nodes, inputs, outputs, constants)


def glance_graph(labels: int, *, patch_px: int, activation: bool = True, gain: float = GAIN) -> onnx.ModelProto:
    """`pixels` (1, 1, P, P) to `doubt` (1,), the strongest activation of any label, and a window that has none.

    What stands for that is a little surer than the features graph, so that one is told from the other.
    """
    whole = features_graph(labels, patch_px=patch_px, gain=gain).graph
    strongest = next(k for k, node in enumerate(whole.node) if "strongest" in node.output)
    cells = patch_px // CELL_PX
    clean = {
        "label_features": np.full((1, labels, 2), -SURER * gain / 4, np.float32),
        "stage1": np.full((1, labels), -SURER * gain / 2, np.float32),
        "activation": np.zeros((1, labels, cells, cells), np.float32),
    }
    if not activation:
        del clean["activation"]
    nodes = [
        *(node for node in whole.node[:strongest] if "activation" not in node.output),
        helper.make_node("ReduceMax", ["seen"], ["doubt"], axes=[1, 2, 3], keepdims=0),
        *(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(v)) for name, v in clean.items()),
    ]
    constants: Constants = {value.name: numpy_helper.to_array(value) for value in whole.initializer}
    inputs: Ports = {"pixels": (TensorProto.UINT8, [1, 1, patch_px, patch_px])}
    outputs: Ports = {"doubt": (TensorProto.FLOAT, [1]), **{n: (TensorProto.FLOAT, v.shape) for n, v in clean.items()}}
    return _model(nodes, inputs, outputs, constants)


def reasoning_graph(labels: int) -> onnx.ModelProto:
    """`label_features` (K, C, 2) and `stage1` (K, C) to `probability` (K, C)."""
    nodes = [
        helper.make_node("ReduceSum", ["label_features", "last"], ["logits"], keepdims=0),
        helper.make_node("ReduceMean", ["stage1"], ["neighbours"], axes=[0], keepdims=1),
        helper.make_node("Mul", ["neighbours", "gain"], ["shift"]),
        helper.make_node("Add", ["logits", "shift"], ["reasoned"]),
        helper.make_node("Sigmoid", ["reasoned"], ["probability"]),
    ]
    constants: Constants = {"last": np.array([2], np.int64), "gain": np.float32(NEIGHBOUR_GAIN)}
    inputs: Ports = {
        "label_features": (TensorProto.FLOAT, ["k", labels, 2]),
        "stage1": (TensorProto.FLOAT, ["k", labels]),
    }
    outputs: Ports = {"probability": (TensorProto.FLOAT, ["k", labels])}
    return _model(nodes, inputs, outputs, constants)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: Ports,
    outputs: Ports,
    constants: Constants,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model
